//! A store in `PostgreSQL`.
//!
//! Each name is one row of the table `dogpile_fleet`. Each operation that changes it is one statement: a conditional
//! `UPDATE`, whose condition `PostgreSQL` checks under the row's lock. What the condition decides is the rules' business;
//! what the answer says is then worked out by the [rules](crate::rules) themselves from the row that came back.

use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{self, Context};
use std::time::{Duration, Instant};

use dogpile::Clock;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;
use tokio_postgres::error::{Severity, SqlState};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, CancelToken, Client, Config, NoTls, Row, Socket};

use crate::draw;
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
/// The [table](PostgresStore::TABLE) is made when it is found missing, if the user may do so. No connection is made until
/// the first operation, and a lost one is made again. [`new`](PostgresStore::new) makes connections that are not
/// encrypted; for others there is [`with_tls`](PostgresStore::with_tls).
///
/// Operations block the thread, also where that thread belongs to an executor: tasks use the cell's asynchronous methods.
pub struct PostgresStore {
    config: Config,
    connect: Arc<dyn Connect>,
    timeout: Duration,
    session: Mutex<Option<Session>>,
    /// For tests; else the server's.
    clock: Option<Box<dyn Clock>>,
}

/// A connection, and the runtime that drives it while somebody waits for an answer.
struct Session {
    runtime: Runtime,
    client: Client,
    driver: JoinHandle<()>,
}

type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

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

