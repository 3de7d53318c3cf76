//! Real servers, started by the tests on a free port of the loopback interface with a temporary folder, and stopped
//! when they are dropped.
//!
//! Where one cannot be started the tests say so in capitals, and fail if `CI=true`.

#![allow(dead_code)]

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const HANG: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Redis,
    /// Speaks the protocol of Redis. Not every distribution has it.
    Valkey,
    Postgres,
}

impl Kind {
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::Redis => "redis-server",
            Self::Valkey => "valkey-server",
            Self::Postgres => "postgres",
        }
    }
}

/// A running server.
pub(crate) struct Server {
    kind: Kind,
    pub(crate) port: u16,
    directory: TempDir,
    process: Option<Child>,
    /// More arguments.
    arguments: Vec<String>,
}

/// What the tests do where a server cannot be started.
macro_rules! server_or_skip {
    ($kind:expr) => {
        match $crate::servers::Server::start($kind) {
            Ok(server) => server,
            Err(reason) => {
                $crate::servers::skip($kind, &reason);
                return;
            }
        }
    };
}
pub(crate) use server_or_skip;

/// Says so where it is seen: what a test prints is shown only if it fails.
pub(crate) fn skip(kind: Kind, reason: &str) {
    let is_optional = kind == Kind::Valkey || std::env::var("CI").as_deref() != Ok("true");
    assert!(is_optional, "no {kind:?} server: {reason}");
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: no {kind:?} server: {reason}");
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port()
}

impl Server {
    pub(crate) fn start(kind: Kind) -> Result<Self, String> {
        Self::start_with(kind, |_| Ok(Vec::new()))
    }

    /// With more arguments, for which files may be made in the folder.
    pub(crate) fn start_with(
        kind: Kind,
        arguments: impl Fn(&Path) -> Result<Vec<String>, String>,
    ) -> Result<Self, String> {
        let mut reasons = String::new();
        // Another process may take the port before the server does.
        for _ in 0..3 {
            let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
            let arguments = arguments(directory.path())?;
            let mut server = Self { kind, port: free_port(), directory, process: None, arguments };
            let started = match kind {
                Kind::Redis | Kind::Valkey => server.run(),
                Kind::Postgres => copy_database(&server.data()).and_then(|()| server.run()),
            };
            match started {
                Ok(()) => return Ok(server),
                Err(reason) => {
                    let _ = write!(reasons, "{reason}; ");
                }
            }
        }
        Err(reasons)
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Starts the server, or starts it again.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        let port = self.port.to_string();
        let mut command = match self.kind {
            Kind::Redis | Kind::Valkey => {
                let mut command = Command::new(self.kind.program());
                command.args(["--port", &port, "--bind", "127.0.0.1", "--appendonly", "yes"]);
                command.args(["--appendfsync", "everysec", "--save", "", "--dir"]).arg(self.directory.path());
                command
            }
            Kind::Postgres => {
                let mut command = postgres_command("postgres")?;
                command.arg("-D").arg(self.data()).args(["-p", &port, "-h", "127.0.0.1", "-k", "", "-F"]);
                command.args(["-c", "max_connections=200"]);
                command
            }
        };
        command.args(&self.arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(|error| format!("{command:?}: {error}"))?;
        self.process = Some(child);
        let hang = Instant::now() + HANG;
        loop {
            if self.is_ready() {
                return Ok(());
            }
            let ended = self.process.as_mut().map(Child::try_wait);
            if let Some(Ok(Some(status))) = ended {
                self.process = None;
                return Err(format!("{command:?} ended with {status}"));
            }
            if Instant::now() > hang {
                return Err(format!("{command:?} is never ready"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn is_ready(&self) -> bool {
        let address = self.address();
        match self.kind {
            Kind::Redis | Kind::Valkey => redis::Client::open(&*address)
                .and_then(|client| client.get_connection_with_timeout(Duration::from_millis(500)))
                .and_then(|mut connection| redis::cmd("PING").query::<String>(&mut connection))
                .is_ok(),
            Kind::Postgres => {
                TcpStream::connect(("127.0.0.1", self.port)).is_ok() && query(&address, "SELECT 1").is_ok()
            }
        }
    }

    /// The path of a file in its folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn address(&self) -> String {
        address(self.kind, self.port)
    }

    /// Ends the server without a warning.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            match self.kind {
                Kind::Redis | Kind::Valkey => {
                    let _ = process.kill();
                }
                // Killed, the postmaster would leave its children behind.
                Kind::Postgres => signal(&process, Signal::QUIT),
            }
            let _ = process.wait();
        }
    }

    /// Has the server stand still. Redis only: it is one process.
    pub(crate) fn stop(&self) {
        signal(self.process.as_ref().expect("it runs"), Signal::STOP);
    }

    pub(crate) fn go_on(&self) {
        signal(self.process.as_ref().expect("it runs"), Signal::CONT);
    }

    /// Loses everything that it has stored.
    pub(crate) fn flush(&self) {
        match self.kind {
            Kind::Redis | Kind::Valkey => redis_command(&self.address(), &["FLUSHALL"]),
            Kind::Postgres => query(&self.address(), "TRUNCATE dogpile_fleet").expect("truncated"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.kind != Kind::Postgres && self.process.is_some() {
            self.go_on();
        }
        self.kill();
    }
}

pub(crate) fn address(kind: Kind, port: u16) -> String {
    match kind {
        Kind::Redis | Kind::Valkey => format!("redis://127.0.0.1:{port}/"),
        Kind::Postgres => format!("postgres://postgres@127.0.0.1:{port}/postgres"),
    }
}

pub(crate) fn redis_command(address: &str, words: &[&str]) {
    let mut connection =
        redis::Client::open(address).and_then(|client| client.get_connection()).expect("connected");
    let mut command = redis::cmd(words[0]);
    for word in &words[1..] {
        command.arg(word);
    }
    command.query::<redis::Value>(&mut connection).expect("done");
}

/// Runs SQL.
pub(crate) fn query(address: &str, sql: &str) -> Result<(), tokio_postgres::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(address, tokio_postgres::NoTls).await?;
        let driver = tokio::spawn(connection);
        let done = client.batch_execute(sql).await;
        drop(client);
        let _ = driver.await;
        done
    })
}

/// Runs SQL that returns a number.
pub(crate) fn number(address: &str, sql: &str) -> Result<i64, tokio_postgres::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(address, tokio_postgres::NoTls).await?;
        let driver = tokio::spawn(connection);
        let number = client.query_one(sql, &[]).await.map(|row| row.get(0));
        drop(client);
        let _ = driver.await;
        number
    })
}

