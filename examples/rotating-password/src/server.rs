//! A `PostgreSQL` server in a temporary folder, whose user `app` has a password.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio_postgres::NoTls;

/// Who may log in, and how.
const ACCESS: &str = "host all postgres 127.0.0.1/32 trust\nhost all app 127.0.0.1/32 scram-sha-256\n";

/// A server that is stopped when it is dropped.
pub struct Server {
    /// Where it listens.
    pub port: u16,
    process: Child,
    _folder: tempfile::TempDir,
}

impl Server {
    /// Starts one. Fails if `PostgreSQL` is not installed.
    pub async fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let data = folder.path().join("data");
        fs::create_dir(&data)?;
        own(&[folder.path(), &data])?;
        let output = postgres("initdb")?
            .arg("-D")
            .arg(&data)
            .args(["-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"])
            .output()?;
        ensure!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        fs::write(data.join("pg_hba.conf"), ACCESS)?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let process = postgres("postgres")?
            .arg("-D")
            .arg(&data)
            .args(["-p", &port.to_string(), "-h", "127.0.0.1", "-k", "", "-F"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut server = Self { port, process, _folder: folder };
        let start = Instant::now();
        while let Err(error) = server.run("CREATE ROLE app LOGIN").await {
            if let Some(status) = server.process.try_wait()? {
                bail!("the server has ended with {status}");
            }
            ensure!(start.elapsed() < Duration::from_secs(60), "the server is never ready: {error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(server)
    }

    /// Changes the password of `app`: in the database first, in the file 20 ms later, as an agent does it.
    pub async fn rotate(&self, password: &str, file: &Path) -> anyhow::Result<()> {
        self.run(&format!("ALTER ROLE app PASSWORD '{password}'")).await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
        let new = file.with_extension("new");
        fs::write(&new, format!("app\n{password}\n"))?;
        Ok(fs::rename(new, file)?)
    }

    async fn run(&self, sql: &str) -> anyhow::Result<()> {
        let address = format!("postgres://postgres@127.0.0.1:{}/postgres", self.port);
        let (client, connection) = tokio_postgres::connect(&address, NoTls).await?;
        let connection = tokio::spawn(connection);
        let result = client.batch_execute(sql).await;
        drop(client);
        let _ = connection.await;
        Ok(result?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Not killed: it would leave its children behind.
        #[cfg(unix)]
        if let Some(id) = i32::try_from(self.process.id()).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(id, rustix::process::Signal::INT);
        }
        #[cfg(not(unix))]
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// As root, gives folders to the user `postgres`.
fn own(folders: &[&Path]) -> anyhow::Result<()> {
    if is_root() {
        let status = Command::new("chown").arg("postgres").args(folders).status()?;
        ensure!(status.success(), "there is no user `postgres`");
    }
    Ok(())
}

/// A program of `PostgreSQL`, which refuses to run as root.
fn postgres(program: &str) -> anyhow::Result<Command> {
    let path = find(program).with_context(|| format!("{program} is not installed"))?;
    if !is_root() {
        return Ok(Command::new(path));
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(path).current_dir("/");
    Ok(command)
}

/// Debian does not put them into the path.
fn find(program: &str) -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok().into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = versions.map(|version| version.path().join("bin").join(program)).collect();
    paths.sort();
    let search = std::env::var_os("PATH").unwrap_or_default();
    paths.extend(std::env::split_paths(&search).map(|path| path.join(program)));
    paths.into_iter().rev().find(|path| path.is_file())
}

fn is_root() -> bool {
    #[cfg(unix)]
    return rustix::process::geteuid().is_root();
    #[cfg(not(unix))]
    false
}
