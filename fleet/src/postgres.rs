//! A store in `PostgreSQL`.
//!
//! Each name is one row of the table `dogpile_fleet`. Each operation that changes it is one statement: a conditional
//! `UPDATE`, whose condition `PostgreSQL` checks under the row's lock. What the condition decides is the rules' business;
//! what the answer says is then worked out by the [rules](crate::rules) themselves from the row that came back.

mod listen;
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
use crate::draw;
use crate::hub::{Hub, Settings};
use crate::io;
use crate::io::PerProcess;
use crate::rules::{Entry, Micros, Stored, micros};
use crate::store::{
    Acquire, Hint, Invalidation, Poll, Publication, Publish, RefreshStore, Request, StoreError, Subscription,
    Token, Version,
};
use listen::Channels;
use session::{Connect, Failure, Limit, Shared};
use statements::{
    DEFAULT_TABLE, GIVEN_NOW, NOW, NOW_OR_1, POLL, Parameter, acquire_statement, bytes, int, invalidation,
    known_parameters, optional_text, signed, text, token_parameters, told, unsigned,
};

/// A [`RefreshStore`] in `PostgreSQL`, version 12 or later.
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
/// first operation. A connection is given up, and made again by the next operation, when it breaks, when an answer is not
/// complete in time, and when the server turns out to be a standby.
///
/// Operations block the thread, also where that thread belongs to an executor: tasks use the cell's asynchronous methods.
pub struct PostgresStore {
    config: Config,
    connect: Arc<dyn Connect>,
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
            timeout: Duration::from_secs(1),
            spread: Duration::from_millis(50),
            largest: 64 << 20,
            table: DEFAULT_TABLE.to_owned(),
            shared: PerProcess::new(),
            breaker: Breaker::new(),
            clock: None,
        }
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
    /// value is not fresh any more. Returns how many there were. See [`delete`](RefreshStore::delete) for what that is to a node
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

impl RefreshStore for PostgresStore {
    fn poll(&self, name: &str, known: Option<Version>) -> Result<Poll, StoreError> {
        let time = self.time();
        let (incarnation, version) = known_parameters(known);
        let parameters = vec![text(name), int(time), int(incarnation), int(version)];
        let rows = self.query(self.limit(), POLL, parameters)?;
        let (entry, now) = rows.first().map(Self::entry).unwrap_or_default();
        Ok(entry.poll(now, known))
    }

    fn acquire(&self, name: &str, request: &Request) -> Result<Acquire, StoreError> {
        let time = self.time();
        let (incarnation, version) = known_parameters(request.known);
        let (refused, refused_version) = known_parameters(request.refuse);
        let lease = signed(micros(request.lease));
        let draw = signed(draw::incarnation());
        let seen = request.seen.map(|seen| (seen.epoch.incarnation, seen.epoch.number, seen.version));
        let seen = [
            seen.map(|seen| signed(seen.0)),
            seen.map(|seen| signed(seen.1)),
            seen.map(|seen| signed(seen.2)),
        ];
        let limit = self.limit();
        // Once more if there was no row, or if it had changed under the statement.
        for _ in 0..5 {
            let rows = self.query(
                limit,
                acquire_statement(),
                vec![
                    text(name),
                    int(time),
                    int(incarnation),
                    int(version),
                    int(lease),
                    int(refused),
                    int(refused_version),
                    int(draw),
                    int(seen[0]),
                    int(seen[1]),
                    int(seen[2]),
                    int(signed(micros(request.ahead))),
                ],
            )?;
            let Some(row) = rows.first() else {
                self.query(
                    limit,
                    "INSERT INTO dogpile_fleet (name, incarnation) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
                    vec![text(name), int(draw)],
                )?;
                continue;
            };
            let (mut entry, now) = Self::entry(row);
            if row.get("granted") {
                let fence = crate::store::Fence { incarnation: entry.incarnation, number: entry.fence };
                return Ok(Acquire::Won {
                    token: Token { fence, epoch: entry.epoch },
                    tag: entry.value.as_ref().and_then(|value| value.tag.clone()),
                    failures: entry.failures,
                    current: entry.poll(now, request.known).current,
                });
            }
            match entry.acquire(now, request, 1) {
                Acquire::Won { .. } => {}
                answer => return Ok(answer),
            }
        }
        Err(StoreError::new("the row of the entry changed too often"))
    }

