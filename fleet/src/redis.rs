//! A store in Redis.
//!
//! Each name is one hash, `dogpile:<name>`, so every operation touches one key and works in a cluster as well. Each
//! operation is one script, which Redis runs as a whole, and which asks Redis itself for the time.

mod connect;
mod reply;
mod scripts;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use dogpile::Clock;
use redis::{Client, Script, ScriptInvocation};
use tokio::time::timeout_at;

use crate::breaker::Breaker;
use crate::draw;
use crate::hub::{Hub, Settings};
use crate::io::{self, PerProcess};
use crate::rules::micros;
use crate::store::{
    Acquire, Epoch, Fence, Hint, Invalidation, Poll, Publication, Publish, RefreshStore, Request, StoreError,
    Subscription, Token, Version,
};
use connect::{Channels, Shared};
use reply::Reply;
use scripts::{SCRIPTS, token_arguments, version_arguments};

pub use connect::{RedisConnect, RedisConnection};

/// For how long nodes poll as without hints after one was refused. (The scripts have it in microseconds.)
const UNHINTED: Duration = Duration::from_secs(3600);

/// A [`RefreshStore`] in Redis, version 5 or later.
///
/// *Efficiency-grade.* As long as the server keeps its data the rules are kept. But Redis replicates asynchronously, and
/// flushes its log to the disk once a second at best: what it acknowledged last may be lost when a replica takes over, or
/// when a snapshot is restored. A loss of the whole entry is noticed by its incarnation; a node that has seen a later epoch
/// or version notices that the entry has gone back, and begins a new incarnation. What no living node has seen is lost.
///
/// Meant for values up to some hundred kilobytes: a script that copies a value keeps all other clients of the server
/// waiting. The server should not evict the keys (`maxmemory-policy noeviction` or `volatile-ttl`); if it does, the value
/// is rebuilt.
///
/// # Connections
///
/// Two for each store, whatever the number of cells that use it: one for operations, which all cells share at the same
/// time, and one for hints. So share the store, by an [`Arc`], among the cells of a process. Nothing is connected until the
/// first operation. A connection is given up, and made again by the next operation, when it breaks, when an answer is not
/// complete in time, and when the server says that it is not the one to talk to: a replica (`READONLY`, which is asked for at
/// each poll too), loading, `MOVED`, or not signed in.
///
/// For Sentinel there is `with_sentinel` (feature `redis-sentinel`), for clusters `cluster` (feature `redis-cluster`), for clients
/// of the user's own [`with_connect`](RedisStore::with_connect). Valkey is as good as Redis.
///
/// For encrypted connections give the `redis` crate one of its TLS features for tokio, such as `tokio-native-tls-comp`, and use
/// `rediss://` or [`with_client`](RedisStore::with_client).
///
/// # Rights
///
/// A user needs `+eval +evalsha +script|load +hmget +hset +hdel +hexists +hget +del +pexpire +pttl +time +ping` on the keys
/// `dogpile:*`, and for hints `+publish +subscribe +unsubscribe` on the channels `dogpile:*`. Without the latter the nodes poll.
/// [`FleetCell::check`](crate::FleetCell::check) tells what is missing. A hint that is refused is no failed operation: it is reported
/// once by each cell that made such a change or looks after its value, and by each [`FleetKeys`](crate::FleetKeys) that made one, to
/// [`on_error`](crate::FleetCell::on_error) and in [`hints_refused`](crate::FleetStats::hints_refused), and for an hour after it the
/// cells of the process poll as without hints. Other processes do so from their next look on. Where a user may not listen for hints,
/// that is reported in the same way, by the cells of that process.
pub struct RedisStore {
    connect: Arc<dyn RedisConnect>,
    timeout: Duration,
    spread: Duration,
    prefix: String,
    largest: usize,
    unused: Option<Duration>,
    shared: PerProcess<Arc<Shared>>,
    breaker: Breaker,
    /// For tests; else the server's.
    clock: Option<Box<dyn Clock>>,
}

impl RedisStore {
    /// A store at an address such as `redis://127.0.0.1:6379/0`. Does not connect yet.
    pub fn new(address: &str) -> Result<Self, StoreError> {
        Ok(Self::with_client(Client::open(address).map_err(StoreError::new)?))
    }

