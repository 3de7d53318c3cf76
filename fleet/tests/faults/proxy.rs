//! A TCP proxy that can cut its connections, refuse new ones, and hold back what the server says.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

pub(crate) struct Proxy {
    pub(crate) port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Disturbance {
    Cut,
    Held,
    Slow,
}

#[derive(Default)]
struct State {
    disturbed: Option<Disturbance>,
    ended: bool,
    streams: Vec<TcpStream>,
}

impl Proxy {
    pub(crate) fn start(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let state = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if state.state.lock().unwrap().ended {
                    return;
                }
                state.serve(client, server);
            }
        });
        Self { port, shared }
    }

    /// Cuts all connections, and each new one.
    pub(crate) fn cut(&self) {
        let mut state = self.shared.state.lock().unwrap();
        state.disturbed = Some(Disturbance::Cut);
        for stream in state.streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Answers are held back.
    pub(crate) fn hold(&self) {
        self.shared.state.lock().unwrap().disturbed = Some(Disturbance::Held);
    }

    /// Answers take longer than a caller has patience, but not as long as the node waits.
    pub(crate) fn slow_down(&self) {
        self.shared.state.lock().unwrap().disturbed = Some(Disturbance::Slow);
    }

    pub(crate) fn mend(&self) {
        self.shared.state.lock().unwrap().disturbed = None;
        self.shared.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
        self.shared.state.lock().unwrap().ended = true;
        self.mend();
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    fn serve(self: &Arc<Self>, client: TcpStream, server: u16) {
        let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { return };
        let mut state = self.state.lock().unwrap();
        if state.disturbed == Some(Disturbance::Cut) {
            return;
        }
        let ends = (client.try_clone(), server.try_clone(), client.try_clone(), server.try_clone());
        let (Ok(client_copy), Ok(server_copy), Ok(client_end), Ok(server_end)) = ends else { return };
        state.streams.extend([client_end, server_end]);
        drop(state);
        std::thread::spawn(move || forward(client, server_copy, || ()));
        let this = Arc::clone(self);
        std::thread::spawn(move || {
            forward(server, client_copy, || {
                let state = this.state.lock().unwrap();
                if state.disturbed == Some(Disturbance::Slow) {
                    drop(state);
                    // Not to wait for anything: it is the fault.
                    std::thread::sleep(Duration::from_millis(40));
                    return;
                }
                drop(
                    this.changed
                        .wait_while(state, |state| state.disturbed == Some(Disturbance::Held))
                        .unwrap(),
                );
            });
        });
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