    fn publish(
        &self,
        name: &str,
        token: &Token,
        publication: &Publication<'_>,
    ) -> Result<Publish, StoreError> {
        let Publication { payload, tag, soft, hard } = *publication;
        crate::store::check_size(payload, self.largest)?;
        let now = GIVEN_NOW;
        let statement = told(
            &format!(
                "UPDATE dogpile_fleet SET version = version + 1, payload = $8, tag = $9, began = elected,
                    soft_until = {now} + $6, hard_until = {now} + $7, cleared = false, lease_until = 0, retry_at = 0,
                    failures = 0
                WHERE name = $1 AND incarnation = $3 AND fence = $4 AND epoch = $5 RETURNING version"
            ),
            "version",
        );
        let time = self.time();
        let (incarnation, fence, epoch) = token_parameters(token);
        let (soft, hard) = (signed(micros(soft)), signed(micros(hard.max(soft))));
        let limit = self.limit();
        let rows = self.query(
            limit,
            statement,
            vec![
                text(name),
                int(time),
                int(incarnation),
                int(fence),
                int(epoch),
                int(soft),
                int(hard),
                bytes(payload),
                optional_text(tag),
            ],
        )?;
        self.published(limit, name, token, &rows)
    }

    fn unchanged(
        &self,
        name: &str,
        token: &Token,
        soft: Duration,
        hard: Duration,
    ) -> Result<Publish, StoreError> {
        let now = GIVEN_NOW;
        let statement = told(
            &format!(
                "UPDATE dogpile_fleet SET began = elected, soft_until = {now} + $6, hard_until = {now} + $7,
                    lease_until = 0, retry_at = 0, failures = 0
                WHERE name = $1 AND incarnation = $3 AND fence = $4 AND epoch = $5 AND payload IS NOT NULL
                RETURNING version"
            ),
            "version",
        );
        let time = self.time();
        let (incarnation, fence, epoch) = token_parameters(token);
        let (soft, hard) = (signed(micros(soft)), signed(micros(hard.max(soft))));
        let limit = self.limit();
        let rows = self.query(
            limit,
            statement,
            vec![text(name), int(time), int(incarnation), int(fence), int(epoch), int(soft), int(hard)],
        )?;
        self.published(limit, name, token, &rows)
    }

    fn fail(&self, name: &str, token: &Token, pause: Duration) -> Result<bool, StoreError> {
        let statement = told(
            &format!(
                "UPDATE dogpile_fleet SET lease_until = 0,
                    retry_at = CASE WHEN $5 > 0 THEN {GIVEN_NOW} + $5 ELSE retry_at END,
                    failures = CASE WHEN $5 > 0 THEN failures + 1 ELSE failures END
                WHERE name = $1 AND incarnation = $3 AND fence = $4 RETURNING 1 AS done"
            ),
            "done",
        );
        let time = self.time();
        let (incarnation, fence, _) = token_parameters(token);
        let pause = signed(micros(pause));
        self.heard(statement, vec![text(name), int(time), int(incarnation), int(fence), int(pause)])
    }

    fn renew(&self, name: &str, token: &Token, lease: Duration) -> Result<bool, StoreError> {
        let statement = format!(
            "UPDATE dogpile_fleet SET lease_until = {GIVEN_NOW} + $6
            WHERE name = $1 AND incarnation = $3 AND fence = $4 AND epoch = $5 AND lease_until <> 0 RETURNING 1"
        );
        let time = self.time();
        let (incarnation, fence, epoch) = token_parameters(token);
        let lease = signed(micros(lease));
        self.heard(
            statement,
            vec![text(name), int(time), int(incarnation), int(fence), int(epoch), int(lease)],
        )
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        let statement = told("DELETE FROM dogpile_fleet WHERE name = $1 RETURNING 1 AS done", "done");
        self.query(self.limit(), statement, vec![text(name)]).map(drop)
    }

    fn invalidate(&self, name: &str, how: Invalidation) -> Result<(), StoreError> {
        match self.time() {
            None => self.query(self.limit(), invalidation(how, NOW), vec![text(name)])?,
            // Inserted as a number: the statement for others has one parameter only.
            Some(time) => {
                self.query(self.limit(), invalidation(how, &format!("{time}::bigint")), vec![text(name)])?
            }
        };
        Ok(())
    }

    fn subscribe(&self, name: &str, hint: Hint) -> Option<Subscription> {
        let settings = Settings { timeout: self.timeout, spread: self.spread };
        let (config, connect) = (self.config.clone(), Arc::clone(&self.connect));
        self.shared().hub.subscribe(move || Channels { config, connect }, settings, name, hint)
    }

    fn breaker(&self) -> Option<&Breaker> {
        Some(&self.breaker)
    }

    fn check(&self, name: &str) -> Result<(), StoreError> {
        // The rights are looked at before it turns out that there is nothing to be done.
        self.query(
            self.limit(),
            "WITH changed AS (UPDATE dogpile_fleet SET name = name WHERE false RETURNING 1)
            INSERT INTO dogpile_fleet (name, incarnation) SELECT $1, 1 FROM changed",
            vec![text(name)],
        )?;
        self.poll(name, None).map(drop)
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}
