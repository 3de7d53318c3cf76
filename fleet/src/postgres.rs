//! A store in `PostgreSQL`.
//!
//! Each name is one row of the table `dogpile_fleet`. Each operation that changes it is one statement: a conditional
//! `UPDATE`, whose condition `PostgreSQL` checks under the row's lock. What the condition decides is the rules' business;
//! what the answer says is then worked out by the [rules](crate::rules) themselves from the row that came back.

use std::collections::HashSet;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{self, Context};
use std::time::Duration;

use dogpile::Clock;
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::error::{Severity, SqlState};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, CancelToken, Client, Config, NoTls, Row, Socket};

use crate::breaker::Breaker;
use crate::draw;
use crate::hub::{Hub, Listener, Settings, Source};
use crate::io::{self, PerProcess};
use crate::rules::{Entry, Micros, Stored, micros};
use crate::store::{
    Acquire, Hint, Invalidation, Poll, Publication, Publish, RefreshStore, Request, StoreError, Subscription,
    Token, Version,
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

/// The connections of a store.
struct Shared {
    /// The statement that makes the table.
    table: String,
    config: Config,
    connect: Arc<dyn Connect>,
    sessions: Mutex<Sessions>,
    /// A session has come back, or ended.
    returned: Notify,
    hub: Arc<Hub>,
}

#[derive(Default)]
struct Sessions {
    idle: Vec<Session>,
    /// Idle or not.
    count: usize,
}

/// A connection. Dropped, it says good-bye to the server.
struct Session {
    client: Client,
    driver: AbortHandle,
}

/// A session that is used. If it is dropped before it was brought back, the connection is cut off: what is still to come through
/// it is not known.
struct Used<'a> {
    shared: &'a Shared,
    session: Option<Session>,
    is_new: bool,
}

/// The end of an operation.
#[derive(Clone, Copy)]
struct Limit {
    timeout: Duration,
    deadline: Instant,
}

type Parameter = (Box<dyn ToSql + Send + Sync>, Type);

fn text(text: &str) -> Parameter {
    (Box::new(text.to_owned()), Type::TEXT)
}

fn optional_text(text: Option<&str>) -> Parameter {
    (Box::new(text.map(ToOwned::to_owned)), Type::TEXT)
}

fn int(number: impl Into<Option<i64>>) -> Parameter {
    (Box::new(number.into()), Type::INT8)
}

fn bytes(bytes: &[u8]) -> Parameter {
    (Box::new(bytes.to_vec()), Type::BYTEA)
}

