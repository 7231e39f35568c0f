//! Passes requests on to an S3 server, each later by so many milliseconds: `slow-network ENDPOINT PORT MILLISECONDS`.
//! Prints where it listens, and after each line on its standard input how many requests came since the one before.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use keepwell_e2e::proxy::Proxy;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [endpoint, port, delay] = arguments.as_slice() else { panic!("ENDPOINT PORT MILLISECONDS") };
    let delay = Duration::from_millis(delay.parse().unwrap());
    let proxy = Proxy::start(endpoint, port.parse().unwrap(), delay).await;
    println!("{}", proxy.endpoint());
    let count = move || {
        for _ in std::io::stdin().lines() {
            println!("{}", proxy.requests());
            proxy.heal();
        }
    };
    tokio::task::spawn_blocking(count).await.unwrap();
}
