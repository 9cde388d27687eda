//! An upstream that records exact bytes and answers what it is told.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

type Script = Arc<Mutex<Box<dyn Fn(&mut TcpStream, &str) -> bool + Send>>>;

/// Records every byte that it receives.
pub struct Upstream {
    pub address: SocketAddr,
    seen: Arc<Mutex<String>>,
    script: Script,
    connections: Arc<AtomicUsize>,
}

impl Upstream {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(String::new()));
        let script: Script = Arc::new(Mutex::new(Box::new(|stream: &mut TcpStream, _: &str| {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Upstream: yes\r\n\r\nok").is_ok()
        })));
        let connections = Arc::new(AtomicUsize::new(0));
        let (record, answers, count) = (seen.clone(), script.clone(), connections.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                count.fetch_add(1, Ordering::SeqCst);
                let (record, answers) = (record.clone(), answers.clone());
                std::thread::spawn(move || serve(stream, &record, &answers));
            }
        });
        Self { address, seen, script, connections }
    }

    /// How many connections were accepted.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Answers each request with these bytes.
    pub fn answer(&self, bytes: impl Into<Vec<u8>>) {
        let bytes = bytes.into();
        self.script(move |stream, _| stream.write_all(&bytes).is_ok());
    }

    /// Answers each request with `hello`, and after a while with `world`. Others are answered meanwhile.
    pub fn greets_later(&self, after: Duration) {
        self.script(move |stream, _| {
            let began =
                stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
            let mut later = stream.try_clone().unwrap();
            std::thread::spawn(move || {
                std::thread::sleep(after);
                // Whoever was cut off reads no more.
                let _ = later.write_all(b"5\r\nworld\r\n0\r\n\r\n");
            });
            began.is_ok()
        });
    }

    /// Runs this for each request, one at a time, with its head; `false` closes the connection.
    pub fn script(&self, script: impl Fn(&mut TcpStream, &str) -> bool + Send + 'static) {
        *self.script.lock().unwrap() = Box::new(script);
    }

    /// Everything that was received so far.
    pub fn seen(&self) -> String {
        std::thread::sleep(Duration::from_millis(30));
        self.seen.lock().unwrap().clone()
    }

    /// The heads of the requests so far.
    pub fn requests(&self) -> Vec<String> {
        self.seen().split("\r\n\r\n").filter(|head| !head.is_empty()).map(str::to_owned).collect()
    }

    pub fn forget(&self) {
        self.seen.lock().unwrap().clear();
    }

    /// The values of a header in what was received.
    pub fn header(&self, name: &str) -> Vec<String> {
        let seen = self.seen();
        let lines = seen.lines().filter_map(|line| line.split_once(':'));
        lines
            .filter(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim().to_owned())
            .collect()
    }
}

fn serve(mut stream: TcpStream, record: &Mutex<String>, script: &Script) {
    let mut head = Vec::new();
    let mut part = [0; 65536];
    loop {
        while !head.windows(4).any(|window| window == b"\r\n\r\n") {
            match stream.read(&mut part) {
                Ok(0) | Err(_) => return,
                Ok(count) => {
                    record.lock().unwrap().push_str(&String::from_utf8_lossy(&part[..count]));
                    head.extend_from_slice(&part[..count]);
                }
            }
        }
        let text = String::from_utf8_lossy(&head).into_owned();
        let at = text.find("\r\n\r\n").unwrap() + 4;
        let length: usize = text[..at]
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .and_then(|(_, value)| value.trim().parse().ok())
            .unwrap_or(0);
        while head.len() < at + length {
            match stream.read(&mut part) {
                Ok(0) | Err(_) => return,
                Ok(count) => {
                    record.lock().unwrap().push_str(&String::from_utf8_lossy(&part[..count]));
                    head.extend_from_slice(&part[..count]);
                }
            }
        }
        let go_on = (script.lock().unwrap())(&mut stream, &text);
        if !go_on {
            return;
        }
        head.drain(..at + length);
    }
}
