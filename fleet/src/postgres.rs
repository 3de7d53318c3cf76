//! A store in `PostgreSQL`.
//!
//! Each name is one row of the table `dogpile_fleet`. Each operation that changes it is one statement: a conditional
//! `UPDATE`, whose condition `PostgreSQL` checks under the row's lock. What the condition decides is the rules' business;
//! what the answer says is then worked out by the [rules](crate::rules) themselves from the row that came back.

mod listen;
mod operations;
mod pool;
mod session;
mod statements;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dogpile::Clock;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Config, NoTls, Row, Socket};

use crate::breaker::Breaker;
use crate::hub::Hub;
use crate::io;
use crate::io::PerProcess;
use crate::rules::{Entry, Micros, Stored, micros};
use crate::store::{Invalidation, Publication, Publish, StoreError, Token, Version};
use pool::AnyPool;
pub use pool::{PostgresClient, PostgresPool};
use session::{Connect, Failure, Limit, Shared};
use statements::{
    DEFAULT_TABLE, NOW, NOW_OR_1, POLL, Parameter, int, invalidation, signed, text, token_parameters,
    unsigned,
};

/// A [`RefreshStore`](crate::RefreshStore) in `PostgreSQL`, version 12 or later.
///
/// *Correctness-grade.* What is acknowledged is committed. With `synchronous_commit` off, or when an asynchronous
/// standby takes over, the last commits may be lost; see [`RedisStore`](crate::RedisStore) for what is noticed of that.
///
/// Meant for values up to some megabytes.
///
/// An invalidation can be part of the transaction that changes what the value is built from: see
/// [`invalidation`](PostgresStore::invalidation).
///
/// The [table](PostgresStore::TABLE) is made when it is found missing, if the user may do so. [`new`](PostgresStore::new) makes
/// connections that are not encrypted; for others there is [`with_tls`](PostgresStore::with_tls).
///
/// # Connections
///
/// Two for each store, whatever the number of cells that use it: one for operations, one for hints. So share the store, by
/// an [`Arc`], among the cells of a process. While an operation waits in the server, for a row that a transaction of others
/// has locked, there may be up to three more, so that the other names are not kept waiting with it. Nothing is connected until the
/// first operation. With a [`pool`](PostgresStore::pool) of the program's own, only the one for hints is the store's. A connection is
/// given up, and made again by the next operation, when it breaks, when an answer is not complete in time, and when the server turns
/// out to be a standby.
///
/// Operations block the thread, also where that thread belongs to an executor: tasks use the cell's asynchronous methods.
pub struct PostgresStore {
    config: Config,
    connect: Arc<dyn Connect>,
    pool: Option<Arc<dyn AnyPool>>,
    timeout: Duration,
    spread: Duration,
    largest: usize,
    table: String,
    shared: PerProcess<Arc<Shared>>,
    breaker: Breaker,
    /// For tests; else the server's.
    clock: Option<Box<dyn Clock>>,
}

