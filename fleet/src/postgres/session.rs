//! Connections for operations: how they are made, lent, and given up; and what can go wrong with them.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task;
use std::task::Context;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::error::{Severity, SqlState};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, CancelToken, Client, Config, Row, Socket};

use super::pool::{AnyPool, PostgresClient};
use crate::hub::Hub;
use crate::store::StoreError;

/// The connections of a store.
pub(super) struct Shared {
    /// The statement that makes the table.
    pub(super) table: String,
    pub(super) config: Config,
    pub(super) connect: Arc<dyn Connect>,
    /// Where clients for operations come from, if not from here.
    pub(super) pool: Option<Arc<dyn AnyPool>>,
    pub(super) sessions: Mutex<Sessions>,
    /// A session has come back, or ended.
    pub(super) returned: Notify,
    pub(super) hub: Arc<Hub>,
}

#[derive(Default)]
pub(super) struct Sessions {
    idle: Vec<Session>,
    /// Idle or not.
    count: usize,
}

/// A connection. Dropped, it says good-bye to the server, or goes back to its pool.
pub(super) enum Session {
    Own { client: Client, driver: AbortHandle },
    Lent(PostgresClient),
}

impl Session {
    fn client(&self) -> &Client {
        match self {
            Self::Own { client, .. } => client,
            Self::Lent(lent) => lent.client(),
        }
    }
}

/// A session that is used. If it is dropped before it was brought back, the connection is cut off: what is still to come through
/// it is not known.
pub(super) struct Used<'a> {
    shared: &'a Shared,
    session: Option<Session>,
    is_new: bool,
}

/// The end of an operation.
#[derive(Clone, Copy)]
pub(super) struct Limit {
    pub(super) timeout: Duration,
    pub(super) deadline: Instant,
}

/// A connection's messages; asking for them is what drives it.
pub(super) type Messages = Box<
    dyn FnMut(&mut Context<'_>) -> task::Poll<Option<Result<AsyncMessage, tokio_postgres::Error>>> + Send,
>;

pub(super) type Connecting<R> = Pin<Box<dyn Future<Output = Result<R, tokio_postgres::Error>> + Send>>;

/// How connections are made, with or without encryption.
pub(super) trait Connect: Send + Sync {
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

impl Shared {
    /// How many connections for operations there may be.
    pub(super) const MOST: usize = 4;
    /// How long an operation waits for one that is there before it makes another.
    pub(super) const PATIENCE: Duration = Duration::from_millis(50);

    pub(super) fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn query(
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
    pub(super) async fn query_once(
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
            let Some(session) = &used.session else { unreachable!("taken at the end only") };
            let client = session.client();
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

    pub(super) async fn use_session(&self) -> Result<Used<'_>, Failure> {
        if let Some(pool) = &self.pool {
            let lent = pool.lend().await.map_err(Failure::Pool)?;
            return Ok(Used { shared: self, session: Some(Session::Lent(lent)), is_new: false });
        }
        let mut waited = false;
        loop {
            let returned = self.returned.notified();
            {
                let mut sessions = self.lock();
                while let Some(session) = sessions.idle.pop() {
                    if !session.client().is_closed() {
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
        used.session = Some(Session::Own { client, driver: driver.abort_handle() });
        Ok(used)
    }
}

impl Used<'_> {
    pub(super) fn bring_back(mut self) {
        match self.session.take() {
            Some(Session::Lent(lent)) => drop(lent),
            Some(session) => {
                self.shared.lock().idle.push(session);
                self.shared.returned.notify_one();
            }
            None => return,
        }
        std::mem::forget(self);
    }
}

impl Drop for Used<'_> {
    fn drop(&mut self) {
        match self.session.take() {
            Some(Session::Lent(lent)) => return lent.discard(),
            Some(Session::Own { driver, .. }) => driver.abort(),
            None => {}
        }
        self.shared.lock().count -= 1;
        self.shared.returned.notify_one();
    }
}

/// Whether the connection is of no use any more: it broke, or the server has said so before it closed it.
pub(super) fn has_ended(error: &tokio_postgres::Error) -> bool {
    error
        .as_db_error()
        .is_none_or(|said| matches!(said.parsed_severity(), Some(Severity::Fatal | Severity::Panic)))
}

#[derive(Debug)]
pub(super) enum Failure {
    Server(tokio_postgres::Error),
    /// Nothing came in time, not even when the server was asked to stop.
    Slow(Duration),
    /// The server works, and has stopped what was not done in time.
    Busy(Duration),
    Standby,
    /// The program's pool has lent no client.
    Pool(StoreError),
}

impl Failure {
    /// Whether another connection may do better.
    pub(super) fn is_of_connection(&self) -> bool {
        match self {
            Self::Server(error) => {
                has_ended(error) || error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION)
            }
            Self::Slow(_) | Self::Standby => true,
            Self::Busy(_) | Self::Pool(_) => false,
        }
    }

    pub(super) fn is_standby(&self) -> bool {
        match self {
            Self::Server(error) => error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION),
            Self::Standby => true,
            Self::Slow(_) | Self::Busy(_) | Self::Pool(_) => false,
        }
    }

    pub(super) fn into_error(self) -> StoreError {
        match self {
            Self::Server(error) => StoreError::new(ServerError(error)),
            Self::Slow(timeout) => StoreError::slow(timeout),
            Self::Busy(timeout) => StoreError::busy(format!(
                "the server was still waiting when the timeout of {timeout:?} had passed, and was told to stop: a \
                 transaction of others holds the row"
            )),
            Self::Pool(error) => error,
            Self::Standby => StoreError::new("the server is a standby, which takes no changes"),
        }
    }
}

/// With the server's own words: the error of the client displays as "db error".
#[derive(Debug)]
pub(super) struct ServerError(tokio_postgres::Error);

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
