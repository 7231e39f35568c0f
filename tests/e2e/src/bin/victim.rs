//! A process that backs up or prunes, to be killed while it does.
fn main() {}
