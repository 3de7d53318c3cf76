//! A TCP proxy with a stable address and a server that can be exchanged, and servers that misbehave.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Forwards to a server. Connections that are there stay where they are when the server is exchanged.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    state: Arc<(Mutex<State>, Condvar)>,
}

struct State {
    server: u16,
    /// Nothing that the server says gets through.
    held: bool,
    streams: Vec<TcpStream>,
}

impl Proxy {
    pub(crate) fn start(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = State { server, held: false, streams: Vec::new() };
        let state = Arc::new((Mutex::new(state), Condvar::new()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let to = shared.0.lock().unwrap().server;
                let Ok(server) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                shared.0.lock().unwrap().streams.push(client.try_clone().unwrap());
                let (client_copy, server_copy) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || forward(client, server_copy, || ()));
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || {
                    forward(server, client_copy, || {
                        let state = shared.0.lock().unwrap();
                        drop(shared.1.wait_while(state, |state| state.held).unwrap());
                    });
                });
            }
        });
        Self { port, state }
    }

    pub(crate) fn exchange(&self, server: u16) {
        self.state.0.lock().unwrap().server = server;
    }

    pub(crate) fn hold(&self) {
        self.state.0.lock().unwrap().held = true;
    }

    /// To hold it from elsewhere.
    pub(crate) fn holder(&self) -> impl Fn() + Send + use<> {
        let state = Arc::clone(&self.state);
        move || state.0.lock().unwrap().held = true
    }

    pub(crate) fn release(&self) {
        self.state.0.lock().unwrap().held = false;
        self.state.1.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        for stream in &self.state.0.lock().unwrap().streams {
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.release();
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, before: impl Fn()) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        before();
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// A server whose answer to anything begins at once and never ends. Returns its port.
pub(crate) fn trickling(beginning: &'static [u8]) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut asked = [0; 4096];
                let _ = client.read(&mut asked);
                let _ = client.write_all(beginning);
                // Not to wait for anything: it is the fault.
                while client.write_all(b"x").is_ok() {
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
        }
    });
    port
}

/// A server that hangs up at once, and says when it was called.
pub(crate) fn hanging_up() -> (u16, Arc<Mutex<Vec<Instant>>>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let calls = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&calls);
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            noted.lock().unwrap().push(Instant::now());
            drop(client);
        }
    });
    (port, calls)
}