/// A connection's messages; asking for them is what drives it.
type Messages = Box<
    dyn FnMut(&mut Context<'_>) -> task::Poll<Option<Result<AsyncMessage, tokio_postgres::Error>>> + Send,
>;

type Connecting<R> = Pin<Box<dyn Future<Output = Result<R, tokio_postgres::Error>> + Send>>;

/// How connections are made, with or without encryption.
trait Connect: Send + Sync {
    fn connect(&self, config: &Config) -> Connecting<(Client, Messages)>;
    /// Has the server stop what it does for a connection.
    fn cancel(&self, token: CancelToken) -> Connecting<()>;
}

impl<M> Connect for M
where
    M: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    M::Stream: Send + 'static,
    M::TlsConnect: Send,
    <M::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    fn connect(&self, config: &Config) -> Connecting<(Client, Messages)> {
        let (config, tls) = (config.clone(), self.clone());
        Box::pin(async move {
            let (client, mut connection) = config.connect(tls).await?;
            let messages: Messages = Box::new(move |context| connection.poll_message(context));
            Ok((client, messages))
        })
    }

    fn cancel(&self, token: CancelToken) -> Connecting<()> {
        let tls = self.clone();
        Box::pin(async move { token.cancel_query(tls).await })
    }
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

impl Shared {
    /// How many connections for operations there may be.
    const MOST: usize = 4;
    /// How long an operation waits for one that is there before it makes another.
    const PATIENCE: Duration = Duration::from_millis(50);

    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn query(
        &self,
        limit: Limit,
        statement: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, Failure> {
        let is = |answer: &Result<Vec<Row>, Failure>, state: &SqlState| matches!(answer, Err(Failure::Server(error)) if error.code() == Some(state));
        let (mut answer, is_new) = self.query_once(limit, statement, parameters).await;
        if !is_new && answer.as_ref().is_err_and(Failure::is_of_connection) {
            // The server, or something on the way to it, has closed the connection while it was idle; or has become a
            // standby.
            answer = self.query_once(limit, statement, parameters).await.0;
        }
        if is(&answer, &SqlState::UNDEFINED_TABLE) {
            // Two that do this at the same time may get in each other's way; then it is there.
            let _ = self.query_once(limit, &self.table, &[]).await;
            answer = self.query_once(limit, statement, parameters).await.0;
        }
        // Where transactions are isolated from each other by default, one of two that meet has to begin again.
        while is(&answer, &SqlState::T_R_SERIALIZATION_FAILURE) && Instant::now() < limit.deadline {
            answer = self.query_once(limit, statement, parameters).await.0;
        }
        answer
    }

    /// The answer, and whether it came by a new connection.
    async fn query_once(
        &self,
        limit: Limit,
        statement: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> (Result<Vec<Row>, Failure>, bool) {
        let used = match timeout_at(limit.deadline, self.use_session()).await {
            Ok(Ok(used)) => used,
            Ok(Err(failure)) => return (Err(failure), true),
            Err(_) => return (Err(Failure::Slow(limit.timeout)), true),
        };
        let is_new = used.is_new;
        let (answer, is_clean) = {
            let Some(Session { client, .. }) = &used.session else { unreachable!("taken at the end only") };
            let token = client.cancel_token();
            let mut query = pin!(client.query_typed(statement, parameters));
            // The rest is for the server to stop.
            let soon = limit.deadline - (limit.timeout / 4).min(Duration::from_millis(250));
            match timeout_at(soon, &mut query).await {
                Ok(answer) => (answer.map_err(Failure::Server), true),
                Err(_) => {
                    // Or it would wait for a lock for as long as that is held, and take effect then.
                    let _ = timeout_at(limit.deadline, self.connect.cancel(token)).await;
                    match timeout_at(limit.deadline, &mut query).await {
                        Ok(Err(error)) if error.code() == Some(&SqlState::QUERY_CANCELED) => {
                            (Err(Failure::Busy(limit.timeout)), true)
                        }
                        // The server may still stop what comes next.
                        Ok(answer) => (answer.map_err(Failure::Server), false),
                        Err(_) => (Err(Failure::Slow(limit.timeout)), false),
                    }
                }
            }
        };
        let answer = answer.and_then(|rows| {
            let is_standby = |row: &Row| row.try_get::<_, bool>("standby").unwrap_or(false);
            if rows.first().is_some_and(is_standby) { Err(Failure::Standby) } else { Ok(rows) }
        });
        if answer.as_ref().is_err_and(Failure::is_standby) {
            self.hub.reconnect();
        }
        if is_clean && !answer.as_ref().is_err_and(Failure::is_of_connection) {
            used.bring_back();
        }
        (answer, is_new)
    }

    async fn use_session(&self) -> Result<Used<'_>, Failure> {
        let mut waited = false;
        loop {
            let returned = self.returned.notified();
            {
                let mut sessions = self.lock();
                while let Some(session) = sessions.idle.pop() {
                    if !session.client.is_closed() {
                        return Ok(Used { shared: self, session: Some(session), is_new: false });
                    }
                    sessions.count -= 1;
                }
                if sessions.count == 0 || (waited && sessions.count < Self::MOST) {
                    sessions.count += 1;
                    break;
                }
            }
            waited |= timeout(Self::PATIENCE, returned).await.is_err();
        }
        // From here on it is counted, and no longer if this future is dropped.
        let mut used = Used { shared: self, session: None, is_new: true };
        let (client, mut messages) = self.connect.connect(&self.config).await.map_err(Failure::Server)?;
        let driver = tokio::spawn(async move { while let Some(Ok(_)) = poll_fn(&mut messages).await {} });
        used.session = Some(Session { client, driver: driver.abort_handle() });
        Ok(used)
    }
}

impl Used<'_> {
    fn bring_back(mut self) {
        if let Some(session) = self.session.take() {
            self.shared.lock().idle.push(session);
            self.shared.returned.notify_one();
            std::mem::forget(self);
        }
    }
}

impl Drop for Used<'_> {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            session.driver.abort();
        }
        self.shared.lock().count -= 1;
        self.shared.returned.notify_one();
    }
}

/// What the statements call the table; in no other place of them.
const DEFAULT_TABLE: &str = "dogpile_fleet";

/// The time in microseconds: `$2`, or the server's.
const GIVEN_NOW: &str = "coalesce($2::bigint, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)";
/// The same, where the time is `$1`.
const NOW_OR_1: &str = "coalesce($1::bigint, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)";
/// The server's.
const NOW: &str = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint";