/// A key and a certificate that it has signed itself, for `localhost`, in the folder. Returns their paths.
pub(crate) fn certificate(directory: &Path) -> Result<[String; 2], String> {
    let [key, certificate] =
        ["key.pem", "certificate.pem"].map(|file| directory.join(file).display().to_string());
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]);
    command.args(["-addext", "subjectAltName=DNS:localhost", "-keyout", &key, "-out", &certificate]);
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    if rustix::process::geteuid().is_root() {
        let _ = Command::new("chown").arg("postgres").arg(&key).status();
    }
    Ok([key, certificate])
}

fn signal(process: &Child, signal: Signal) {
    let id = i32::try_from(process.id()).ok().and_then(Pid::from_raw).expect("a process id");
    let _ = kill_process(id, signal);
}

/// Initialising a database takes seconds, so it is done once, kept among the build's files, and copied.
fn copy_database(data: &Path) -> Result<(), String> {
    static TEMPLATE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let template = TEMPLATE.get_or_init(|| {
        let initdb = postgres_program("initdb").ok_or("initdb is not installed")?;
        let name = initdb.display().to_string().replace('/', "-");
        let template = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("template{name}"));
        if !template.exists() {
            let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
            init_database(&directory.path().join("data"))?;
            // Whole, or not at all.
            let new = template.with_extension(std::process::id().to_string());
            copy(&directory.path().join("data"), &new)?;
            if std::fs::rename(&new, &template).is_err() {
                let _ = std::fs::remove_dir_all(&new);
            }
        }
        Ok(template)
    });
    copy(template.as_ref().map_err(Clone::clone)?, data)?;
    // As in `init_database`: the folder above has to be entered by another user.
    let opened = Command::new("chmod").arg("a+x").arg(data.parent().expect("a parent")).status();
    if opened.is_ok_and(|status| status.success()) {
        Ok(())
    } else {
        Err("the folder cannot be opened".to_owned())
    }
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    if copied.is_ok_and(|status| status.success()) {
        Ok(())
    } else {
        Err("the database cannot be copied".to_owned())
    }
}

fn init_database(data: &Path) -> Result<(), String> {
    let mut command = postgres_command("initdb")?;
    std::fs::create_dir(data).map_err(|error| error.to_string())?;
    if rustix::process::geteuid().is_root() {
        let parent = data.parent().expect("a parent");
        let owned = Command::new("chown").arg("postgres").arg(parent).arg(data).status();
        if !owned.is_ok_and(|status| status.success()) {
            return Err("there is no user `postgres`".to_owned());
        }
    }
    command.arg("-D").arg(data).args([
        "-U",
        "postgres",
        "-A",
        "trust",
        "--no-sync",
        "-E",
        "UTF8",
        "--locale=C",
    ]);
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// A program of `PostgreSQL`, which refuses to run as root.
fn postgres_command(program: &str) -> Result<Command, String> {
    let path = postgres_program(program).ok_or_else(|| format!("{program} is not installed"))?;
    if !rustix::process::geteuid().is_root() {
        return Ok(Command::new(path));
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(path);
    command.current_dir("/");
    Ok(command)
}

/// Debian does not put them into the path.
fn postgres_program(program: &str) -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok().into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = versions.map(|version| version.path().join("bin").join(program)).collect();
    paths.sort();
    let search = std::env::var_os("PATH").unwrap_or_default();
    paths.extend(std::env::split_paths(&search).map(|path| path.join(program)));
    paths.into_iter().rev().find(|path| path.is_file())
}