    /// A store with a client of the user's own: with certificates, with a password from elsewhere. Does not connect yet.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::RedisStore;
    ///
    /// let client = redis::Client::open("redis://cache.example/")?; // or `redis::Client::build_with_tls`
    /// let store = RedisStore::with_client(client);
    /// # Ok::<(), redis::RedisError>(())
    /// ```
    #[must_use]
    pub fn with_client(client: Client) -> Self {
        Self::with_connect(client)
    }

    /// A store behind Redis Sentinel: at each connection the sentinels are asked for the server that takes writes, so that a
    /// fail-over is one reconnection. The client has to be one for the master. Does not connect yet.
    ///
    /// A sentinel that does not answer costs the `redis` crate's own timeout, of a second, before the next one is asked; the
    /// [timeout](RedisStore::timeout) should allow for that.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::RedisStore;
    /// use redis::sentinel::{SentinelClient, SentinelServerType};
    ///
    /// let sentinels = vec!["redis://sentinel-1.example:26379/", "redis://sentinel-2.example:26379/"];
    /// let client = SentinelClient::build(sentinels, "mymaster".into(), None, SentinelServerType::Master)?;
    /// let store = RedisStore::with_sentinel(client);
    /// # Ok::<(), redis::RedisError>(())
    /// ```
    #[cfg(feature = "redis-sentinel")]
    #[must_use]
    pub fn with_sentinel(client: redis::sentinel::SentinelClient) -> Self {
        Self::with_connect(tokio::sync::Mutex::new(client))
    }

    /// A store in a Redis cluster, of which `addresses` are some nodes. Names are spread over its nodes, redirections are
    /// followed, and a fail-over within the cluster is found out from the others. Does not connect yet.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::RedisStore;
    ///
    /// let store = RedisStore::cluster(["redis://node-1.example/", "redis://node-2.example/"])?;
    /// # Ok::<(), dogpile_fleet::StoreError>(())
    /// ```
    #[cfg(feature = "redis-cluster")]
    pub fn cluster<A: AsRef<str>>(addresses: impl IntoIterator<Item = A>) -> Result<Self, StoreError> {
        let nodes: Result<Vec<Client>, _> =
            addresses.into_iter().map(|address| Client::open(address.as_ref())).collect();
        let nodes = nodes.map_err(StoreError::new)?;
        let addresses = nodes.iter().map(|node| node.get_connection_info().clone());
        // The deadline is the operation's.
        let client = redis::cluster::ClusterClientBuilder::new(addresses).response_timeout(crate::LONGEST);
        Ok(Self::with_connect(connect::Cluster { client: client.build().map_err(StoreError::new)?, nodes }))
    }

    /// A store with connections of the user's own making. Does not connect yet.
    ///
    /// # Examples
    ///
    /// See [`RedisConnect`].
    #[must_use]
    pub fn with_connect(connect: impl RedisConnect) -> Self {
        Self {
            connect: Arc::new(connect),
            timeout: Duration::from_secs(1),
            spread: Duration::from_millis(50),
            prefix: "dogpile:".to_owned(),
            largest: 64 << 20,
            unused: Some(Duration::from_secs(30 * 24 * 3600)),
            shared: PerProcess::new(),
            breaker: Breaker::new(),
            clock: None,
        }
    }

    /// How long an operation may take as a whole: name resolution, connecting, signing in, and the last byte of the answer.
    /// Default: a second.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// A hint is handed to the cell after a random part of `spread`, so that not all nodes of a large fleet ask at the same
    /// instant. Default: 50 ms.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::RedisStore;
    /// use std::time::Duration;
    ///
    /// let store = RedisStore::new("redis://cache.example/")?.spread_hints(Duration::from_millis(500));
    /// # Ok::<(), dogpile_fleet::StoreError>(())
    /// ```
    #[must_use]
    pub fn spread_hints(mut self, spread: Duration) -> Self {
        self.spread = spread;
        self
    }

    /// What stands before the name in the keys and channels. Default: `dogpile:`.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::RedisStore;
    ///
    /// let store = RedisStore::new("redis://cache.example/")?.key_prefix("shop:fleet:");
    /// # Ok::<(), dogpile_fleet::StoreError>(())
    /// ```
    #[must_use]
    pub fn key_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// The largest payload that is published, in bytes; a larger one is an error, and the node keeps the value for itself.
    /// Default: 64 MiB.
    #[must_use]
    pub fn largest_payload(mut self, bytes: usize) -> Self {
        self.largest = bytes;
        self
    }

