//! A network that fails: HTTP on loopback, passed on to a server, and broken at the request of one's choice.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What goes wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// The connection is reset; the server never hears of the request.
    ResetBefore,
    /// The connection is reset when half of the request has arrived at the server.
    ResetInRequest,
    /// The server has answered, and the connection is reset before a byte of it comes back.
    ResetAfter,
    /// The connection is reset in the middle of the answer.
    ResetInAnswer,
    /// The connection ends in the middle of the answer, as if that were its end.
    EndInAnswer,
    /// The answer has a byte less than the server sent, and its head says so too.
    Shorter,
    /// The answer comes in small pieces.
    Drip,
    /// Nothing comes back for as long as the client cares to wait.
    Silence,
    /// The server never hears of the request; the answer is this status.
    Status(u16),
    /// The server has done it, and the answer is 500.
    FailsAfter,
}

impl Break {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::ResetBefore,
        Self::ResetInRequest,
        Self::ResetAfter,
        Self::ResetInAnswer,
        Self::EndInAnswer,
        Self::Shorter,
        Self::Drip,
        Self::Silence,
        Self::Status(409),
        Self::Status(412),
        Self::Status(429),
        Self::Status(500),
        Self::Status(503),
        Self::FailsAfter,
    ];

    /// Whether a client can tell that trying again is right, so that nobody above it need notice. Not so where the answer
    /// is a valid one: "it exists", and content that is not what was stored.
    pub fn passes(self) -> bool {
        !matches!(self, Self::Status(412) | Self::Shorter)
    }
}

/// Which requests are broken, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// None.
    Never,
    /// This one.
    At(u64),
    /// This one and all that follow.
    From(u64),
}

/// What a proxy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// What goes wrong.
    pub fault: Break,
    /// With which requests.
    pub when: When,
}

/// Bytes of a request's or an answer's head.
const HEAD_MAX: u64 = 64 << 10;
/// Pieces of an answer that drips, and the pause after each.
const DRIPS: usize = 20;
const DRIP: Duration = Duration::from_millis(5);

#[derive(Debug)]
struct Shared {
    upstream: String,
    plan: Mutex<Plan>,
    seen: AtomicU64,
    delay: Duration,
}

/// The proxy; it ends when this is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    listener: JoinHandle<()>,
}

/// What a connection does next.
enum Then {
    GoOn,
    End,
    Reset,
}

