//! A small HTTP server that stands for the issuer. It answers every request with its key set, and notes what it was asked.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A request, and the answer's status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The header of that name.
    pub if_none_match: Option<String>,
    /// 200, 304 or 503.
    pub status: u16,
}

/// An issuer on a free port; stops when dropped.
#[derive(Debug)]
pub struct Issuer {
    address: SocketAddr,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    rotations: AtomicU64,
    is_down: AtomicBool,
    stops: AtomicBool,
    log: Mutex<Vec<Asked>>,
}

impl Issuer {
    /// Starts one, which has the key `key-1`.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn start() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let state = Arc::new(State::default());
        let own = Arc::clone(&state);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if own.stops.load(Ordering::SeqCst) {
                    return;
                }
                // One that has been hung up on goes on with the next.
                let _ = stream.and_then(|stream| own.answer(stream));
            }
        });
        Ok(Self { address, state, thread: Some(thread) })
    }

    /// Where the key set is.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/keys", self.address)
    }

    /// Replaces the key by the next one.
    pub fn rotate(&self) {
        self.state.rotations.fetch_add(1, Ordering::SeqCst);
    }

    /// From now on every answer is `503 Service Unavailable`, or not any more.
    pub fn set_down(&self, is_down: bool) {
        self.state.is_down.store(is_down, Ordering::SeqCst);
    }

    /// All requests so far. A request is noted before it is answered.
    #[must_use]
    pub fn log(&self) -> Vec<Asked> {
        self.state.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl State {
    fn answer(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut if_none_match = None;
        for line in BufReader::new(&stream).lines() {
            let line = line?;
            match line.split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("if-none-match") => {
                    if_none_match = Some(value.to_owned());
                }
                _ if line.is_empty() => break,
                _ => {}
            }
        }
        let number = self.rotations.load(Ordering::SeqCst) + 1;
        let etag = format!("\"{number}\"");
        let (status, reason, body) = if self.is_down.load(Ordering::SeqCst) {
            (503, "Service Unavailable", String::new())
        } else if if_none_match.as_ref() == Some(&etag) {
            (304, "Not Modified", String::new())
        } else {
            (200, "OK", format!(r#"{{"keys":[{{"kid":"key-{number}","kty":"OKP"}}]}}"#))
        };
        self.log.lock().unwrap_or_else(PoisonError::into_inner).push(Asked { if_none_match, status });
        write!(stream, "HTTP/1.1 {status} {reason}\r\nETag: {etag}\r\nConnection: close\r\n\r\n{body}")
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.state.stops.store(true, Ordering::SeqCst);
        // It is waiting for the next request.
        let _ = TcpStream::connect(self.address);
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}
