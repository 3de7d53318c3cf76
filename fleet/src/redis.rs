//! A store in Redis.
//!
//! Each name is one hash, `dogpile:<name>`, so every operation touches one key and works in a cluster as well. Each
//! operation is one script, which Redis runs as a whole, and which asks Redis itself for the time.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use dogpile::Clock;
use redis::{Client, Connection, ErrorKind, RedisError, Script, ScriptInvocation};

use crate::draw;
use crate::rules::micros;
use crate::store::{
    Acquire, Current, Epoch, Fence, Hint, Invalidation, Poll, Publication, Publish, RefreshStore, Request,
    StoreError, Subscription, Token, Value, Version,
};

/// A [`RefreshStore`] in Redis, version 5 or later.
///
/// *Efficiency-grade.* As long as the server keeps its data the rules are kept. But Redis replicates asynchronously, and
/// flushes its log to the disk once a second at best: what it acknowledged last may be lost when a replica takes over. A
/// loss of the whole entry is noticed by its incarnation; if only the last changes are lost, a node that knows a newer
/// version notices; but an invalidation that is lost without a trace is lost.
///
/// Meant for values up to some hundred kilobytes: a script that copies a value keeps all other clients of the server
/// waiting. The server should not evict the keys (`maxmemory-policy noeviction` or `volatile-*`); if it does, the value
/// is rebuilt.
///
/// In a cluster the address has to be that of the node which has the key `dogpile:<name>`: redirections are not followed.
///
/// No connection is made until the first operation, and a lost one is made again. For encrypted connections give the
/// `redis` crate one of its TLS features, and use `rediss://` or [`with_client`](RedisStore::with_client).
pub struct RedisStore {
    client: Client,
    timeout: Duration,
    connection: Mutex<Option<Connection>>,
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
        Self { client, timeout: Duration::from_secs(1), connection: Mutex::new(None), clock: None }
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

    fn key(name: &str) -> String {
        format!("dogpile:{name}")
    }

