//! Connections: how they are made, shared and given up.

use std::fmt;
use std::sync::Arc;

use futures_util::StreamExt;
use redis::aio::{ConnectionLike, PubSub, PubSubSink, PubSubStream};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, Pipeline, RedisError, RedisFuture, ScriptInvocation,
    ServerErrorKind,
};
use tokio::time::{Instant, timeout_at};

use crate::hub::{Hub, Listener, Source};
use crate::store::StoreError;

/// How a [`RedisStore`](crate::RedisStore) reaches the server that takes writes, with a client of the user's own. Given to
/// [`RedisStore::with_connect`](crate::RedisStore::with_connect).
///
/// Both methods run on the thread `dogpile-fleet-io`, within the store's timeout.
///
/// # Examples
///
/// A program that has a `ConnectionManager` already, on a runtime of its own, lends it to the store, which opens no other one for
/// operations. (A `MultiplexedConnection` does not connect again when it has broken: a store that is lent one is down from then on.)
///
/// ```
/// use dogpile_fleet::{RedisConnect, RedisConnection, RedisStore};
/// use redis::RedisFuture;
/// use redis::aio::{ConnectionManager, PubSub};
///
/// struct Lent {
///     manager: ConnectionManager,
///     client: redis::Client,
/// }
///
/// impl RedisConnect for Lent {
///     fn connect(&self) -> RedisFuture<'_, RedisConnection> {
///         let connection = RedisConnection::new(self.manager.clone());
///         Box::pin(async { Ok(connection) })
///     }
///
///     fn listen(&self) -> RedisFuture<'_, PubSub> {
///         Box::pin(self.client.get_async_pubsub())
///     }
/// }
///
/// fn store(manager: ConnectionManager, client: redis::Client) -> RedisStore {
///     RedisStore::with_connect(Lent { manager, client })
/// }
/// # let _ = store;
/// ```
pub trait RedisConnect: Send + Sync + 'static {
    /// A connection for operations, which all cells of the store share. Called for the first operation, and for the next one
    /// after a connection has turned out to be of no use: broken, late, or to a server that is a replica by now.
    fn connect(&self) -> RedisFuture<'_, RedisConnection>;

    /// A connection for hints. An error is no harm: the nodes poll.
    fn listen(&self) -> RedisFuture<'_, PubSub>;
}

/// A connection that can be shared: of `redis`, whatever its type.
pub struct RedisConnection(Box<dyn Shareable>);

impl RedisConnection {
    /// Wraps a connection whose clones use the same one.
    pub fn new(connection: impl ConnectionLike + Clone + Send + Sync + 'static) -> Self {
        Self(Box::new(connection))
    }
}

impl fmt::Debug for RedisConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConnection").finish_non_exhaustive()
    }
}

impl Clone for RedisConnection {
    fn clone(&self) -> Self {
        self.0.share()
    }
}

trait Shareable: ConnectionLike + Send + Sync {
    fn share(&self) -> RedisConnection;
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> Shareable for C {
    fn share(&self) -> RedisConnection {
        RedisConnection(Box::new(self.clone()))
    }
}

impl ConnectionLike for RedisConnection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, redis::Value> {
        self.0.req_packed_command(command)
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<redis::Value>> {
        self.0.req_packed_commands(pipeline, offset, count)
    }

    fn get_db(&self) -> i64 {
        self.0.get_db()
    }
}

impl RedisConnect for Client {
    fn connect(&self) -> RedisFuture<'_, RedisConnection> {
        Box::pin(async {
            Ok(RedisConnection::new(self.get_multiplexed_async_connection_with_config(&unbounded()).await?))
        })
    }

    fn listen(&self) -> RedisFuture<'_, PubSub> {
        Box::pin(self.get_async_pubsub())
    }
}

/// Asks the sentinels for the server at each connection.
#[cfg(feature = "redis-sentinel")]
impl RedisConnect for tokio::sync::Mutex<redis::sentinel::SentinelClient> {
    fn connect(&self) -> RedisFuture<'_, RedisConnection> {
        Box::pin(async {
            let server = self.lock().await.async_get_client().await?;
            Ok(RedisConnection::new(server.get_multiplexed_async_connection_with_config(&unbounded()).await?))
        })
    }

    fn listen(&self) -> RedisFuture<'_, PubSub> {
        Box::pin(async {
            let server = self.lock().await.async_get_client().await?;
            server.get_async_pubsub().await
        })
    }
}

/// The nodes of a cluster. A change is told to all of them, so that any of them will do for hints.
#[cfg(feature = "redis-cluster")]
pub(super) struct Cluster {
    pub(super) client: redis::cluster::ClusterClient,
    pub(super) nodes: Vec<Client>,
}

