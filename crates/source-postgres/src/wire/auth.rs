//! Showing who we are: SCRAM (bound to the TLS channel where possible), MD5, and a password in clear where nobody can listen.

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use keepwell_crypto::Secret;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::backend::Message as Parsed;
use postgres_protocol::message::frontend;

use super::connect::Channel;
use super::error::PgError;
use super::frame::{Message, Wire};
use crate::options::{ChannelBinding, ConnectOptions, HostOptions};

/// Servers ask for 4096 unless told otherwise. Each costs two hashes; a hostile server could ask for four thousand million.
const SCRAM_ITERATIONS_MAX: u32 = 1_000_000;

/// Answers the server's questions until it is content.
pub(super) async fn authenticate(
    wire: &mut Wire,
    options: &ConnectOptions,
    host: &HostOptions,
    channel: &Channel,
) -> Result<(), PgError> {
    let who = Who { options, host, channel };
    let mut done = false;
    loop {
        let message = match wire.next().await? {
            Message::Error(error) => return Err(PgError::Refused { host: host.describe(), error }),
            Message::Notice => continue,
            Message::Other(message) => message,
            _ => return Err(unexpected()),
        };
        match message {
            Parsed::AuthenticationOk if who.must_bind() && !done => {
                return Err(who.fact("lets us in without the channel binding that is required"));
            }
            Parsed::AuthenticationOk => {
                wire.trusted = true;
                return Ok(());
            }
            _ if done => return Err(unexpected()),
            Parsed::AuthenticationCleartextPassword => who.send_clear(wire)?,
            Parsed::AuthenticationMd5Password(body) => who.send_md5(wire, body.salt())?,
            Parsed::AuthenticationSasl(body) => {
                let mut offered = Vec::new();
                let mut mechanisms = body.mechanisms();
                while let Some(name) = mechanisms.next().map_err(|_| unexpected())? {
                    offered.push(name.to_owned());
                }
                who.scram(wire, &offered).await?;
                done = true;
            }
            Parsed::AuthenticationGss | Parsed::AuthenticationSspi => {
                return Err(who.fact("asks for Kerberos, which is not supported"));
            }
            _ => return Err(who.fact("asks for a kind of authentication that is not supported")),
        }
        wire.flush().await?;
    }
}

struct Who<'a> {
    options: &'a ConnectOptions,
    host: &'a HostOptions,
    channel: &'a Channel,
}

impl Who<'_> {
    fn fact(&self, fact: impl Into<String>) -> PgError {
        PgError::Authentication { host: self.host.describe(), fact: fact.into() }
    }

    fn must_bind(&self) -> bool {
        self.options.channel_binding == ChannelBinding::Require
    }

    fn password(&self) -> Result<&Secret, PgError> {
        self.host.password.as_ref().ok_or_else(|| {
            self.fact("asks for a password, and none is given: use ~/.pgpass, PGPASSWORD or a service file")
        })
    }

    fn send_clear(&self, wire: &mut Wire) -> Result<(), PgError> {
        if self.must_bind() {
            return Err(self.fact("asks for a password in clear, and channel binding is required"));
        }
        if matches!(self.channel, Channel::Clear) {
            return Err(
                self.fact("asks for a password in clear over a connection without TLS; it was not sent")
            );
        }
        send_password(self.password()?.expose().as_bytes(), &mut wire.output)
    }

    fn send_md5(&self, wire: &mut Wire, salt: [u8; 4]) -> Result<(), PgError> {
        if self.must_bind() {
            return Err(self.fact("asks for an MD5 password, and channel binding is required"));
        }
        let hash = md5_hash(self.options.user.as_bytes(), self.password()?.expose().as_bytes(), salt);
        send_password(hash.as_bytes(), &mut wire.output)
    }

    async fn scram(&self, wire: &mut Wire, offered: &[String]) -> Result<(), PgError> {
        let offers = |name: &str| offered.iter().any(|offer| offer == name);
        let end_point = match self.channel {
            Channel::Tls { end_point: Some(hash) }
                if self.options.channel_binding != ChannelBinding::Disable =>
            {
                Some(hash)
            }
            _ => None,
        };
        let (mechanism, binding) = match end_point {
            Some(hash) if offers(sasl::SCRAM_SHA_256_PLUS) => {
                (sasl::SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(hash.clone()))
            }
            _ if self.must_bind() => {
                return Err(
                    self.fact("cannot bind the password exchange to the TLS channel, which is required")
                );
            }
            // Tells an honest server that we could have bound the channel, had its offer arrived.
            Some(_) if offers(sasl::SCRAM_SHA_256) => {
                (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested())
            }
            None if offers(sasl::SCRAM_SHA_256) => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported()),
            _ => return Err(self.fact("offers no kind of SCRAM that is supported")),
        };
        let mut scram = sasl::ScramSha256::new(self.password()?.expose().as_bytes(), binding);
        frontend::sasl_initial_response(mechanism, scram.message(), &mut wire.output)
            .map_err(|_| unexpected())?;
        let challenge = match self.answer(wire).await? {
            Parsed::AuthenticationSaslContinue(body) => body.data().to_vec(),
            _ => return Err(unexpected()),
        };
        check_iterations(&challenge).map_err(|fact| self.fact(fact))?;
        scram.update(&challenge).map_err(|_| self.fact("sends a SCRAM challenge that cannot be read"))?;
        frontend::sasl_response(scram.message(), &mut wire.output).map_err(|_| unexpected())?;
        match self.answer(wire).await? {
            Parsed::AuthenticationSaslFinal(body) => scram.finish(body.data()).map_err(|_| {
                self.fact("cannot prove that it knows the password: it is not the server it claims to be")
            }),
            _ => Err(unexpected()),
        }
    }

    async fn answer(&self, wire: &mut Wire) -> Result<Parsed, PgError> {
        wire.flush().await?;
        loop {
            match wire.next().await? {
                Message::Other(message) => return Ok(message),
                Message::Notice => {}
                Message::Error(error) => return Err(PgError::Refused { host: self.host.describe(), error }),
                _ => return Err(unexpected()),
            }
        }
    }
}

fn send_password(password: &[u8], output: &mut BytesMut) -> Result<(), PgError> {
    frontend::password_message(password, output)
        .map_err(|_| PgError::Protocol("the password holds a zero byte".to_owned()))
}

fn unexpected() -> PgError {
    PgError::Protocol("a message that does not belong into an authentication".to_owned())
}

/// Looks at `r=…,s=…,i=4096` before anybody computes with it.
fn check_iterations(challenge: &[u8]) -> Result<(), String> {
    let text = String::from_utf8_lossy(challenge);
    let count = text.split(',').find_map(|part| part.strip_prefix("i="));
    let count = count.and_then(|count| count.parse::<u64>().ok());
    match count {
        None => Err("sends a SCRAM challenge that cannot be read".to_owned()),
        Some(count) if count > u64::from(SCRAM_ITERATIONS_MAX) => Err(format!(
            "asks for {count} iterations of SCRAM, and {SCRAM_ITERATIONS_MAX} are the most that are done"
        )),
        Some(_) => Ok(()),
    }
}
