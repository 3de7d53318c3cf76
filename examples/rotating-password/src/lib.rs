//! Queries that do not fail while the password is changed.
//!
//! The credentials are a value in a cell that follows a file, as an agent of a secret store writes it. The database knows the new
//! password a little earlier than the file's readers: a connection that is refused in between asks for a look at the file,
//! waits for newer credentials than those that were refused, and tries again.

mod server;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use dogpile::{DogpileCell, Policy};
use dogpile_files::{FileError, Files, Watch};
use tokio::time::sleep;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Config, NoTls};

pub use server::Server;

/// How long newer credentials may take to come.
const PATIENCE: Duration = Duration::from_secs(10);

/// A user and a password: one line each.
pub struct Credentials {
    user: String,
    password: String,
}

fn parse(files: &Files) -> Result<Credentials, FileError> {
    let mut lines = files.text(0)?.lines();
    match (lines.next(), lines.next()) {
        (Some(user), Some(password)) => {
            Ok(Credentials { user: user.to_owned(), password: password.to_owned() })
        }
        _ => Err(files.error(0, "needs a line for the user and one for the password")),
    }
}

/// A client of a database on this host.
pub struct Database {
    credentials: Arc<DogpileCell<Credentials>>,
    watch: Watch,
    port: u16,
    refused: AtomicU64,
}

impl Database {
    /// With the credentials of a file, which must be there.
    pub async fn open(file: &Path, port: u16) -> anyhow::Result<Self> {
        let credentials = Arc::new(DogpileCell::with_policy(Policy::never_expires()));
        let watch = Watch::files([file]).debounce(Duration::from_millis(50)).spawn(&credentials, parse)?;
        anyhow::ensure!(watch.wait_ready_async(PATIENCE).await, "no credentials: {:?}", watch.last_error());
        Ok(Self { credentials, watch, port, refused: AtomicU64::new(0) })
    }

    /// Connects, asks for a number, and disconnects.
    pub async fn ask(&self, sql: &str) -> anyhow::Result<i32> {
        let start = Instant::now();
        loop {
            let seen = self.credentials.snapshot().context("there are no credentials")?;
            let result = self.ask_with(&seen.value, sql).await;
            let is_refused =
                result.as_ref().is_err_and(|error| error.code() == Some(&SqlState::INVALID_PASSWORD));
            if !is_refused || start.elapsed() > PATIENCE {
                return Ok(result?);
            }
            self.refused.fetch_add(1, Ordering::Relaxed);
            self.watch.reload_now();
            while self.credentials.generation() == seen.generation && start.elapsed() < PATIENCE {
                sleep(Duration::from_millis(10)).await;
            }
        }
    }

    async fn ask_with(&self, credentials: &Credentials, sql: &str) -> Result<i32, tokio_postgres::Error> {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.port).dbname("postgres");
        config.user(&credentials.user).password(&credentials.password);
        let (client, connection) = config.connect(NoTls).await?;
        let connection = tokio::spawn(connection);
        let result = client.query_one(sql, &[]).await.and_then(|row| row.try_get(0));
        drop(client);
        let _ = connection.await;
        result
    }

    /// How many connections were refused because of their password.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}