impl PostgresStore {
    /// The table, and the channel for hints.
    pub const TABLE: &'static str = "CREATE TABLE IF NOT EXISTS dogpile_fleet (
    name text PRIMARY KEY,
    incarnation bigint NOT NULL,
    epoch bigint NOT NULL DEFAULT 0,
    fence bigint NOT NULL DEFAULT 0,
    elected bigint NOT NULL DEFAULT 0,
    version bigint NOT NULL DEFAULT 0,
    payload bytea,
    tag text,
    began bigint NOT NULL DEFAULT 0,
    soft_until bigint NOT NULL DEFAULT 0,
    hard_until bigint NOT NULL DEFAULT 0,
    cleared boolean NOT NULL DEFAULT false,
    lease_until bigint NOT NULL DEFAULT 0,
    retry_at bigint NOT NULL DEFAULT 0,
    failures integer NOT NULL DEFAULT 0
)";

    /// A store at an address such as `postgres://user@127.0.0.1:5432/database`. Does not connect yet.
    pub fn new(address: &str) -> Result<Self, StoreError> {
        Ok(Self::with_tls(address.parse::<Config>().map_err(StoreError::new)?, NoTls))
    }

    /// A store with a configuration and encryption of the user's own: `tls` is what `tokio-postgres` takes, from
    /// `tokio-postgres-rustls`, `postgres-native-tls`, `postgres-openssl` and others; whether it is used is for the
    /// configuration's `ssl_mode` to say. Does not connect yet.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::PostgresStore;
    /// use tokio_postgres::{Config, NoTls};
    ///
    /// let mut config = Config::new();
    /// config.host("db.example").user("fleet").password("secret").application_name("prices");
    /// let store = PostgresStore::with_tls(config, NoTls); // or a connector
    /// ```
    #[must_use]
    pub fn with_tls<M>(config: Config, tls: M) -> Self
    where
        M: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        M::Stream: Send + 'static,
        M::TlsConnect: Send,
        <M::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        Self {
            config,
            connect: Arc::new(tls),
            pool: None,
            timeout: Duration::from_secs(1),
            spread: Duration::from_millis(50),
            largest: 64 << 20,
            table: DEFAULT_TABLE.to_owned(),
            shared: PerProcess::new(),
            breaker: Breaker::new(),
            clock: None,
        }
    }

    /// Has operations use the clients of a pool that the program has, in place of connections of the store's own. See
    /// [`PostgresPool`]. The configuration and the encryption that the store was made with are for the connection for hints, and for
    /// telling the server to stop what was not done in time.
    ///
    /// The pool's clients are used as they are, and one at a time for each operation: a pool that is exhausted makes operations wait,
    /// and fail after the store's timeout.
    #[must_use]
    pub fn pool(mut self, pool: impl PostgresPool) -> Self {
        self.pool = Some(Arc::new(pool));
        self
    }

    /// A hint is handed to the cell after a random part of `spread`, so that not all nodes of a large fleet ask at the same
    /// instant. Default: 50 ms.
    #[must_use]
    pub fn spread_hints(mut self, spread: Duration) -> Self {
        self.spread = spread;
        self
    }

    /// The largest payload that is published, in bytes; a larger one is an error, and the node keeps the value for itself.
    /// Default: 64 MiB.
    #[must_use]
    pub fn largest_payload(mut self, bytes: usize) -> Self {
        self.largest = bytes;
        self
    }

    /// The table, with its schema or without: `shop.fleet`. Default: `dogpile_fleet`. Its statements are those of
    /// [`TABLE`](PostgresStore::TABLE) and [`invalidation`](PostgresStore::invalidation), with this name in place of `dogpile_fleet`.
    /// A schema has to be there already.
    ///
    /// # Panics
    ///
    /// If it is not one or two names of small letters, digits and underscores.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{Invalidation, PostgresStore};
    ///
    /// let store = PostgresStore::new("postgres://fleet@db.example/")?.table("shop.fleet");
    /// let invalidate = PostgresStore::invalidation(Invalidation::Soft).replace("dogpile_fleet", "shop.fleet");
    /// assert!(invalidate.contains("INSERT INTO shop.fleet"));
    /// # Ok::<(), dogpile_fleet::StoreError>(())
    /// ```
    #[must_use]
    #[track_caller]
    pub fn table(mut self, name: impl Into<String>) -> Self {
        self.table = name.into();
        let is_name = |name: &str| {
            name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
                && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        };
        let parts: Vec<&str> = self.table.split('.').collect();
        assert!(
            parts.len() <= 2 && parts.into_iter().all(is_name),
            "a table is one or two names of small letters, digits and underscores, such as `shop.fleet`: {:?}",
            self.table
        );
        self
    }

    /// A statement about the table that this store uses.
    fn of_table(&self, statement: &str) -> String {
        statement.replace(DEFAULT_TABLE, &self.table)
    }

    /// How long an operation may take as a whole: name resolution, connecting, signing in, the row's lock, and the last byte of
    /// the answer. Default: a second. The server is told to stop what is not done in time.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Goes by a clock of the client's instead of the server's: for tests, in which all clients share it.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Clock + 'static) -> Self {
        self.clock = Some(Box::new(clock));
        self
    }

    /// The statement that invalidates the value whose name is its only parameter, `$1`, of type `text`: to be run in the
    /// transaction that changes what the value is built from, with whatever client that uses.
    ///
    /// When it has committed, no build that began before is accepted any more. It locks the row until then, and other
    /// nodes that want to build wait that long; so it is best run last.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use dogpile_fleet::{Invalidation, PostgresStore};
    ///
    /// # async fn change(client: &mut tokio_postgres::Client) -> Result<(), tokio_postgres::Error> {
    /// let change = client.transaction().await?;
    /// change.execute("UPDATE rates SET rate = 1.07", &[]).await?;
    /// let invalidate = PostgresStore::invalidation(Invalidation::Soft);
    /// change.execute(&*invalidate, &[&"rates"]).await?;
    /// change.commit().await
    /// # }
    /// ```
    #[must_use]
    pub fn invalidation(how: Invalidation) -> String {
        invalidation(how, NOW)
    }

    /// Removes the entries of names that are not used any more: those that nobody has been elected for within `unused`, and whose
    /// value is not fresh any more. Returns how many there were. See [`delete`](crate::RefreshStore::delete) for what that is to a node
    /// that comes later. To be called now and then, by one process.
    ///
    /// # Errors
    ///
    /// As operations of the store; also if the user has no right to `DELETE`.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use dogpile_fleet::PostgresStore;
    /// use std::time::Duration;
    ///
    /// let store = PostgresStore::new("postgres://fleet@db.example/")?;
    /// let removed = store.delete_unused(Duration::from_secs(30 * 24 * 3600))?;
    /// # Ok::<(), dogpile_fleet::StoreError>(())
    /// ```
    pub fn delete_unused(&self, unused: Duration) -> Result<usize, StoreError> {
        let statement = format!(
            "DELETE FROM dogpile_fleet
            WHERE greatest(elected, lease_until, retry_at, CASE WHEN payload IS NOT NULL THEN soft_until END) < {NOW_OR_1} - $2
            RETURNING 1 AS done"
        );
        let rows =
            self.query(self.limit(), statement, vec![int(self.time()), int(signed(micros(unused)))])?;
        Ok(rows.len())
    }

    fn time(&self) -> Option<i64> {
        self.clock.as_ref().map(|clock| signed(clock.now().as_nanos() / 1000))
    }

    /// How often the connection for hints has been attempted in this process.
    #[must_use]
    pub fn hint_connection_attempts(&self) -> u64 {
        self.shared().hub.attempts()
    }

    fn shared(&self) -> Arc<Shared> {
        self.shared.get(|| {
            Arc::new(Shared {
                table: self.of_table(PostgresStore::TABLE),
                config: self.config.clone(),
                connect: Arc::clone(&self.connect),
                pool: self.pool.clone(),
                sessions: Mutex::default(),
                returned: Notify::new(),
                hub: Hub::new(),
            })
        })
    }

    fn limit(&self) -> Limit {
        let timeout = self.timeout.min(crate::LONGEST);
        Limit { timeout, deadline: Instant::now() + timeout }
    }

    /// Runs a statement. If the table is missing, it is made.
    fn query(
        &self,
        limit: Limit,
        statement: impl Into<String>,
        parameters: Vec<Parameter>,
    ) -> Result<Vec<Row>, StoreError> {
        let (shared, statement) = (self.shared(), self.of_table(&statement.into()));
        let left = limit.deadline.saturating_duration_since(Instant::now());
        io::run(left, move |_| async move {
            let parameters: Vec<(&(dyn ToSql + Sync), Type)> = parameters
                .iter()
                .map(|(value, of_type)| (&**value as &(dyn ToSql + Sync), of_type.clone()))
                .collect();
            shared.query(limit, &statement, &parameters).await.map_err(Failure::into_error)
        })
    }

    /// The row of a name, as an entry; the payload is left out if it is that of the known version.
    fn entry(row: &Row) -> (Entry, Micros) {
        let number = |column: &str| unsigned(row.get::<_, i64>(column));
        let value = row.get::<_, bool>("has_value").then(|| Stored {
            payload: row.get::<_, Option<Vec<u8>>>("payload").unwrap_or_default(),
            tag: row.get("tag"),
            began: number("began"),
            soft_until: number("soft_until"),
            hard_until: number("hard_until"),
        });
        let entry = Entry {
            incarnation: number("incarnation"),
            epoch: number("epoch"),
            fence: number("fence"),
            elected: number("elected"),
            version: number("version"),
            value,
            cleared: row.get("cleared"),
            lease_until: number("lease_until"),
            retry_at: number("retry_at"),
            failures: u32::try_from(row.get::<_, i32>("failures")).unwrap_or(0),
        };
        (entry, number("now"))
    }

    /// An operation that is accepted or not, with nothing else to say.
    fn heard(&self, statement: String, parameters: Vec<Parameter>) -> Result<bool, StoreError> {
        Ok(!self.query(self.limit(), statement, parameters)?.is_empty())
    }

    /// `$1` to `$7` of a statement that ends a build with a value.
    fn publication_parameters(
        &self,
        name: &str,
        token: &Token,
        soft: Duration,
        hard: Duration,
    ) -> Vec<Parameter> {
        let (incarnation, fence, epoch) = token_parameters(token);
        let [soft, hard] = [soft, hard.max(soft)].map(|time| signed(micros(time)));
        let numbers = [incarnation, fence, epoch, soft, hard];
        [text(name), int(self.time())].into_iter().chain(numbers.map(int)).collect()
    }

    fn published(
        &self,
        limit: Limit,
        name: &str,
        token: &Token,
        rows: &[Row],
    ) -> Result<Publish, StoreError> {
        if let Some(row) = rows.first() {
            let number = unsigned(row.get::<_, i64>("version"));
            return Ok(Publish::Stored(Version { incarnation: token.fence.incarnation, number }));
        }
        // Why not: what has refused it does not go away.
        let rows = self.query(limit, POLL, vec![text(name), int(self.time()), int(None), int(None)])?;
        let (mut entry, now) = rows.first().map(Self::entry).unwrap_or_default();
        let nothing = Publication { payload: &[], tag: None, soft: Duration::ZERO, hard: Duration::ZERO };
        Ok(match entry.publish(now, token, &nothing) {
            Publish::Stored(_) => Publish::Invalidated,
            refusal => refusal,
        })
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}
