//! A server of our own, for what a store sends and what it makes of an answer.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

/// The head of a request, in lower case, by lines.
pub(super) type Head = Vec<String>;

/// Answers every request by its head. Gives its URL, and the heads as they come.
pub(super) fn serve(answer: impl Fn(&Head) -> String + Send + 'static) -> (String, Arc<Mutex<Vec<Head>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let heads: Arc<Mutex<Vec<Head>>> = Arc::default();
    let recorded = heads.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let mut head = Head::new();
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap() == 0 || line.trim().is_empty() {
                    break;
                }
                head.push(line.trim().to_lowercase());
            }
            let length = value(&head, "content-length").and_then(|length| length.parse().ok());
            let mut body = vec![0; length.unwrap_or(0)];
            reader.read_exact(&mut body).unwrap();
            let answered = answer(&head);
            recorded.lock().unwrap().push(head);
            reader.get_mut().write_all(answered.as_bytes()).unwrap();
        }
    });
    (endpoint, heads)
}

/// An answer with these headers, each ending in a line break.
pub(super) fn answer(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}")
}

/// A header of a request.
pub(super) fn value<'h>(head: &'h Head, name: &str) -> Option<&'h str> {
    head.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}