/// The columns of an entry; `$3` and `$4` are the version that is known, whose payload need not be sent.
macro_rules! columns {
    () => {
        concat!(
            "incarnation, epoch, fence, elected, version, began, soft_until, hard_until, cleared, lease_until, retry_at, ",
            "failures, tag, payload IS NOT NULL AS has_value, ",
            "CASE WHEN incarnation = $3 AND version = $4 THEN NULL ELSE payload END AS payload, ",
            "coalesce($2::bigint, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint) AS now"
        )
    };
}

const POLL: &str =
    concat!("SELECT pg_is_in_recovery() AS standby, ", columns!(), " FROM dogpile_fleet WHERE name = $1");

/// `$5`: the lease; `$6`, `$7`: the version that is refused; `$8`: a random number; `$9`, `$10`, `$11`: the incarnation, epoch
/// and version that were seen; `$12`: how long ahead of expiry. The row is changed only if the lease is granted; if not, it is returned as the statement found
/// it.
fn acquire_statement() -> String {
    let back = "coalesce(incarnation = $3 AND version < $4 OR incarnation = $9 AND (epoch < $10 OR version < $11), false)";
    let known = "CASE WHEN incarnation = $3 THEN $4 END";
    let seen = |what: &str| format!("CASE WHEN incarnation = $9 THEN {what} END");
    let (seen_epoch, seen_version) = (seen("$10"), seen("$11"));
    let refused = "coalesce(incarnation = $6 AND version = $7, false)";
    let now = GIVEN_NOW;
    let columns = columns!();
    format!(
        "WITH won AS (
            UPDATE dogpile_fleet SET
                incarnation = CASE WHEN {back} THEN $8 ELSE incarnation END,
                epoch = CASE WHEN {back} THEN greatest(epoch, {seen_epoch}) + 1 ELSE epoch END,
                version = CASE WHEN {back} THEN greatest(version, {known}, {seen_version}) ELSE version END,
                payload = CASE WHEN {back} THEN NULL ELSE payload END,
                tag = CASE WHEN {back} THEN NULL ELSE tag END,
                cleared = cleared AND NOT {back},
                retry_at = CASE WHEN {back} THEN 0 ELSE retry_at END,
                failures = CASE WHEN {back} THEN 0 ELSE failures END,
                fence = fence + 1,
                elected = {now},
                lease_until = {now} + $5
            WHERE name = $1 AND ({back} OR (
                (payload IS NULL OR soft_until <= {now} + $12 OR {refused}) AND lease_until <= {now} AND retry_at <= {now}
            ))
            RETURNING {columns}
        )
        SELECT true AS granted, * FROM won
        UNION ALL
        SELECT false, {columns} FROM dogpile_fleet WHERE name = $1 AND NOT EXISTS (SELECT FROM won)"
    )
}

/// Runs `update`, which returns a row if it was accepted, and gives a hint if it was.
fn told(update: &str, returned: &str) -> String {
    format!(
        "WITH changed AS ({update}), told AS (SELECT pg_notify('dogpile_' || right($1, 13), $1) FROM changed)
        SELECT {returned}, (SELECT count(*) FROM told) FROM changed"
    )
}

fn invalidation(how: Invalidation, now: &str) -> String {
    let (cleared, change) = match how {
        Invalidation::Soft => ("false", format!("soft_until = least(f.soft_until, {now})")),
        Invalidation::Hard => ("true", "payload = NULL, tag = NULL, cleared = true".to_owned()),
    };
    told(
        &format!(
            "INSERT INTO dogpile_fleet AS f (name, incarnation, epoch, cleared)
            VALUES ($1, (random() * 4611686018427387903)::bigint + 1, 1, {cleared})
            ON CONFLICT (name) DO UPDATE SET epoch = f.epoch + 1, lease_until = 0, {change}
            RETURNING 1 AS done"
        ),
        "done",
    )
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

/// Where hints come from.
struct Channels {
    config: Config,
    connect: Arc<dyn Connect>,
}

/// The connection for hints. Each name has a channel, which the names with the same end share; the message is the name.
struct Subscriber {
    client: Client,
    messages: mpsc::UnboundedReceiver<String>,
    names: HashSet<String>,
    driver: AbortHandle,
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

fn failed(error: tokio_postgres::Error) -> StoreError {
    Failure::Server(error).into_error()
}

/// As in `told`: names may be longer than channels, and so the channel has the last 13 characters, 52 bytes at most.
fn channel(name: &str) -> String {
    let start = name.char_indices().rev().nth(12).map_or(0, |(index, _)| index);
    format!("dogpile_{}", &name[start..])
}

fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

impl Source for Channels {
    type Listener = Subscriber;

    async fn connect(&self) -> Result<Subscriber, StoreError> {
        let (client, mut connection) = self.connect.connect(&self.config).await.map_err(failed)?;
        let (told, messages) = mpsc::unbounded_channel();
        let driver = tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(&mut connection).await {
                if let AsyncMessage::Notification(notification) = message {
                    let _ = told.send(notification.payload().to_owned());
                }
            }
        });
        let driver = driver.abort_handle();
        let mut subscriber = Subscriber { client, messages, names: HashSet::new(), driver };
        // A pooler of transactions listens, and tells nobody: then the cells had better poll.
        let probe = format!("dogpile_{:016x}", draw::number());
        let (listen, unlisten) = (format!("LISTEN {probe}; NOTIFY {probe}"), format!("UNLISTEN {probe}"));
        subscriber.client.batch_execute(&listen).await.map_err(failed)?;
        subscriber.next().await?;
        subscriber.client.batch_execute(&unlisten).await.map_err(failed)?;
        Ok(subscriber)
    }
}

