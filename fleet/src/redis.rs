//! A store in Redis.
//!
//! Each name is one hash, `dogpile:<name>`, so every operation touches one key and works in a cluster as well. Each
//! operation is one script, which Redis runs as a whole, and which asks Redis itself for the time.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use dogpile::Clock;
use futures_util::StreamExt;
use redis::aio::{MultiplexedConnection, PubSubSink, PubSubStream};
use redis::{
    AsyncConnectionConfig, Client, ErrorKind, RedisError, Script, ScriptInvocation, ServerErrorKind,
};
use tokio::time::{Instant, timeout_at};

use crate::breaker::Breaker;
use crate::draw;
use crate::hub::{Hub, Listener, Settings, Source};
use crate::io::{self, PerProcess};
use crate::rules::micros;
use crate::store::{
    Acquire, Current, Epoch, Fence, Hint, Invalidation, Poll, Publication, Publish, RefreshStore, Request,
    StoreError, Subscription, Token, Value, Version,
};

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
/// In a cluster the address has to be that of the node which has the key `dogpile:<name>`: redirections are not followed.
///
/// For encrypted connections give the `redis` crate one of its TLS features for tokio, such as `tokio-native-tls-comp`, and use
/// `rediss://` or [`with_client`](RedisStore::with_client).
///
/// # Rights
///
/// A user needs `+eval +evalsha +script|load +hmget +hset +hdel +hexists +hget +del +pexpire +pttl +time +ping` on the
/// keys `dogpile:*`, and for
/// hints `+publish +subscribe +unsubscribe` on the channels `dogpile:*`. Without the latter the nodes poll.
/// [`FleetCell::check`](crate::FleetCell::check) tells what is missing.
pub struct RedisStore {
    client: Client,
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

/// The connections of a store.
struct Shared {
    client: Client,
    slot: tokio::sync::Mutex<Slot>,
    hub: Arc<Hub>,
}

#[derive(Default)]
struct Slot {
    connection: Option<MultiplexedConnection>,
    /// Which one it is, so that an operation gives up the one that it has used, and not its successor.
    number: u64,
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
        Self {
            client,
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
            let (client, slot) = (self.client.clone(), tokio::sync::Mutex::default());
            Arc::new(Shared { client, slot, hub: Hub::new() })
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
}

impl Shared {
    /// Runs a script; once more on a new connection if the one that was there turns out to be of no use.
    async fn invoke(
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
    async fn connection(&self) -> Result<(MultiplexedConnection, u64, bool), RedisError> {
        // Held while connecting: all operations wait for the same connection, each until its own deadline.
        let mut slot = self.slot.lock().await;
        if let Some(connection) = &slot.connection {
            return Ok((connection.clone(), slot.number, false));
        }
        let connection = self.client.get_multiplexed_async_connection_with_config(&unbounded()).await?;
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

/// What all scripts begin with: the time, the entry, and how to describe it.
const PRELUDE: &str = r"
local key, now = KEYS[1], tonumber(ARGV[1])
if now < 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
-- Lua's own way to write numbers loses digits.
local function whole(number) return string.format('%.0f', number) end
local fields = redis.pcall('HMGET', key, 'incarnation', 'epoch', 'fence', 'version', 'began', 'soft', 'hard',
  'lease', 'retry', 'failures', 'cleared', 'elected')
if fields.err and not string.find(fields.err, 'WRONGTYPE') then return fields end
-- A field that is no number, or a key that is no hash: the entry counts as lost, and the next change makes a new one.
local damaged = fields.err ~= nil
for index = 1, 12 do
  local field = fields[index]
  if field and (not string.match(field, '^%d+$') or #field > (index == 1 and 20 or 16)) then damaged = true end
end
if damaged then fields = {} end
local function heal() if damaged then redis.call('DEL', key) end end
local incarnation = fields[1] or '0'
local function number(index) return tonumber(fields[index] or '0') end
local epoch, fence, version = number(2), number(3), number(4)
local began, soft, hard, lease, retry, failures = number(5), number(6), number(7), number(8), number(9), number(10)
local cleared, elected = fields[11] or '0', number(12)
local has_value = not damaged and redis.call('HEXISTS', key, 'payload') == 1
local function left(till) return whole(math.max(till - now, 0)) end
local function gone_back(known, known_version)
  return known == incarnation and incarnation ~= '0' and tonumber(known_version) > version
end
local function current(reply, known, known_version)
  if not has_value then
    table.insert(reply, 'nothing') table.insert(reply, cleared)
  elseif known == incarnation and tonumber(known_version) == version then
    table.insert(reply, 'same') table.insert(reply, left(soft)) table.insert(reply, left(hard))
  elseif gone_back(known, known_version) then
    table.insert(reply, 'nothing') table.insert(reply, '0')
  else
    local value = redis.call('HMGET', key, 'payload', 'tag')
    for _, part in ipairs({'newer', incarnation, whole(version), value[1], value[2] and '1' or '0', value[2] or '',
        whole(math.max(now - began, 0)), left(soft), left(hard)}) do
      table.insert(reply, part)
    end
  end
  return reply
end
local function refusal(of_incarnation, of_fence, of_epoch)
  if incarnation == '0' or of_incarnation ~= incarnation or tonumber(of_epoch) ~= epoch then return {'invalidated'} end
  if tonumber(of_fence) ~= fence then return {'superseded'} end
end
local function is_newest(of_incarnation, of_fence)
  return incarnation ~= '0' and of_incarnation == incarnation and tonumber(of_fence) == fence
end
-- An entry that is not used any more goes by itself.
local function keep()
  if tonumber(ARGV[#ARGV]) > 0 then redis.call('PEXPIRE', key, ARGV[#ARGV]) end
end
-- Without the right to publish the change counts all the same: the nodes poll.
local function tell()
  keep()
  redis.pcall('PUBLISH', key, '')
end
";

/// known incarnation, known version
///
/// It changes nothing, but it asks for the right to: a replica, which may be far behind, says that it is one.
const POLL: &str = r"
local deleted = redis.pcall('HDEL', key, '')
if type(deleted) == 'table' and deleted.err and string.find(deleted.err, 'READONLY') then
  return redis.error_reply('READONLY the server is a replica')
end
return current({incarnation, whole(epoch), left(lease), left(retry)}, ARGV[2], ARGV[3])
";

/// lease, known incarnation, known version, refused incarnation, refused version, a random number, seen incarnation, seen
/// epoch, seen version, ahead
const ACQUIRE: &str = r"
local known, known_version = ARGV[3], ARGV[4]
local seen_epoch, seen_version = tonumber(ARGV[9]), tonumber(ARGV[10])
local seen_back = ARGV[8] == incarnation and incarnation ~= '0' and (seen_epoch > epoch or seen_version > version)
if incarnation == '0' then
  heal()
  incarnation = ARGV[7]
  redis.call('HSET', key, 'incarnation', incarnation)
elseif gone_back(known, known_version) or seen_back then
  if gone_back(known, known_version) then version = tonumber(known_version) end
  if seen_back then epoch, version = math.max(epoch, seen_epoch), math.max(version, seen_version) end
  incarnation, epoch = ARGV[7], epoch + 1
  lease, retry, failures, cleared, has_value = 0, 0, 0, '0', false
  redis.call('DEL', key)
  redis.call('HSET', key, 'incarnation', incarnation, 'epoch', whole(epoch), 'fence', whole(fence),
    'version', whole(version))
end
local refused = has_value and ARGV[5] == incarnation and tonumber(ARGV[6]) == version
local fresh = has_value and soft > now + tonumber(ARGV[11]) and not gone_back(known, known_version)
if fresh and not refused then return current({'fresh'}, known, known_version) end
if lease > now then return current({'busy', left(lease)}, known, known_version) end
if retry > now then return current({'backoff', left(retry), incarnation, whole(epoch)}, known, known_version) end
fence = fence + 1
redis.call('HSET', key, 'fence', whole(fence), 'elected', whole(now), 'lease', whole(now + tonumber(ARGV[2])))
keep()
local tag = has_value and redis.call('HGET', key, 'tag')
return current({'won', incarnation, whole(fence), whole(epoch), tag and '1' or '0', tag or '', whole(failures)},
  known, known_version)
";

/// incarnation, fence, epoch, soft, hard, payload, has tag, tag
const PUBLISH: &str = r"
local refused = refusal(ARGV[2], ARGV[3], ARGV[4])
if refused then return refused end
version = version + 1
redis.call('HSET', key, 'version', whole(version), 'began', whole(elected), 'soft', whole(now + tonumber(ARGV[5])),
  'hard', whole(now + tonumber(ARGV[6])), 'payload', ARGV[7], 'lease', '0', 'retry', '0', 'failures', '0', 'cleared', '0')
if ARGV[8] == '1' then redis.call('HSET', key, 'tag', ARGV[9]) else redis.call('HDEL', key, 'tag') end
tell()
return {'stored', incarnation, whole(version)}
";

/// incarnation, fence, epoch, soft, hard
const UNCHANGED: &str = r"
local refused = refusal(ARGV[2], ARGV[3], ARGV[4])
if refused then return refused end
if not has_value then return {'invalidated'} end
redis.call('HSET', key, 'began', whole(elected), 'soft', whole(now + tonumber(ARGV[5])),
  'hard', whole(now + tonumber(ARGV[6])), 'lease', '0', 'retry', '0', 'failures', '0')
tell()
return {'stored', incarnation, whole(version)}
";

/// incarnation, fence, pause
const FAIL: &str = r"
if not is_newest(ARGV[2], ARGV[3]) then return {'0'} end
redis.call('HSET', key, 'lease', '0')
local pause = tonumber(ARGV[4])
if pause > 0 then redis.call('HSET', key, 'retry', whole(now + pause), 'failures', whole(failures + 1)) end
tell()
return {'1'}
";

/// incarnation, fence, epoch, lease
const RENEW: &str = r"
if not is_newest(ARGV[2], ARGV[3]) or tonumber(ARGV[4]) ~= epoch or lease == 0 then return {'0'} end
redis.call('HSET', key, 'lease', whole(now + tonumber(ARGV[5])))
keep()
return {'1'}
";

/// soft or hard, a random number
const INVALIDATE: &str = r"
if incarnation == '0' then
  heal()
  redis.call('HSET', key, 'incarnation', ARGV[3])
end
redis.call('HSET', key, 'epoch', whole(epoch + 1), 'lease', '0')
if ARGV[2] == 'hard' then
  redis.call('HDEL', key, 'payload', 'tag')
  redis.call('HSET', key, 'cleared', '1')
elseif has_value then
  redis.call('HSET', key, 'soft', whole(math.min(soft, now)))
end
tell()
return {'1'}
";

const DELETE: &str = r"
redis.call('DEL', key)
redis.pcall('PUBLISH', key, '')
return {'1'}
";

/// Uses each right that the others need, and leaves everything as it was.
const CHECK: &str = r"
local lives = redis.call('PTTL', key)
redis.call('HEXISTS', key, 'payload')
redis.call('HSET', key, 'check', '1')
redis.call('HGET', key, 'check')
if lives > 0 then redis.call('PEXPIRE', key, lives) elseif lives == -2 then keep() end
redis.call('HDEL', key, 'check')
redis.call('PUBLISH', key, '')
return {'1'}
";

/// The scripts, with their checksums.
struct Scripts {
    poll: Script,
    acquire: Script,
    publish: Script,
    unchanged: Script,
    fail: Script,
    renew: Script,
    invalidate: Script,
    check: Script,
    delete: Script,
}

static SCRIPTS: std::sync::LazyLock<Scripts> = std::sync::LazyLock::new(|| {
    let script = |rest: &str| Script::new(&[PRELUDE, rest].concat());
    Scripts {
        poll: script(POLL),
        acquire: script(ACQUIRE),
        publish: script(PUBLISH),
        unchanged: script(UNCHANGED),
        fail: script(FAIL),
        renew: script(RENEW),
        invalidate: script(INVALIDATE),
        check: script(CHECK),
        delete: script(DELETE),
    }
});

/// A version, or none, as arguments.
fn version_arguments(arguments: &mut ScriptInvocation<'_>, version: Option<Version>) {
    match version {
        Some(version) => arguments.arg(version.incarnation).arg(version.number),
        None => arguments.arg("").arg(0),
    };
}

fn token_arguments(arguments: &mut ScriptInvocation<'_>, token: &Token) {
    arguments.arg(token.fence.incarnation).arg(token.fence.number).arg(token.epoch);
}

impl RefreshStore for RedisStore {
    fn poll(&self, name: &str, known: Option<Version>) -> Result<Poll, StoreError> {
        let mut reply = self.run(name, &SCRIPTS.poll, |arguments| version_arguments(arguments, known))?;
        let epoch = Epoch { incarnation: reply.number()?, number: reply.number()? };
        let (lease_left, retry_left) = (reply.duration()?, reply.duration()?);
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
        let reply = self.run(name, &SCRIPTS.publish, |arguments| {
            token_arguments(arguments, token);
            arguments.arg(micros(soft)).arg(micros(hard.max(soft))).arg(payload);
            arguments.arg(u32::from(tag.is_some())).arg(tag.unwrap_or_default());
        })?;
        reply.published()
    }

    fn unchanged(
        &self,
        name: &str,
        token: &Token,
        soft: Duration,
        hard: Duration,
    ) -> Result<Publish, StoreError> {
        let reply = self.run(name, &SCRIPTS.unchanged, |arguments| {
            token_arguments(arguments, token);
            arguments.arg(micros(soft)).arg(micros(hard.max(soft)));
        })?;
        reply.published()
    }

    fn fail(&self, name: &str, token: &Token, pause: Duration) -> Result<bool, StoreError> {
        let mut reply = self.run(name, &SCRIPTS.fail, |arguments| {
            arguments.arg(token.fence.incarnation).arg(token.fence.number).arg(micros(pause));
        })?;
        Ok(reply.number()? == 1)
    }

    fn renew(&self, name: &str, token: &Token, lease: Duration) -> Result<bool, StoreError> {
        let mut reply = self.run(name, &SCRIPTS.renew, |arguments| {
            token_arguments(arguments, token);
            arguments.arg(micros(lease));
        })?;
        Ok(reply.number()? == 1)
    }

    fn invalidate(&self, name: &str, how: Invalidation) -> Result<(), StoreError> {
        let draw = draw::incarnation();
        let how = if how == Invalidation::Hard { "hard" } else { "soft" };
        self.run(name, &SCRIPTS.invalidate, |arguments| {
            arguments.arg(how).arg(draw);
        })?;
        Ok(())
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.run(name, &SCRIPTS.delete, |_| ()).map(drop)
    }

    fn subscribe(&self, name: &str, hint: Hint) -> Option<Subscription> {
        let settings = Settings { timeout: self.timeout, spread: self.spread };
        let (client, prefix) = (self.client.clone(), self.prefix.clone());
        self.shared().hub.subscribe(move || Channels { client, prefix }, settings, name, hint)
    }

    fn breaker(&self) -> Option<&Breaker> {
        Some(&self.breaker)
    }

    fn check(&self, name: &str) -> Result<(), StoreError> {
        self.run(name, &SCRIPTS.check, |_| ())?;
        self.poll(name, None).map(drop)
    }
}

/// Where hints come from.
struct Channels {
    client: Client,
    prefix: String,
}

/// The connection for hints.
struct Subscriber {
    prefix: String,
    sink: PubSubSink,
    stream: PubSubStream,
}

impl Source for Channels {
    type Listener = Subscriber;

    async fn connect(&self) -> Result<Subscriber, StoreError> {
        let messages = self.client.get_async_pubsub().await.map_err(StoreError::new)?;
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

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// What a script returns: a list of strings.
struct Reply(std::vec::IntoIter<Vec<u8>>);

impl Reply {
    fn strange() -> StoreError {
        StoreError::new("the script returned something that it never returns")
    }

    fn bytes(&mut self) -> Result<Vec<u8>, StoreError> {
        self.0.next().ok_or_else(Self::strange)
    }

    fn word(&mut self) -> Result<String, StoreError> {
        String::from_utf8(self.bytes()?).map_err(|_| Self::strange())
    }

    fn number(&mut self) -> Result<u64, StoreError> {
        self.word()?.parse().map_err(|_| Self::strange())
    }

    fn duration(&mut self) -> Result<Duration, StoreError> {
        Ok(Duration::from_micros(self.number()?))
    }

    fn tag(&mut self) -> Result<Option<String>, StoreError> {
        let is_there = self.number()? == 1;
        // Of bytes that are no text there is nothing to be made by any builder; the next publication replaces them.
        let tag = String::from_utf8_lossy(&self.bytes()?).into_owned();
        Ok(is_there.then_some(tag))
    }

    fn current(mut self) -> Result<Current, StoreError> {
        match &*self.word()? {
            "nothing" => Ok(Current::Nothing { cleared: self.number()? == 1 }),
            "same" => Ok(Current::Same { soft_left: self.duration()?, hard_left: self.duration()? }),
            "newer" => Ok(Current::Newer(Value {
                version: Version { incarnation: self.number()?, number: self.number()? },
                payload: self.bytes()?,
                tag: self.tag()?,
                age: self.duration()?,
                soft_left: self.duration()?,
                hard_left: self.duration()?,
            })),
            _ => Err(Self::strange()),
        }
    }

    fn published(mut self) -> Result<Publish, StoreError> {
        match &*self.word()? {
            "stored" => Ok(Publish::Stored(Version { incarnation: self.number()?, number: self.number()? })),
            "superseded" => Ok(Publish::Superseded),
            "invalidated" => Ok(Publish::Invalidated),
            _ => Err(Self::strange()),
        }
    }
}
