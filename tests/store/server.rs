//! A small Hugging Face hub on 127.0.0.1 that misbehaves as it is told to.

use ring::digest::{SHA256, digest};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    headers: HashMap<String, String>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The first byte that is asked for.
    pub fn from(&self) -> usize {
        let range = self.header("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        range.unwrap_or(0)
    }
}

/// What comes back, and what goes wrong on the way.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Said instead of the body's true length; `Some(None)`: nothing is said.
    pub length: Option<Option<usize>>,
    /// Bytes of the body after which the connection closes.
    pub cut: Option<usize>,
    /// Wait so long after so many bytes of the body; before the answer at all where there is none.
    pub hang: Option<Duration>,
    /// Wait so long after each piece of 4 KiB.
    pub slow: Option<Duration>,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.retain(|(n, _)| n != name);
        self.headers.push((name.to_string(), value.to_string()));
        self
    }

    pub fn cut(mut self, bytes: usize) -> Self {
        self.cut = Some(bytes);
        self
    }
}

pub struct Server {
    pub address: String,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// `answer`: the request and how many of the same method came before it -> what to do.
    pub fn start(answer: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let log: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (answer, kept) = (Arc::new(answer), log.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, log) = (answer.clone(), kept.clone());
                std::thread::spawn(move || {
                    let Some(request) = read(&stream) else { return };
                    let before = {
                        let mut log = log.lock().unwrap();
                        let before = log.iter().filter(|r| r.method == request.method).count();
                        log.push(request.clone());
                        before
                    };
                    let _ = write(stream, &request, &answer(&request, before)); // the other end may be gone
                });
            }
        });
        Self { address, log }
    }

    /// A hub that holds `files` (path in the repository, bytes) and does `twist` to its answers.
    pub fn hub(
        files: &[(&str, &[u8])],
        twist: impl Fn(&Request, usize, Reply) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let files: Vec<(String, Vec<u8>)> = files.iter().map(|(n, b)| (n.to_string(), b.to_vec())).collect();
        Self::start(move |request, before| {
            let file = files.iter().find(|(name, _)| request.path.ends_with(&format!("/{name}")));
            let reply = match file {
                Some((_, bytes)) => well_behaved(request, bytes),
                None => Reply::status(404).with("x-error-code", "EntryNotFound"),
            };
            twist(request, before, reply)
        })
    }

    pub fn requests(&self, method: &str) -> Vec<Request> {
        self.log.lock().unwrap().iter().filter(|r| r.method == method).cloned().collect()
    }
}

/// What the hub answers when nothing is wrong.
pub fn well_behaved(request: &Request, bytes: &[u8]) -> Reply {
    let reply = Reply::status(200)
        .with("x-repo-commit", COMMIT)
        .with("etag", format!("\"{}\"", sha256(bytes)))
        .with("x-linked-etag", format!("\"{}\"", sha256(bytes)))
        .with("x-linked-size", bytes.len());
    let (from, len) = (request.from(), bytes.len());
    match request.method.as_str() {
        "GET" if from >= len && from > 0 => {
            Reply { status: 416, ..reply }.with("content-range", format!("bytes */{len}"))
        }
        "GET" if from > 0 => Reply { status: 206, body: bytes[from..].to_vec(), ..reply }
            .with("content-range", format!("bytes {from}-{}/{len}", len - 1)),
        _ => Reply { body: bytes.to_vec(), ..reply },
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_string(), words.next()?.to_string());
    let mut headers = HashMap::new();
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_string());
    }
    Some(Request { method, path, headers })
}

fn write(mut stream: TcpStream, request: &Request, reply: &Reply) -> std::io::Result<()> {
    if let (Some(hang), None) = (reply.hang, reply.cut) {
        std::thread::sleep(hang);
    }
    let mut head = format!("HTTP/1.1 {} Said\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(length) = reply.length.unwrap_or(Some(reply.body.len())) {
        head.push_str(&format!("content-length: {length}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if request.method == "HEAD" {
        return Ok(());
    }
    let body = &reply.body[..reply.cut.unwrap_or(usize::MAX).min(reply.body.len())];
    for piece in body.chunks(4096) {
        stream.write_all(piece)?;
        reply.slow.iter().for_each(|wait| std::thread::sleep(*wait));
    }
    stream.flush()?;
    if let (Some(hang), Some(_)) = (reply.hang, reply.cut) {
        std::thread::sleep(hang);
    }
    Ok(())
}