impl Proxy {
    /// Listens on a port of loopback and passes on to `endpoint`, an `http://HOST:PORT`. Every answer is held back by
    /// `delay`.
    pub async fn start(endpoint: &str, port: u16, delay: Duration) -> Self {
        let upstream = endpoint.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let plan = Mutex::new(Plan { fault: Break::ResetBefore, when: When::Never });
        let shared = Arc::new(Shared { upstream, plan, seen: AtomicU64::new(0), delay });
        let serving = Arc::clone(&shared);
        let listener = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(client, Arc::clone(&serving)));
            }
        });
        Self { address, shared, listener }
    }

    /// Where it listens.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Goes by this plan from now on, and counts requests anew.
    pub fn set(&self, plan: Plan) {
        *self.shared.plan.lock().unwrap() = plan;
        self.shared.seen.store(0, Ordering::SeqCst);
    }

    /// Passes everything on, and counts requests anew.
    pub fn heal(&self) {
        self.set(Plan { fault: Break::ResetBefore, when: When::Never });
    }

    /// Requests since the plan was made.
    pub fn requests(&self) -> u64 {
        self.shared.seen.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

async fn serve(client: TcpStream, shared: Arc<Shared>) {
    client.set_nodelay(true).unwrap();
    let mut client = BufReader::new(client);
    // An error is the end of a connection on either side.
    while let Ok(Some(request)) = Message::read(&mut client, &Kind::Request).await {
        let number = shared.seen.fetch_add(1, Ordering::SeqCst) + 1;
        let plan = *shared.plan.lock().unwrap();
        let is_broken = match plan.when {
            When::Never => false,
            When::At(n) => number == n,
            When::From(n) => number >= n,
        };
        let fault = is_broken.then_some(plan.fault);
        match answer(&mut client, &shared, &request, fault).await {
            Ok(Then::GoOn) => {}
            Ok(Then::Reset) => {
                client.get_ref().set_zero_linger().ok();
                return;
            }
            Ok(Then::End) | Err(_) => return,
        }
    }
}

async fn answer(
    client: &mut BufReader<TcpStream>,
    shared: &Shared,
    request: &Message,
    fault: Option<Break>,
) -> io::Result<Then> {
    tokio::time::sleep(shared.delay).await;
    match fault {
        Some(Break::ResetBefore) => return Ok(Then::Reset),
        Some(Break::ResetInRequest) => {
            let mut upstream = TcpStream::connect(&shared.upstream).await?;
            let bytes = request.bytes();
            upstream.write_all(&bytes[..bytes.len() / 2]).await?;
            return Ok(Then::Reset);
        }
        Some(Break::Status(status)) => {
            client.write_all(&refusal(status, request.method() == "HEAD")).await?;
            return Ok(Then::GoOn);
        }
        _ => {}
    }
    let mut upstream = TcpStream::connect(&shared.upstream).await?;
    upstream.set_nodelay(true)?;
    upstream.write_all(&request.bytes()).await?;
    let kind = Kind::Answer { to_head: request.method() == "HEAD" };
    let answer = Message::read(&mut BufReader::new(upstream), &kind).await?;
    let answer = answer.ok_or(io::ErrorKind::UnexpectedEof)?;
    give(client, answer, request, fault).await
}

/// Sends an answer of the server, or what is made of it.
async fn give(
    client: &mut BufReader<TcpStream>,
    mut answer: Message,
    request: &Message,
    fault: Option<Break>,
) -> io::Result<Then> {
    match fault {
        Some(Break::ResetAfter) => return Ok(Then::Reset),
        Some(Break::FailsAfter) => {
            client.write_all(&refusal(500, request.method() == "HEAD")).await?;
            return Ok(Then::GoOn);
        }
        Some(Break::Silence) => {
            // Until the client gives up, which ends the connection.
            let mut nothing = [0];
            while client.read(&mut nothing).await? > 0 {}
            return Ok(Then::End);
        }
        Some(Break::Shorter) => answer.shorten(),
        _ => {}
    }
    let bytes = answer.bytes();
    let half = answer.head.len() + answer.body.len() / 2;
    let half = if answer.body.is_empty() { bytes.len() / 2 } else { half };
    match fault {
        Some(Break::ResetInAnswer) => {
            client.write_all(&bytes[..half]).await?;
            Ok(Then::Reset)
        }
        Some(Break::EndInAnswer) => {
            client.write_all(&bytes[..half]).await?;
            Ok(Then::End)
        }
        Some(Break::Drip) => {
            for piece in bytes.chunks(bytes.len().div_ceil(DRIPS)) {
                client.write_all(piece).await?;
                tokio::time::sleep(DRIP).await;
            }
            Ok(if answer.ends_connection { Then::End } else { Then::GoOn })
        }
        _ => {
            client.write_all(&bytes).await?;
            Ok(if answer.ends_connection { Then::End } else { Then::GoOn })
        }
    }
}

/// What an S3 service says with a status.
fn refusal(status: u16, to_head: bool) -> Vec<u8> {
    let code = match status {
        409 => "ConditionalRequestConflict",
        412 => "PreconditionFailed",
        429 => "TooManyRequests",
        503 => "SlowDown",
        _ => "InternalError",
    };
    let body =
        format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>on purpose</Message></Error>");
    let head = format!(
        "HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    (if to_head { head } else { head + &body }).into_bytes()
}

enum Kind {
    Request,
    Answer { to_head: bool },
}

/// A request or an answer, as it came.
#[derive(Debug)]
struct Message {
    /// First line and headers, with the empty line.
    head: String,
    /// With the frames of a chunked one.
    body: Vec<u8>,
    /// The end of the connection is the end of the body, or follows it.
    ends_connection: bool,
}

impl Message {
    /// The next one; `None` where the connection ends.
    async fn read<R: AsyncBufRead + Unpin>(from: &mut R, kind: &Kind) -> io::Result<Option<Self>> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if (&mut *from).take(HEAD_MAX).read_line(&mut head).await? == 0 {
                return if head.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
        let mut message = Self { head, body: Vec::new(), ends_connection: false };
        let to_close = message.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        message.ends_connection = to_close || message.head.starts_with("HTTP/1.0");
        message.read_body(from, kind).await?;
        Ok(Some(message))
    }

    async fn read_body<R: AsyncBufRead + Unpin>(&mut self, from: &mut R, kind: &Kind) -> io::Result<()> {
        let bodiless = match kind {
            Kind::Request => false,
            Kind::Answer { to_head } => *to_head || matches!(self.status(), Some("204" | "304")),
        };
        let length = self.header("content-length").and_then(|value| value.parse().ok());
        if bodiless {
        } else if self.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"))
        {
            while read_chunk(from, &mut self.body).await? > 0 {}
        } else if let Some(length) = length {
            self.body = vec![0; length];
            from.read_exact(&mut self.body).await?;
        } else if matches!(kind, Kind::Answer { .. }) {
            from.read_to_end(&mut self.body).await?;
            self.ends_connection = true;
        }
        Ok(())
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    /// Of a request.
    fn method(&self) -> &str {
        self.head.split(' ').next().unwrap_or_default()
    }

    /// Of an answer.
    fn status(&self) -> Option<&str> {
        self.head.split(' ').nth(1)
    }

    fn bytes(&self) -> Vec<u8> {
        [self.head.as_bytes(), &self.body].concat()
    }

    /// Takes a byte away, in a way that its receiver cannot see.
    fn shorten(&mut self) {
        let Some(length) = self.header("content-length").map(str::to_owned) else { return };
        if self.body.pop().is_some() {
            for name in ["Content-Length", "content-length"] {
                let (before, after) =
                    (format!("{name}: {length}\r"), format!("{name}: {}\r", self.body.len()));
                self.head = self.head.replace(&before, &after);
            }
        }
    }
}

/// Reads a chunk with its frame; gives its length.
async fn read_chunk<R: AsyncBufRead + Unpin>(from: &mut R, into: &mut Vec<u8>) -> io::Result<usize> {
    let mut line = String::new();
    from.read_line(&mut line).await?;
    let digits = line.trim().split(';').next().unwrap_or_default();
    let length = usize::from_str_radix(digits, 16).map_err(|_| io::ErrorKind::InvalidData)?;
    into.extend_from_slice(line.as_bytes());
    let start = into.len();
    into.resize(start + length + 2, 0);
    from.read_exact(&mut into[start..]).await?;
    Ok(length)
}
