//! Names that nobody else has.

/// 32 random hexadecimal digits. Fails where the operating system gives no random bytes.
#[expect(
    clippy::disallowed_methods,
    reason = "names of temporary files and probes, on which nothing depends"
)]
pub(crate) fn random_name() -> Result<String, getrandom::Error> {
    let mut random = [0; 16];
    getrandom::fill(&mut random)?;
    Ok(hex::encode(random))
}
