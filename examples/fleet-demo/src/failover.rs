//! A Redis whose server dies: two `redis-server`s, of which the second replicates the first, behind one address.

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dogpile_fleet::{RedisStore, RefreshStore};

/// Whether there is a `redis-server` to be started.
pub(crate) fn is_installed() -> bool {
    let version = Command::new("redis-server").arg("--version").stdout(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

/// A server of its own, on a free port, with a temporary folder.
struct Server {
    port: u16,
    process: Child,
    _directory: tempfile::TempDir,
}

impl Server {
    fn start(of: Option<u16>) -> Result<Self, Box<dyn Error>> {
        let directory = tempfile::tempdir()?;
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let mut command = Command::new("redis-server");
        command
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"])
            .arg(directory.path());
        if let Some(of) = of {
            command.args(["--replicaof", "127.0.0.1", &of.to_string()]);
        }
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let server = Self { port, process, _directory: directory };
        server.until("PING", "+PONG")?;
        if of.is_some() {
            server.until("INFO replication", "master_link_status:up")?;
        }
        Ok(server)
    }

    /// What the server says to a command, as far as it comes at once.
    fn ask(&self, command: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        stream.write_all(format!("{command}\r\nQUIT\r\n").as_bytes())?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        Ok(said)
    }

    fn until(&self, command: &str, expected: &str) -> Result<(), Box<dyn Error>> {
        let end = Instant::now() + Duration::from_secs(20);
        while !self.ask(command).is_ok_and(|said| said.contains(expected)) {
            if Instant::now() > end {
                return Err(format!("redis-server does not come to say {expected} to {command}").into());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The address that stays: passes each connection on to the server that it is set to.
struct Address {
    port: u16,
    server: Arc<AtomicU16>,
}

impl Address {
    fn of(server: u16) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let port = listener.local_addr()?.port();
        let server = Arc::new(AtomicU16::new(server));
        let current = Arc::clone(&server);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // Relaxed: a number on its own. Without a server the connection is closed.
                if let Ok(server) = TcpStream::connect(("127.0.0.1", current.load(Ordering::Relaxed))) {
                    join(client, server);
                }
            }
        });
        Ok(Self { port, server })
    }

    fn set(&self, server: u16) {
        self.server.store(server, Ordering::Relaxed);
    }
}

/// Copies in both directions until one of them ends.
fn join(client: TcpStream, server: TcpStream) {
    let (Ok(from_client), Ok(from_server)) = (client.try_clone(), server.try_clone()) else { return };
    for (mut from, mut to) in [(from_client, server), (from_server, client)] {
        thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
}

/// Two servers behind one address.
pub(crate) struct Pair {
    first: Server,
    second: Server,
    address: Address,
}

/// What a fail-over was like.
pub(crate) struct Outcome {
    /// From the death of the first server to the order for the second one to take over.
    pub(crate) without: Duration,
    /// From that order to the first value that the second one has stored.
    pub(crate) until_stored: Duration,
}

impl Pair {
    pub(crate) fn start() -> Result<Self, Box<dyn Error>> {
        let first = Server::start(None)?;
        let second = Server::start(Some(first.port))?;
        let address = Address::of(first.port)?;
        Ok(Self { first, second, address })
    }

    pub(crate) fn store(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.address.port)
    }

    /// Kills the first server (`kill -9`). After `without`, the second one takes over.
    pub(crate) fn fail_over(&mut self, name: &str, without: Duration) -> Result<Outcome, Box<dyn Error>> {
        self.first.kill();
        thread::sleep(without);
        let second = RedisStore::new(&format!("redis://127.0.0.1:{}/", self.second.port))?;
        self.second.until("REPLICAOF NO ONE", "+OK")?;
        let version =
            || Ok::<_, Box<dyn Error>>(second.poll(name, None)?.current.newer().map(|value| value.version));
        let replicated = version()?;
        self.address.set(self.second.port);
        let start = Instant::now();
        while version()? == replicated {
            if start.elapsed() > Duration::from_secs(60) {
                return Err("nothing was stored within a minute of the fail-over".into());
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(Outcome { without, until_stored: start.elapsed() })
    }
}