    /// Has the server remove the entry of a name when no node has built, failed, or invalidated for so long: the key has a time to
    /// live, which each of these sets anew. `None`: keys stay for ever. Default: 30 days.
    ///
    /// For a node that comes later the entry is lost: what the node has is stale, and is built once more. So it should be several
    /// times as long as the policy's ttl, or values that are still fresh are built again at that pace.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::RedisStore;
    /// use std::time::Duration;
    ///
    /// let store = RedisStore::new("redis://cache.example/")?.expire_unused(Some(Duration::from_secs(24 * 3600)));
    /// # Ok::<(), dogpile_fleet::StoreError>(())
    /// ```
    #[must_use]
    pub fn expire_unused(mut self, after: Option<Duration>) -> Self {
        self.unused = after;
        self
    }

    /// Goes by a clock of the client's instead of the server's: for tests, in which all clients share it.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Clock + 'static) -> Self {
        self.clock = Some(Box::new(clock));
        self
    }

    /// How often the connection for hints has been attempted in this process.
    #[must_use]
    pub fn hint_connection_attempts(&self) -> u64 {
        self.shared().hub.attempts()
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn shared(&self) -> Arc<Shared> {
        self.shared.get(|| {
            let (connect, slot) = (Arc::clone(&self.connect), tokio::sync::Mutex::default());
            Arc::new(Shared { connect, slot, hub: Hub::new() })
        })
    }

    fn run(
        &self,
        name: &str,
        script: &'static Script,
        arguments: impl Fn(&mut ScriptInvocation<'_>),
    ) -> Result<Reply, StoreError> {
        let mut invocation = script.prepare_invoke();
        // Below zero: the server's time.
        let now = self.clock.as_ref().map_or(-1, |clock| clock.now().as_nanos().cast_signed() / 1000);
        invocation.key(self.key(name)).arg(now);
        arguments(&mut invocation);
        // Zero: never. A part of a millisecond is one.
        invocation.arg(self.unused.map_or(0, |unused| micros(unused).div_ceil(1000).max(1)));
        let (shared, timeout) = (self.shared(), self.timeout);
        let strings = io::run(timeout, move |deadline| async move {
            let answer = timeout_at(deadline, shared.invoke(&invocation, deadline)).await;
            answer.map_err(|_| StoreError::slow(timeout))?.map_err(StoreError::new)
        })?;
        Ok(Reply(strings.into_iter()))
    }

    fn published(&self, reply: &mut Reply) -> Result<Publish, StoreError> {
        let answer = reply.published()?;
        if let Publish::Stored(_) = answer {
            self.told(reply)?;
        }
        Ok(answer)
    }

    /// A change has been made. What the server has said to the hint comes last.
    fn told(&self, reply: &mut Reply) -> Result<(), StoreError> {
        let refused = reply.word()?;
        if !refused.is_empty() {
            let reason =
                || StoreError::new(format!("hints cannot be published, so the nodes poll: {refused}"));
            self.shared().hub.is_silent(UNHINTED, reason);
        }
        Ok(())
    }
}

impl RefreshStore for RedisStore {
    fn poll(&self, name: &str, known: Option<Version>) -> Result<Poll, StoreError> {
        let mut reply = self.run(name, &SCRIPTS.poll, |arguments| version_arguments(arguments, known))?;
        let epoch = Epoch { incarnation: reply.number()?, number: reply.number()? };
        let (lease_left, retry_left, unhinted) = (reply.duration()?, reply.duration()?, reply.duration()?);
        if !unhinted.is_zero() {
            let reason = "the hints of another node are refused, so this one polls";
            self.shared().hub.is_silent(unhinted, || StoreError::new(reason));
        }
        Ok(Poll { epoch, lease_left, retry_left, current: reply.current()? })
    }

    fn acquire(&self, name: &str, request: &Request) -> Result<Acquire, StoreError> {
        let draw = draw::incarnation();
        let mut reply = self.run(name, &SCRIPTS.acquire, |arguments| {
            arguments.arg(micros(request.lease));
            version_arguments(arguments, request.known);
            version_arguments(arguments, request.refuse);
            arguments.arg(draw);
            match request.seen {
                Some(seen) => arguments.arg(seen.epoch.incarnation).arg(seen.epoch.number).arg(seen.version),
                None => arguments.arg("").arg(0).arg(0),
            };
            arguments.arg(micros(request.ahead));
        })?;
        match &*reply.word()? {
            "fresh" => Ok(Acquire::Fresh(reply.current()?)),
            "busy" => Ok(Acquire::Busy { left: reply.duration()?, current: reply.current()? }),
            "backoff" => {
                let left = reply.duration()?;
                let epoch = Epoch { incarnation: reply.number()?, number: reply.number()? };
                Ok(Acquire::Backoff { left, epoch, current: reply.current()? })
            }
            "won" => {
                let fence = Fence { incarnation: reply.number()?, number: reply.number()? };
                let token = Token { fence, epoch: reply.number()? };
                let tag = reply.tag()?;
                let failures = reply.number()?.try_into().unwrap_or(u32::MAX);
                Ok(Acquire::Won { token, tag, failures, current: reply.current()? })
            }
            _ => Err(Reply::strange()),
        }
    }

    fn publish(
        &self,
        name: &str,
        token: &Token,
        publication: &Publication<'_>,
    ) -> Result<Publish, StoreError> {
        let Publication { payload, tag, soft, hard } = *publication;
        crate::store::check_size(payload, self.largest)?;
        let mut reply = self.run(name, &SCRIPTS.publish, |arguments| {
            token_arguments(arguments, token);
            arguments.arg(micros(soft)).arg(micros(hard.max(soft))).arg(payload);
            arguments.arg(u32::from(tag.is_some())).arg(tag.unwrap_or_default());
        })?;
        self.published(&mut reply)
    }

    fn unchanged(
        &self,
        name: &str,
        token: &Token,
        soft: Duration,
        hard: Duration,
    ) -> Result<Publish, StoreError> {
        let mut reply = self.run(name, &SCRIPTS.unchanged, |arguments| {
            token_arguments(arguments, token);
            arguments.arg(micros(soft)).arg(micros(hard.max(soft)));
        })?;
        self.published(&mut reply)
    }

    fn fail(&self, name: &str, token: &Token, pause: Duration) -> Result<bool, StoreError> {
        let mut reply = self.run(name, &SCRIPTS.fail, |arguments| {
            arguments.arg(token.fence.incarnation).arg(token.fence.number).arg(micros(pause));
        })?;
        let is_heard = reply.number()? == 1;
        if is_heard {
            self.told(&mut reply)?;
        }
        Ok(is_heard)
    }

    fn renew(&self, name: &str, token: &Token, lease: Duration) -> Result<bool, StoreError> {
        let mut reply = self.run(name, &SCRIPTS.renew, |arguments| {
            token_arguments(arguments, token);
            arguments.arg(micros(lease));
        })?;
        Ok(reply.number()? == 1)
    }

    fn invalidate(&self, name: &str, how: Invalidation) -> Result<Epoch, StoreError> {
        let draw = draw::incarnation();
        let how = if how == Invalidation::Hard { "hard" } else { "soft" };
        let mut reply = self.run(name, &SCRIPTS.invalidate, |arguments| {
            arguments.arg(how).arg(draw);
        })?;
        let epoch = Epoch { incarnation: reply.number()?, number: reply.number()? };
        self.told(&mut reply)?;
        Ok(epoch)
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.told(&mut self.run(name, &SCRIPTS.delete, |_| ())?)
    }

    fn subscribe(&self, name: &str, hint: Hint) -> Option<Subscription> {
        let settings = Settings { timeout: self.timeout, spread: self.spread };
        let (connect, prefix) = (Arc::clone(&self.connect), self.prefix.clone());
        self.shared().hub.subscribe(move || Channels { connect, prefix }, settings, name, hint)
    }

    fn breaker(&self) -> Option<&Breaker> {
        Some(&self.breaker)
    }

    fn hints_refused(&self) -> Option<Arc<StoreError>> {
        self.shared().hub.refusal()
    }

    fn check(&self, name: &str) -> Result<(), StoreError> {
        self.run(name, &SCRIPTS.check, |_| ())?;
        let (connect, channel, timeout) = (Arc::clone(&self.connect), self.key(name), self.timeout);
        io::run(timeout, move |deadline| async move {
            let listens = async { connect.listen().await?.subscribe(channel).await };
            let answer = timeout_at(deadline, listens).await;
            answer.map_err(|_| StoreError::slow(timeout))?.map_err(StoreError::new)
        })?;
        self.poll(name, None).map(drop)
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}