    fn run(
        &self,
        name: &str,
        script: &Script,
        arguments: impl Fn(&mut ScriptInvocation<'_>),
    ) -> Result<Reply, StoreError> {
        let mut invocation = script.prepare_invoke();
        // Below zero: the server's time.
        let now = self.clock.as_ref().map_or(-1, |clock| clock.now().as_nanos().cast_signed() / 1000);
        invocation.key(Self::key(name)).arg(now);
        arguments(&mut invocation);
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let reused = connection.is_some();
        let mut answer = self.invoke(&mut connection, &invocation);
        if reused
            && matches!(&answer, Err(error) if error.is_connection_dropped() || error.is_io_error() && !error.is_timeout())
        {
            // The server, or something on the way to it, has closed the connection while it was idle.
            answer = self.invoke(&mut connection, &invocation);
        }
        answer.map(|strings| Reply(strings.into_iter())).map_err(StoreError::new)
    }

    fn invoke(
        &self,
        slot: &mut Option<Connection>,
        invocation: &ScriptInvocation<'_>,
    ) -> Result<Vec<Vec<u8>>, RedisError> {
        // Taken out: after an error nobody knows what is still to come through it.
        let mut connection = match slot.take() {
            Some(connection) => connection,
            None => {
                let connection = self.client.get_connection_with_timeout(self.timeout)?;
                connection.set_read_timeout(Some(self.timeout))?;
                connection.set_write_timeout(Some(self.timeout))?;
                connection
            }
        };
        let answer = invocation.invoke(&mut connection);
        let keep = match &answer {
            Ok(_) => true,
            Err(error) => {
                !(error.is_io_error() || error.is_connection_dropped() || error.kind() == ErrorKind::Parse)
            }
        };
        if keep {
            *slot = Some(connection);
        }
        answer
    }
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
local fields = redis.call('HMGET', key, 'incarnation', 'epoch', 'fence', 'version', 'began', 'soft', 'hard',
  'lease', 'retry', 'failures', 'cleared', 'elected')
local incarnation = fields[1] or '0'
local function number(index) return tonumber(fields[index] or '0') end
local epoch, fence, version = number(2), number(3), number(4)
local began, soft, hard, lease, retry, failures = number(5), number(6), number(7), number(8), number(9), number(10)
local cleared, elected = fields[11] or '0', number(12)
local has_value = redis.call('HEXISTS', key, 'payload') == 1
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
local function tell() redis.call('PUBLISH', key, '') end
";

/// known incarnation, known version
const POLL: &str = r"
return current({incarnation, whole(epoch), left(lease), left(retry)}, ARGV[2], ARGV[3])
";

/// lease, known incarnation, known version, refused incarnation, refused version, a random number
const ACQUIRE: &str = r"
local known, known_version = ARGV[3], ARGV[4]
if incarnation == '0' then
  incarnation = ARGV[7]
  redis.call('HSET', key, 'incarnation', incarnation)
elseif gone_back(known, known_version) then
  incarnation, epoch, version = ARGV[7], epoch + 1, tonumber(known_version)
  lease, retry, failures, cleared, has_value = 0, 0, 0, '0', false
  redis.call('DEL', key)
  redis.call('HSET', key, 'incarnation', incarnation, 'epoch', whole(epoch), 'fence', whole(fence),
    'version', whole(version))
end
local refused = has_value and ARGV[5] == incarnation and tonumber(ARGV[6]) == version
local fresh = has_value and soft > now and not gone_back(known, known_version)
if fresh and not refused then return current({'fresh'}, known, known_version) end
if lease > now then return current({'busy', left(lease)}, known, known_version) end
if retry > now then return current({'backoff', left(retry), incarnation, whole(epoch)}, known, known_version) end
fence = fence + 1
redis.call('HSET', key, 'fence', whole(fence), 'elected', whole(now), 'lease', whole(now + tonumber(ARGV[2])))
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
return {'1'}
";

/// soft or hard, a random number
const INVALIDATE: &str = r"
if incarnation == '0' then redis.call('HSET', key, 'incarnation', ARGV[3]) end
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

/// The scripts, with their checksums.
struct Scripts {
    poll: Script,
    acquire: Script,
    publish: Script,
    unchanged: Script,
    fail: Script,
    renew: Script,
    invalidate: Script,
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

    fn subscribe(&self, name: &str, hint: Hint) -> Option<Subscription> {
        let end = Arc::new(End::default());
        let listener = Listener {
            client: self.client.clone(),
            channel: Self::key(name),
            timeout: self.timeout,
            end: Arc::clone(&end),
        };
        let thread = std::thread::Builder::new().name("dogpile-hints".to_owned());
        thread.spawn(move || listener.listen(&hint)).ok()?;
        Some(Box::new(EndWhenDropped(end)))
    }
}

/// Ends the thread that listens.
#[derive(Default)]
struct End {
    ended: AtomicBool,
    pause: Mutex<()>,
    wake: Condvar,
}

impl End {
    fn is_reached(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Waits for a while, or for the end.
    fn pause(&self, pause: Duration) {
        let guard = self.pause.lock().unwrap_or_else(PoisonError::into_inner);
        let not_yet = |(): &mut ()| !self.is_reached();
        drop(self.wake.wait_timeout_while(guard, pause, not_yet).unwrap_or_else(PoisonError::into_inner));
    }
}

struct EndWhenDropped(Arc<End>);

impl Drop for EndWhenDropped {
    fn drop(&mut self) {
        let guard = self.0.pause.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.ended.store(true, Ordering::Release);
        drop(guard);
        self.0.wake.notify_all();
    }
}

struct Listener {
    client: Client,
    channel: String,
    timeout: Duration,
    end: Arc<End>,
}

impl Listener {
    fn listen(&self, hint: &Hint) {
        while !self.end.is_reached() {
            // What goes wrong here is no harm: the cell polls.
            let _ = self.listen_once(hint);
            self.end.pause(draw::around(self.timeout.min(Duration::from_secs(1)), 25));
        }
    }

    fn listen_once(&self, hint: &Hint) -> Result<(), RedisError> {
        let mut connection = self.client.get_connection_with_timeout(self.timeout)?;
        let mut messages = connection.as_pubsub();
        messages.set_read_timeout(Some(self.timeout.min(Duration::from_secs(1))))?;
        messages.subscribe(&self.channel)?;
        // What happened before.
        hint();
        while !self.end.is_reached() {
            match messages.get_message() {
                Ok(_) => hint(),
                Err(error) if error.is_timeout() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
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
        let tag = self.word()?;
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