#[cfg(feature = "redis-cluster")]
impl RedisConnect for Cluster {
    fn connect(&self) -> RedisFuture<'_, RedisConnection> {
        Box::pin(async { Ok(RedisConnection::new(self.client.get_async_connection().await?)) })
    }

    fn listen(&self) -> RedisFuture<'_, PubSub> {
        Box::pin(async {
            let mut outcome = Err((ErrorKind::InvalidClientConfig, "a cluster without a node").into());
            for node in &self.nodes {
                outcome = node.get_async_pubsub().await;
                if outcome.is_ok() {
                    break;
                }
            }
            outcome
        })
    }
}

/// The connections of a store.
pub(super) struct Shared {
    pub(super) connect: Arc<dyn RedisConnect>,
    pub(super) slot: tokio::sync::Mutex<Slot>,
    pub(super) hub: Arc<Hub>,
}

#[derive(Default)]
pub(super) struct Slot {
    connection: Option<RedisConnection>,
    /// Which one it is, so that an operation gives up the one that it has used, and not its successor.
    number: u64,
}

impl Shared {
    /// Runs a script; once more on a new connection if the one that was there turns out to be of no use.
    pub(super) async fn invoke(
        &self,
        invocation: &ScriptInvocation<'_>,
        deadline: Instant,
    ) -> Result<Vec<Vec<u8>>, RedisError> {
        for attempt in 0.. {
            let (mut connection, number, is_new) = self.connection().await?;
            let Ok(answer) = timeout_at(deadline, invocation.invoke_async(&mut connection)).await else {
                // Whether the server will ever answer on it nobody knows: the other end may be gone without a word.
                self.give_up(number).await;
                // The deadline of the caller has passed as well.
                return std::future::pending().await;
            };
            let Err(error) = &answer else { return answer };
            if is_of_no_use(error) {
                self.give_up(number).await;
                if is_replica(error) {
                    self.hub.reconnect();
                }
                if !is_new && attempt == 0 {
                    continue;
                }
            }
            return answer;
        }
        unreachable!("the second attempt returns")
    }

    /// The connection, its number, and whether it has just been made.
    async fn connection(&self) -> Result<(RedisConnection, u64, bool), RedisError> {
        // Held while connecting: all operations wait for the same connection, each until its own deadline.
        let mut slot = self.slot.lock().await;
        if let Some(connection) = &slot.connection {
            return Ok((connection.clone(), slot.number, false));
        }
        let connection = self.connect.connect().await?;
        slot.number += 1;
        slot.connection = Some(connection.clone());
        Ok((connection, slot.number, true))
    }

    async fn give_up(&self, number: u64) {
        let mut slot = self.slot.lock().await;
        if slot.number == number {
            slot.connection = None;
        }
    }
}

/// The deadline is the operation's, not the step's.
fn unbounded() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None)
}

/// Whether another connection may do better. What a server says about the request itself leaves the connection as it is.
fn is_of_no_use(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Server(kind) => matches!(
            kind,
            ServerErrorKind::ReadOnly
                | ServerErrorKind::Moved
                | ServerErrorKind::Ask
                | ServerErrorKind::BusyLoading
                | ServerErrorKind::MasterDown
                | ServerErrorKind::ClusterDown
        ),
        // `NOAUTH` and `WRONGPASS`, after the rights were changed.
        ErrorKind::Extension => matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "UNBLOCKED")),
        ErrorKind::UnexpectedReturnType => false,
        _ => true,
    }
}

fn is_replica(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown))
}

/// Where hints come from.
pub(super) struct Channels {
    pub(super) connect: Arc<dyn RedisConnect>,
    pub(super) prefix: String,
}

/// The connection for hints.
pub(super) struct Subscriber {
    prefix: String,
    sink: PubSubSink,
    stream: PubSubStream,
}

impl Source for Channels {
    type Listener = Subscriber;

    async fn connect(&self) -> Result<Subscriber, StoreError> {
        let messages = self.connect.listen().await.map_err(StoreError::new)?;
        let (sink, stream) = messages.split();
        Ok(Subscriber { prefix: self.prefix.clone(), sink, stream })
    }
}

impl Listener for Subscriber {
    async fn listen(&mut self, name: &str) -> Result<(), StoreError> {
        self.sink.subscribe(format!("{}{name}", self.prefix)).await.map_err(StoreError::new)
    }

    async fn unlisten(&mut self, name: &str) -> Result<(), StoreError> {
        self.sink.unsubscribe(format!("{}{name}", self.prefix)).await.map_err(StoreError::new)
    }

    async fn next(&mut self) -> Result<String, StoreError> {
        let message = self.stream.next().await.ok_or_else(|| StoreError::new("the connection has ended"))?;
        Ok(message.get_channel_name().strip_prefix(&self.prefix).unwrap_or_default().to_owned())
    }

    async fn ping(&mut self) -> Result<(), StoreError> {
        self.sink.ping::<redis::Value>().await.map(drop).map_err(StoreError::new)
    }
}