impl Listener for Subscriber {
    async fn listen(&mut self, name: &str) -> Result<(), StoreError> {
        self.names.insert(name.to_owned());
        self.client.batch_execute(&format!("LISTEN {}", quoted(&channel(name)))).await.map_err(failed)
    }

    async fn unlisten(&mut self, name: &str) -> Result<(), StoreError> {
        self.names.remove(name);
        let channel = channel(name);
        if self.names.iter().any(|other| self::channel(other) == channel) {
            return Ok(());
        }
        self.client.batch_execute(&format!("UNLISTEN {}", quoted(&channel))).await.map_err(failed)
    }

    async fn next(&mut self) -> Result<String, StoreError> {
        self.messages.recv().await.ok_or_else(|| StoreError::new("the connection has ended"))
    }

    async fn ping(&mut self) -> Result<(), StoreError> {
        self.client.batch_execute("SELECT 1").await.map_err(failed)
    }
}

/// Whether the connection is of no use any more: it broke, or the server has said so before it closed it.
fn has_ended(error: &tokio_postgres::Error) -> bool {
    error
        .as_db_error()
        .is_none_or(|said| matches!(said.parsed_severity(), Some(Severity::Fatal | Severity::Panic)))
}

fn known_parameters(version: Option<Version>) -> (Option<i64>, Option<i64>) {
    version.map(|version| (signed(version.incarnation), signed(version.number))).unzip()
}

fn token_parameters(token: &Token) -> (i64, i64, i64) {
    (signed(token.fence.incarnation), signed(token.fence.number), signed(token.epoch))
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

#[derive(Debug)]
enum Failure {
    Server(tokio_postgres::Error),
    /// Nothing came in time, not even when the server was asked to stop.
    Slow(Duration),
    /// The server works, and has stopped what was not done in time.
    Busy(Duration),
    Standby,
}

impl Failure {
    /// Whether another connection may do better.
    fn is_of_connection(&self) -> bool {
        match self {
            Self::Server(error) => {
                has_ended(error) || error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION)
            }
            Self::Slow(_) | Self::Standby => true,
            Self::Busy(_) => false,
        }
    }

    fn is_standby(&self) -> bool {
        match self {
            Self::Server(error) => error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION),
            Self::Standby => true,
            Self::Slow(_) | Self::Busy(_) => false,
        }
    }

    fn into_error(self) -> StoreError {
        match self {
            Self::Server(error) => StoreError::new(ServerError(error)),
            Self::Slow(timeout) => StoreError::slow(timeout),
            Self::Busy(timeout) => StoreError::busy(format!(
                "the server was still waiting when the timeout of {timeout:?} had passed, and was told to stop: a \
                 transaction of others holds the row"
            )),
            Self::Standby => StoreError::new("the server is a standby, which takes no changes"),
        }
    }
}

/// With the server's own words: the error of the client displays as "db error".
#[derive(Debug)]
struct ServerError(tokio_postgres::Error);

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(said) = self.0.as_db_error() else { return self.0.fmt(f) };
        write!(f, "{}: {} (SQLSTATE {})", said.severity(), said.message(), said.code().code())?;
        for more in [said.detail(), said.hint()].into_iter().flatten() {
            write!(f, "; {more}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ServerError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        if self.0.as_db_error().is_some() { None } else { self.0.source() }
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}