/// Does something that blocks, on another thread if this one belongs to a runtime, which would not have it.
fn outside<R: Send>(run: impl FnOnce() -> R + Send) -> R {
    if Handle::try_current().is_err() {
        return run();
    }
    std::thread::scope(|scope| match scope.spawn(run).join() {
        Ok(result) => result,
        Err(panic) => resume_unwind(panic),
    })
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
        let (connect, timeout) = (Arc::new(tls), Duration::from_secs(1));
        Self { config, connect, timeout, session: Mutex::new(None), clock: None }
    }

    /// How long connecting, and each answer, may take. Default: a second.
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

    fn time(&self) -> Option<i64> {
        self.clock.as_ref().map(|clock| signed(clock.now().as_nanos() / 1000))
    }

    /// Runs a statement. If the table is missing, it is made.
    fn query(&self, statement: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, StoreError> {
        outside(|| self.query_here(statement, parameters))
    }

    fn query_here(&self, statement: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, StoreError> {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let reused = session.is_some();
        let mut answer = self.query_once(&mut session, statement, parameters);
        if reused && matches!(&answer, Err(Failure::Server(error)) if has_ended(error)) {
            // The server, or something on the way to it, has closed the connection while it was idle.
            answer = self.query_once(&mut session, statement, parameters);
        }
        if matches!(&answer, Err(Failure::Server(error)) if error.code() == Some(&SqlState::UNDEFINED_TABLE))
        {
            // Two that do this at the same time may get in each other's way; then it is there.
            let _ = self.query_once(&mut session, Self::TABLE, &[]);
            answer = self.query_once(&mut session, statement, parameters);
        }
        // Where transactions are isolated from each other by default, one of two that meet has to begin again.
        let start = Instant::now();
        while matches!(&answer, Err(Failure::Server(error)) if error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE))
            && start.elapsed() < self.timeout
        {
            answer = self.query_once(&mut session, statement, parameters);
        }
        answer.map_err(StoreError::new)
    }

    fn query_once(
        &self,
        slot: &mut Option<Session>,
        statement: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, Failure> {
        // Taken out: after an error nobody knows what is still to come through it.
        let session = match slot.take() {
            Some(session) if !session.client.is_closed() => session,
            _ => self.connect()?,
        };
        let Session { runtime, client, .. } = &session;
        let answer = runtime.block_on(async {
            tokio::time::timeout(self.timeout, client.query_typed(statement, parameters)).await
        });
        match answer {
            Ok(Ok(rows)) => {
                *slot = Some(session);
                Ok(rows)
            }
            Ok(Err(error)) => {
                if !has_ended(&error) {
                    *slot = Some(session);
                }
                Err(Failure::Server(error))
            }
            Err(_) => {
                // Or it would wait for a lock for as long as that is held, and take effect then.
                let cancel = self.connect.cancel(client.cancel_token());
                let patience = self.timeout.min(Duration::from_millis(250));
                let _ = runtime.block_on(async { tokio::time::timeout(patience, cancel).await });
                Err(Failure::Slow)
            }
        }
    }

    fn connect(&self) -> Result<Session, Failure> {
        let runtime = Builder::new_current_thread().enable_all().build().map_err(Failure::Runtime)?;
        let connect = self.connect.connect(&self.config);
        let connect = async { tokio::time::timeout(self.timeout, connect).await };
        let (client, mut messages) = match runtime.block_on(connect) {
            Ok(Ok(connected)) => connected,
            Ok(Err(error)) => return Err(Failure::Server(error)),
            Err(_) => return Err(Failure::Slow),
        };
        let driver = runtime.spawn(async move { while let Some(Ok(_)) = poll_fn(&mut messages).await {} });
        Ok(Session { runtime, client, driver })
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
    fn heard(&self, statement: &str, parameters: &[Parameter<'_>]) -> Result<bool, StoreError> {
        Ok(!self.query(statement, parameters)?.is_empty())
    }

    fn published(&self, name: &str, token: &Token, rows: &[Row]) -> Result<Publish, StoreError> {
        if let Some(row) = rows.first() {
            let number = unsigned(row.get::<_, i64>("version"));
            return Ok(Publish::Stored(Version { incarnation: token.fence.incarnation, number }));
        }
        // Why not: what has refused it does not go away.
        let time = self.time();
        let none: Option<i64> = None;
        let known: [Parameter<'_>; 4] =
            [(&name, Type::TEXT), (&time, Type::INT8), (&none, Type::INT8), (&none, Type::INT8)];
        let rows = self.query(POLL, &known)?;
        let (mut entry, now) = rows.first().map(Self::entry).unwrap_or_default();
        let nothing = Publication { payload: &[], tag: None, soft: Duration::ZERO, hard: Duration::ZERO };
        Ok(match entry.publish(now, token, &nothing) {
            Publish::Stored(_) => Publish::Invalidated,
            refusal => refusal,
        })
    }
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Session { runtime, client, driver }) = session {
            outside(move || {
                // Says good-bye to the server, if that is quick.
                drop(client);
                let driver = async { tokio::time::timeout(Duration::from_millis(100), driver).await };
                let _ = runtime.block_on(driver);
            });
        }
    }
}

/// The time in microseconds: `$2`, or the server's.
const GIVEN_NOW: &str = "coalesce($2::bigint, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)";
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

const POLL: &str = concat!("SELECT ", columns!(), " FROM dogpile_fleet WHERE name = $1");

/// `$5`: the lease; `$6`, `$7`: the version that is refused; `$8`: a random number. The row is changed only if the lease is
/// granted; if not, it is returned as the statement found it.
fn acquire_statement() -> String {
    let back = "coalesce(incarnation = $3 AND version < $4, false)";
    let refused = "coalesce(incarnation = $6 AND version = $7, false)";
    let now = GIVEN_NOW;
    let columns = columns!();
    format!(
        "WITH won AS (
            UPDATE dogpile_fleet SET
                incarnation = CASE WHEN {back} THEN $8 ELSE incarnation END,
                epoch = CASE WHEN {back} THEN epoch + 1 ELSE epoch END,
                version = CASE WHEN {back} THEN $4 ELSE version END,
                payload = CASE WHEN {back} THEN NULL ELSE payload END,
                tag = CASE WHEN {back} THEN NULL ELSE tag END,
                cleared = cleared AND NOT {back},
                retry_at = CASE WHEN {back} THEN 0 ELSE retry_at END,
                failures = CASE WHEN {back} THEN 0 ELSE failures END,
                fence = fence + 1,
                elected = {now},
                lease_until = {now} + $5
            WHERE name = $1 AND ({back} OR (
                (payload IS NULL OR soft_until <= {now} OR {refused}) AND lease_until <= {now} AND retry_at <= {now}
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
        "WITH changed AS ({update}), told AS (SELECT pg_notify('dogpile_fleet', $1) FROM changed)
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
        let rows = self.query(
            POLL,
            &[(&name, Type::TEXT), (&time, Type::INT8), (&incarnation, Type::INT8), (&version, Type::INT8)],
        )?;
        let (entry, now) = rows.first().map(Self::entry).unwrap_or_default();
        Ok(entry.poll(now, known))
    }

    fn acquire(&self, name: &str, request: &Request) -> Result<Acquire, StoreError> {
        let time = self.time();
        let (incarnation, version) = known_parameters(request.known);
        let (refused, refused_version) = known_parameters(request.refuse);
        let lease = signed(micros(request.lease));
        let draw = signed(draw::incarnation());
        // Once more if there was no row, or if it had changed under the statement.
        for _ in 0..5 {
            let rows = self.query(
                &acquire_statement(),
                &[
                    (&name, Type::TEXT),
                    (&time, Type::INT8),
                    (&incarnation, Type::INT8),
                    (&version, Type::INT8),
                    (&lease, Type::INT8),
                    (&refused, Type::INT8),
                    (&refused_version, Type::INT8),
                    (&draw, Type::INT8),
                ],
            )?;
            let Some(row) = rows.first() else {
                self.query(
                    "INSERT INTO dogpile_fleet (name, incarnation) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
                    &[(&name, Type::TEXT), (&draw, Type::INT8)],
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
        let rows = self.query(
            &statement,
            &[
                (&name, Type::TEXT),
                (&time, Type::INT8),
                (&incarnation, Type::INT8),
                (&fence, Type::INT8),
                (&epoch, Type::INT8),
                (&soft, Type::INT8),
                (&hard, Type::INT8),
                (&payload, Type::BYTEA),
                (&tag, Type::TEXT),
            ],
        )?;
        self.published(name, token, &rows)
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
        let rows = self.query(
            &statement,
            &[
                (&name, Type::TEXT),
                (&time, Type::INT8),
                (&incarnation, Type::INT8),
                (&fence, Type::INT8),
                (&epoch, Type::INT8),
                (&soft, Type::INT8),
                (&hard, Type::INT8),
            ],
        )?;
        self.published(name, token, &rows)
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
        self.heard(
            &statement,
            &[
                (&name, Type::TEXT),
                (&time, Type::INT8),
                (&incarnation, Type::INT8),
                (&fence, Type::INT8),
                (&pause, Type::INT8),
            ],
        )
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
            &statement,
            &[
                (&name, Type::TEXT),
                (&time, Type::INT8),
                (&incarnation, Type::INT8),
                (&fence, Type::INT8),
                (&epoch, Type::INT8),
                (&lease, Type::INT8),
            ],
        )
    }

    fn invalidate(&self, name: &str, how: Invalidation) -> Result<(), StoreError> {
        match self.time() {
            None => self.query(&invalidation(how, NOW), &[(&name, Type::TEXT)])?,
            // Inserted as a number: the statement for others has one parameter only.
            Some(time) => {
                self.query(&invalidation(how, &format!("{time}::bigint")), &[(&name, Type::TEXT)])?
            }
        };
        Ok(())
    }

    fn subscribe(&self, name: &str, hint: Hint) -> Option<Subscription> {
        let ended = Arc::new(AtomicBool::new(false));
        let listener = Listener {
            config: self.config.clone(),
            connect: Arc::clone(&self.connect),
            name: name.to_owned(),
            timeout: self.timeout,
            ended: Arc::clone(&ended),
            hint: Arc::new(hint),
        };
        let thread = std::thread::Builder::new().name("dogpile-hints".to_owned());
        thread.spawn(move || listener.listen()).ok()?;
        Some(Box::new(EndWhenDropped(ended)))
    }
}

/// Ends the thread that listens, within a quarter of a second.
struct EndWhenDropped(Arc<AtomicBool>);

impl Drop for EndWhenDropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

struct Listener {
    config: Config,
    connect: Arc<dyn Connect>,
    name: String,
    timeout: Duration,
    ended: Arc<AtomicBool>,
    hint: Arc<Hint>,
}

impl Listener {
    const LOOK: Duration = Duration::from_millis(250);

    fn listen(&self) {
        let Ok(runtime) = Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            while !self.ended.load(Ordering::Acquire) {
                // What goes wrong here is no harm: the cell polls.
                let _ = self.listen_once().await;
                tokio::time::sleep(Self::LOOK).await;
            }
        });
    }

    async fn listen_once(&self) -> Result<(), Failure> {
        let connected = tokio::time::timeout(self.timeout, self.connect.connect(&self.config));
        let (client, mut messages) = connected.await.map_err(|_| Failure::Slow)?.map_err(Failure::Server)?;
        let (name, hint) = (self.name.clone(), Arc::clone(&self.hint));
        let driver = tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(&mut messages).await {
                if matches!(&message, AsyncMessage::Notification(told) if told.payload() == name) {
                    hint();
                }
            }
        });
        let listening = tokio::time::timeout(self.timeout, client.batch_execute("LISTEN dogpile_fleet"));
        listening.await.map_err(|_| Failure::Slow)?.map_err(Failure::Server)?;
        // What happened before.
        (self.hint)();
        while !self.ended.load(Ordering::Acquire) && !driver.is_finished() {
            tokio::time::sleep(Self::LOOK).await;
        }
        driver.abort();
        Ok(())
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
    Runtime(std::io::Error),
    Slow,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(error) => error.fmt(f),
            Self::Runtime(error) => error.fmt(f),
            Self::Slow => f.write_str("the server did not answer in time"),
        }
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Server(error) => error.source(),
            Self::Runtime(error) => error.source(),
            Self::Slow => None,
        }
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}
