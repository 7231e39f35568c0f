//! TLS: what is checked follows `sslmode`, and what the password exchange is bound to comes from the certificate.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use x509_cert::Certificate;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode, Encode};

use crate::options::{ConnectOptions, OptionsError, RootCerts, SslMode};

/// Protocol name that PostgreSQL 17 and newer expect; older ones do not ask.
const ALPN: &[u8] = b"postgresql";

/// How far a server's certificate is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    Nothing,
    Authority,
    Name,
}

/// Builds what TLS connections of these options have in common. Reads certificate files.
pub(super) fn config(options: &ConnectOptions) -> Result<Arc<ClientConfig>, OptionsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let (check, roots) = match (options.ssl_mode, &options.root_certs) {
        (SslMode::VerifyFull, _) => (Check::Name, roots(options)?),
        (SslMode::VerifyCa, _) => (Check::Authority, roots(options)?),
        // libpq: a root certificate file that exists is used.
        (SslMode::Require, RootCerts::File(path)) if path.exists() => (Check::Authority, roots(options)?),
        _ => (Check::Nothing, Vec::new()),
    };
    let verifier = Arc::new(Verifier::new(check, roots, options.crl.as_deref(), &provider)?);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| tls_error("the TLS library has no protocol version in common with itself"))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match &options.client_cert {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = certificates(cert)?;
            let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| file(key, error))?;
            builder.with_client_auth_cert(chain, secret).map_err(|error| file(cert, error))?
        }
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

fn file(path: &Path, error: impl std::fmt::Display) -> OptionsError {
    OptionsError::File { path: path.to_owned(), source: io::Error::other(error.to_string()) }
}

fn tls_error(reason: &str) -> OptionsError {
    OptionsError::Unsupported { keyword: "sslmode", value: reason.to_owned() }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, OptionsError> {
    let read: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).map_err(|error| file(path, error))?.collect();
    let read = read.map_err(|error| file(path, error))?;
    if read.is_empty() { Err(file(path, "it holds no certificate")) } else { Ok(read) }
}

fn roots(options: &ConnectOptions) -> Result<Vec<CertificateDer<'static>>, OptionsError> {
    match &options.root_certs {
        RootCerts::File(path) => certificates(path),
        RootCerts::System => {
            let found = rustls_native_certs::load_native_certs();
            if found.certs.is_empty() {
                return Err(file(Path::new("/etc/ssl/certs"), "the system trusts no authority"));
            }
            Ok(found.certs)
        }
    }
}

/// Checks certificates as far as `sslmode` says, and signatures always.
#[derive(Debug)]
struct Verifier {
    check: Check,
    /// `None` when nothing is checked.
    chain: Option<Arc<WebPkiServerVerifier>>,
    /// A server's own certificate may itself be the trusted one, as with self-signed ones.
    roots: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(
        check: Check,
        roots: Vec<CertificateDer<'static>>,
        crl: Option<&Path>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, OptionsError> {
        let chain = if check == Check::Nothing {
            None
        } else {
            let mut store = RootCertStore::empty();
            store.add_parsable_certificates(roots.iter().cloned());
            let mut builder =
                WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider));
            if let Some(path) = crl {
                let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_file_iter(path)
                    .map_err(|error| file(path, error))?
                    .collect();
                builder = builder.with_crls(lists.map_err(|error| file(path, error))?);
            }
            Some(builder.build().map_err(|error| tls_error(&error.to_string()))?)
        };
        Ok(Self { check, chain, roots, provider: Arc::clone(provider) })
    }

    /// Whether the certificate is itself one of those trusted, and in force.
    fn is_trusted_itself(&self, leaf: &CertificateDer<'_>, now: UnixTime) -> bool {
        let in_force = || {
            let certificate = Certificate::from_der(leaf).ok()?;
            let validity = &certificate.tbs_certificate.validity;
            let (from, to) = (validity.not_before.to_unix_duration(), validity.not_after.to_unix_duration());
            Some((from.as_secs()..=to.as_secs()).contains(&now.as_secs()))
        };
        self.roots.iter().any(|root| root.as_ref() == leaf.as_ref()) && in_force() == Some(true)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        let result = chain.verify_server_cert(leaf, intermediates, name, ocsp, now);
        match result {
            // The name is looked at last, so with this error all else was right.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.check == Check::Authority => Ok(ServerCertVerified::assertion()),
            Err(_) if self.is_trusted_itself(leaf, now) => {
                if self.check == Check::Name {
                    let parsed = rustls::server::ParsedCertificate::try_from(leaf)?;
                    rustls::client::verify_server_name(&parsed, name)?;
                }
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What `tls-server-end-point` (RFC 5929) binds to: the certificate under the hash of its own signature, SHA-256 in place
/// of the broken ones. `None` where the RFC leaves it open.
pub(super) fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    const SHA1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");
    let parsed = Certificate::from_der(certificate).ok()?;
    let algorithm = parsed.signature_algorithm.oid.to_string();
    let hash = match algorithm.as_str() {
        // RSASSA-PSS names its hash in a parameter whose first field it is; SHA-1 if it is left out.
        "1.2.840.113549.1.1.10" => {
            let parameters = parsed.signature_algorithm.parameters?.to_der().ok()?;
            let found = [SHA256, SHA384, SHA512].into_iter().find(|oid| {
                let der = oid.to_der().unwrap_or_default();
                parameters.windows(der.len()).take(16).any(|window| window == der)
            });
            found.unwrap_or(SHA1).to_string()
        }
        other => other.to_owned(),
    };
    let digest = match hash.as_str() {
        // md5WithRSA, sha1WithRSA, ecdsa-with-SHA1, SHA-1, and the SHA-256 family.
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.10045.4.1"
        | "1.3.14.3.2.26"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.3.2"
        | "2.16.840.1.101.3.4.2.1" => Sha256::digest(certificate).to_vec(),
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" | "2.16.840.1.101.3.4.2.2" => {
            Sha384::digest(certificate).to_vec()
        }
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" | "2.16.840.1.101.3.4.2.3" => {
            Sha512::digest(certificate).to_vec()
        }
        "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" => Sha224::digest(certificate).to_vec(),
        _ => return None,
    };
    Some(digest)
}

const SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");
const SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2");
const SHA512: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.3");
