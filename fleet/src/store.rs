//! What a cell asks of a store, and what a store answers.
//!
//! A store keeps one [entry](crate::rules::Entry) for each name and changes it by the operations of
//! [`RefreshStore`], each of which is atomic. All times are durations by the store's own clock: the clocks of two
//! nodes are never compared.

use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::breaker::Breaker;

/// The longest duration that a store handles; longer ones are cut to it. About 100 years.
pub const LONGEST: Duration = Duration::from_secs(3_153_600_000);

/// A number that only grows, within one incarnation of an entry.
///
/// The incarnation is drawn when the entry is made. If a store loses an entry (a Redis that is flushed, a file that is
/// deleted), its successor counts from the beginning, and the incarnation keeps the two apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version {
    /// The incarnation of the entry.
    pub incarnation: u64,
    /// The number of the publication.
    pub number: u64,
}

/// How often an entry has been invalidated. Whoever finds another epoch than before has missed an invalidation, or the
/// loss of the entry, which counts as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Epoch {
    /// The incarnation of the entry; 0 if there is none.
    pub incarnation: u64,
    /// The number of invalidations.
    pub number: u64,
}

/// The number of an election: each one has a higher fence than those before, within one incarnation.
///
/// Displayed, it is fit for a part of a file's name, and unique among all incarnations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fence {
    /// The incarnation of the entry.
    pub incarnation: u64,
    /// The number of the election.
    pub number: u64,
}

impl Token {
    /// The epoch of the election.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        Epoch { incarnation: self.fence.incarnation, number: self.epoch }
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}", self.incarnation, self.number)
    }
}

/// What an elected builder shows when it publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    /// The fence of its election.
    pub fence: Fence,
    /// The number of invalidations at that time.
    pub epoch: u64,
}

/// A published value, as the store has it.
#[derive(Clone, PartialEq, Eq)]
pub struct Value {
    /// Which publication it is.
    pub version: Version,
    /// The bytes.
    pub payload: Vec<u8>,
    /// What the builder noted about it, such as an `ETag`.
    pub tag: Option<String>,
    /// The time since the election of its builder, or of the one who found it unchanged: what it was built from was read
    /// after that.
    pub age: Duration,
    /// For how long it is still fresh.
    pub soft_left: Duration,
    /// For how long it may still be served.
    pub hard_left: Duration,
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Value")
            .field("version", &self.version)
            .field("bytes", &self.payload.len())
            .field("tag", &self.tag)
            .field("age", &self.age)
            .field("soft_left", &self.soft_left)
            .field("hard_left", &self.hard_left)
            .finish()
    }
}

/// What a store has, compared with what the asking node has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Current {
    /// The value that the node knows.
    Same {
        /// For how long it is still fresh.
        soft_left: Duration,
        /// For how long it may still be served.
        hard_left: Duration,
    },
    /// Another value than the node knows.
    Newer(Value),
    /// Nothing.
    Nothing {
        /// It has been taken away by an [`Invalidation::Hard`]; otherwise none was ever published, or the store has
        /// lost it.
        cleared: bool,
    },
}

impl Current {
    /// For how long what the store has is still fresh.
    #[must_use]
    pub fn soft_left(&self) -> Duration {
        match self {
            Self::Same { soft_left, .. } => *soft_left,
            Self::Newer(value) => value.soft_left,
            Self::Nothing { .. } => Duration::ZERO,
        }
    }

    /// The value, if it is another than the node knows.
    #[must_use]
    pub fn newer(&self) -> Option<&Value> {
        if let Self::Newer(value) = self { Some(value) } else { None }
    }
}

/// The answer to [`RefreshStore::poll`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Poll {
    /// What the store has.
    pub current: Current,
    /// The present epoch.
    pub epoch: Epoch,
    /// How long the running build's lease lasts; zero if there is none.
    pub lease_left: Duration,
    /// How long the pause after a failed build lasts; zero if there is none.
    pub retry_left: Duration,
}

/// What [`RefreshStore::acquire`] is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// For how long the lease is wanted.
    pub lease: Duration,
    /// What the node has.
    pub known: Option<Version>,
    /// A version that is of no use to the node, because its payload is damaged or older than what the node has had: counts
    /// as due.
    pub refuse: Option<Version>,
    /// The latest that the node has come across. An entry of the same incarnation that is behind it has gone back in time,
    /// and becomes a new incarnation.
    pub seen: Option<Seen>,
    /// A value that is fresh for no longer than this counts as due: a node that refreshes ahead of expiry.
    pub ahead: Duration,
}

impl Request {
    /// A request for a lease, of a node that has nothing and has seen nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::Request;
    /// use std::time::Duration;
    ///
    /// let request = Request { ahead: Duration::from_secs(10), ..Request::new(Duration::from_secs(5)) };
    /// assert_eq!((request.lease, request.known), (Duration::from_secs(5), None));
    /// ```
    #[must_use]
    pub const fn new(lease: Duration) -> Self {
        Self { lease, known: None, refuse: None, seen: None, ahead: Duration::ZERO }
    }
}

/// The latest state of an entry that a node has come across, whether it has kept the value or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Seen {
    /// The epoch.
    pub epoch: Epoch,
    /// The number of the latest publication, of the same incarnation.
    pub version: u64,
}

/// The answer to [`RefreshStore::acquire`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acquire {
    /// Not due: there is a fresh value.
    Fresh(Current),
    /// The caller is to build.
    Won {
        /// To publish with.
        token: Token,
        /// The tag of the value that is there.
        tag: Option<String>,
        /// Failures in a row before this build.
        failures: u32,
        /// The value that is there, perhaps too old to be served.
        current: Current,
    },
    /// Another node builds.
    Busy {
        /// How long its lease lasts.
        left: Duration,
        /// The value that is there, perhaps too old to be served.
        current: Current,
    },
    /// The last build failed, and the pause after it runs.
    Backoff {
        /// How long the pause lasts.
        left: Duration,
        /// The present epoch, for who builds all the same, for itself.
        epoch: Epoch,
        /// The value that is there, perhaps too old to be served.
        current: Current,
    },
}

/// The answer to [`RefreshStore::publish`] and [`RefreshStore::unchanged`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publish {
    /// It is the store's value now.
    Stored(Version),
    /// Refused: another builder has been elected since.
    Superseded,
    /// Refused: there was an invalidation since, or the store has lost the entry.
    Invalidated,
}

/// What an invalidation does to the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Invalidation {
    /// It may still be served while it is rebuilt.
    Soft,
    /// It is taken away.
    Hard,
}

/// A value to be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publication<'a> {
    /// The bytes.
    pub payload: &'a [u8],
    /// A note for the next builder, such as an `ETag`.
    pub tag: Option<&'a str>,
    /// For how long it is fresh.
    pub soft: Duration,
    /// For how long it may be served; at least `soft`.
    pub hard: Duration,
}

/// A store could not carry out an operation. Whether it has taken effect is unknown.
///
/// The text contains that of all causes: a server's own message, the system's.
#[derive(Debug)]
pub struct StoreError {
    error: Box<dyn Error + Send + Sync>,
    busy: bool,
}

impl StoreError {
    /// Wraps the store's own error.
    pub fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { error: error.into(), busy: false }
    }

    /// As [`new`](StoreError::new), where the store works, but something in it is held by others: a row that is locked, a file.
    /// Other cells of the store go on using it.
    pub fn busy(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { error: error.into(), busy: true }
    }

    /// Whether the store works, and only what this operation needed was held by others.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    #[cfg(any(feature = "redis", feature = "postgres"))]
    pub(crate) fn slow(timeout: Duration) -> Self {
        Self::new(format!("no complete answer within the timeout of {timeout:?}"))
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the store could not be used: {}", self.error)?;
        let mut text = self.error.to_string();
        let mut cause = self.error.source();
        while let Some(error) = cause {
            let said = error.to_string();
            // Some errors repeat their cause, others leave it to the reader.
            if !text.contains(&said) {
                write!(f, ": {said}")?;
                text.push_str(&said);
            }
            cause = error.source();
        }
        Ok(())
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.error)
    }
}

/// A payload that is too large for a store is an error that says so.
#[cfg(any(feature = "redis", feature = "postgres"))]
pub(crate) fn check_size(payload: &[u8], largest: usize) -> Result<(), StoreError> {
    if payload.len() <= largest {
        return Ok(());
    }
    let bytes = payload.len();
    Err(StoreError::busy(format!(
        "the payload has {bytes} bytes, and the store takes {largest} at most: make the value smaller, or raise \
         `largest_payload`"
    )))
}

/// Called when something may have changed.
pub type Hint = Box<dyn Fn() + Send + Sync>;

/// As long as it lives, hints are given.
pub struct Subscription {
    healthy: Option<Arc<AtomicBool>>,
    /// How many subscriptions share the connection that the hints come by.
    members: Option<Arc<AtomicU32>>,
    /// Whether the store passes on hints at all.
    silence: Option<Arc<Silence>>,
    _membership: Box<dyn Send + Sync>,
}

impl Subscription {
    /// Hints are given until `membership` is dropped. Whether they all arrive is not known.
    pub fn new(membership: impl Send + Sync + 'static) -> Self {
        Self { healthy: None, members: None, silence: None, _membership: Box::new(membership) }
    }

    /// The same, of a store that knows whether hints arrive: while `healthy` is true, cells poll less often.
    pub fn with_health(membership: impl Send + Sync + 'static, healthy: Arc<AtomicBool>) -> Self {
        Self { healthy: Some(healthy), ..Self::new(membership) }
    }

    /// The same, of which there are so many, and whose hints may be refused.
    #[cfg(any(feature = "redis", feature = "postgres"))]
    pub(crate) fn one_of(self, members: Arc<AtomicU32>, silence: Arc<Silence>) -> Self {
        Self { members: Some(members), silence: Some(silence), ..self }
    }

    /// Why hints do not get through, if it is known that they do not.
    pub(crate) fn refusal(&self) -> Option<Arc<StoreError>> {
        self.silence.as_ref().and_then(|silence| silence.reason())
    }

    /// How many share the connection that the hints come by, as far as that is known.
    pub(crate) fn members(&self) -> u32 {
        // Relaxed: as below.
        self.members.as_ref().map_or(1, |members| members.load(Ordering::Relaxed)).max(1)
    }

    /// Whether hints are known to arrive at present.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        // Relaxed: it only makes polls more or less frequent.
        self.healthy.as_ref().is_some_and(|healthy| healthy.load(Ordering::Relaxed))
            && self.refusal().is_none()
    }
}

/// What is known of hints that a store refuses to pass on: why, and until when that is to be taken into account.
#[derive(Debug, Default)]
pub(crate) struct Silence(Mutex<Option<(Instant, Arc<StoreError>)>>);

impl Silence {
    pub(crate) fn reason(&self) -> Option<Arc<StoreError>> {
        let silence = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        silence.as_ref().filter(|(until, _)| Instant::now() < *until).map(|(_, reason)| Arc::clone(reason))
    }

    /// From now on it is known, for `time`. Returns whether it was not before.
    #[cfg(any(feature = "redis", feature = "postgres"))]
    pub(crate) fn begins(&self, time: Duration, reason: impl FnOnce() -> StoreError) -> bool {
        let now = Instant::now();
        let mut silence = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let until = now + time.min(LONGEST);
        match &mut *silence {
            Some((end, _)) if now < *end => {
                *end = until.max(*end);
                false
            }
            over => {
                *over = Some((until, Arc::new(reason())));
                true
            }
        }
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("is_healthy", &self.is_healthy()).finish_non_exhaustive()
    }
}

/// A place where the nodes of a fleet meet.
///
/// Each operation is atomic and follows [`Entry`](crate::rules::Entry), the rules as a pure state machine; the
/// [conformance suite](crate::conformance) checks a store against them. Operations must come back within bounded time:
/// a cell whose store is slow goes on without it, but only after the operation has failed.
///
/// Names are short strings, of 1 to 64 bytes and without control characters, or not every store can keep them; two cells with
/// the same name in the same store share their builds.
pub trait RefreshStore: Send + Sync {
    /// What there is. Changes nothing.
    fn poll(&self, name: &str, known: Option<Version>) -> Result<Poll, StoreError>;

    /// Asks for the right to build. Granted only if the value is due (or will be within the
    /// request's [`ahead`](Request::ahead)), no lease is live and no pause runs.
    fn acquire(&self, name: &str, request: &Request) -> Result<Acquire, StoreError>;

    /// Publishes a value. Accepted only if the token is the newest that was granted and nothing was invalidated since.
    /// The same builder may repeat it.
    fn publish(
        &self,
        name: &str,
        token: &Token,
        publication: &Publication<'_>,
    ) -> Result<Publish, StoreError>;

    /// Declares the value that is there fresh again, as [`publish`](RefreshStore::publish) would, under the version that
    /// it has.
    fn unchanged(
        &self,
        name: &str,
        token: &Token,
        soft: Duration,
        hard: Duration,
    ) -> Result<Publish, StoreError>;

    /// Ends a build without a value. Nobody in the fleet is elected for `pause`; if that is zero, it does not count as a
    /// failure. Only the newest builder is heard; returns whether it was.
    fn fail(&self, name: &str, token: &Token, pause: Duration) -> Result<bool, StoreError>;

    /// Prolongs a lease: it ends after `lease` from now. Returns `false` if publishing has become pointless.
    fn renew(&self, name: &str, token: &Token, lease: Duration) -> Result<bool, StoreError>;

    /// Declares the value out of date. To be called after what it is built from has changed: builds that are under way
    /// will not be accepted any more. Returns the epoch that begins with it.
    fn invalidate(&self, name: &str, how: Invalidation) -> Result<Epoch, StoreError>;

    /// Removes all that the store has of a name that is not used any more. For a node that still uses it, that is the loss of the
    /// entry: what it has is stale, what it builds at the moment is refused, and the next build begins a new incarnation.
    /// Default: a hard invalidation, which leaves the entry without its value.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetCell, FleetPolicy, MemoryStore, Plain, RefreshStore};
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// let store = Arc::new(MemoryStore::new());
    /// let page = FleetCell::new("page 2024", Arc::clone(&store), Plain, FleetPolicy::ttl(Duration::from_secs(60)));
    /// page.get_or_refresh(|| String::from("<html>"));
    /// drop(page);
    ///
    /// store.delete("page 2024")?;
    /// assert_eq!(store.entry("page 2024").value, None);
    /// # Ok::<(), dogpile_fleet::StoreError>(())
    /// ```
    fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.invalidate(name, Invalidation::Hard).map(drop)
    }

    /// Asks for hints on changes, if the store has such a thing. A hint makes a node poll earlier, nothing else; it may
    /// come late, twice or never.
    fn subscribe(&self, name: &str, hint: Hint) -> Option<Subscription> {
        let _ = (name, hint);
        None
    }

    /// The breaker that all cells of the store share: when operations of one cell fail, the others leave the store alone too.
    /// Its times are those of the cells' clocks, which have to agree. Default: none, and each cell has its own.
    fn breaker(&self) -> Option<&Breaker> {
        None
    }

    /// A number that is the same for the cells of one store, and another one for those of another store. Of the threads that all
    /// cells of the process share, the cells of one store leave one to the cells of other stores, however long their operations take.
    ///
    /// Default: the address of the [`breaker`](RefreshStore::breaker) if there is one, else that of the store. A store without data
    /// has no address of its own: there it is a number of its type. A store whose values are handles of a shared one returns what
    /// the shared one returns.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{MemoryStore, RefreshStore};
    /// use std::sync::Arc;
    ///
    /// let (store, other) = (Arc::new(MemoryStore::new()), MemoryStore::new());
    /// assert_eq!(store.identity(), Box::new(Arc::clone(&store)).identity());
    /// assert_ne!(store.identity(), other.identity());
    /// ```
    fn identity(&self) -> usize {
        if let Some(breaker) = self.breaker() {
            return std::ptr::from_ref(breaker).addr();
        }
        if size_of_val(self) == 0 {
            return std::any::type_name::<Self>().bytes().fold(0, |number, byte| {
                usize::wrapping_add(usize::wrapping_mul(number, 31), usize::from(byte))
            });
        }
        std::ptr::from_ref(self).cast::<()>().addr()
    }

    /// Why hints do not get through, if it is known that they do not: a cell or a loader that has made a change reports it, once as
    /// long as this returns the same error. Default: `None`.
    fn hints_refused(&self) -> Option<Arc<StoreError>> {
        None
    }

    /// Whether the store can be reached, with the rights that the other operations need. Changes nothing. Default: a poll, and a
    /// heart-beat of a build that there never was.
    fn check(&self, name: &str) -> Result<(), StoreError> {
        self.poll(name, None)?;
        let nobody = Token { fence: Fence { incarnation: 0, number: 0 }, epoch: 0 };
        self.renew(name, &nobody, Duration::ZERO).map(drop)
    }
}

/// A pointer to a store is one.
macro_rules! pointers {
    ($($Pointer:ty),*) => {
        $(
        impl<S: RefreshStore + ?Sized> RefreshStore for $Pointer {
            fn poll(&self, name: &str, known: Option<Version>) -> Result<Poll, StoreError> {
                (**self).poll(name, known)
            }
            fn acquire(&self, name: &str, request: &Request) -> Result<Acquire, StoreError> {
                (**self).acquire(name, request)
            }
            fn publish(
                &self,
                name: &str,
                token: &Token,
                publication: &Publication<'_>,
            ) -> Result<Publish, StoreError> {
                (**self).publish(name, token, publication)
            }
            fn unchanged(
                &self,
                name: &str,
                token: &Token,
                soft: Duration,
                hard: Duration,
            ) -> Result<Publish, StoreError> {
                (**self).unchanged(name, token, soft, hard)
            }
            fn fail(&self, name: &str, token: &Token, pause: Duration) -> Result<bool, StoreError> {
                (**self).fail(name, token, pause)
            }
            fn renew(&self, name: &str, token: &Token, lease: Duration) -> Result<bool, StoreError> {
                (**self).renew(name, token, lease)
            }
            fn invalidate(&self, name: &str, how: Invalidation) -> Result<Epoch, StoreError> {
                (**self).invalidate(name, how)
            }
            fn delete(&self, name: &str) -> Result<(), StoreError> {
                (**self).delete(name)
            }
            fn subscribe(&self, name: &str, hint: Hint) -> Option<Subscription> {
                (**self).subscribe(name, hint)
            }
            fn breaker(&self) -> Option<&Breaker> {
                (**self).breaker()
            }
            fn identity(&self) -> usize {
                (**self).identity()
            }
            fn hints_refused(&self) -> Option<Arc<StoreError>> {
                (**self).hints_refused()
            }
            fn check(&self, name: &str) -> Result<(), StoreError> {
                (**self).check(name)
            }
        }
        )*
    };
}

pointers!(Arc<S>, Box<S>);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryStore;

    /// A store without data.
    struct Nothing<const NUMBER: u32>;

    impl<const NUMBER: u32> RefreshStore for Nothing<NUMBER> {
        fn poll(&self, _: &str, _: Option<Version>) -> Result<Poll, StoreError> {
            unreachable!()
        }
        fn acquire(&self, _: &str, _: &Request) -> Result<Acquire, StoreError> {
            unreachable!()
        }
        fn publish(&self, _: &str, _: &Token, _: &Publication<'_>) -> Result<Publish, StoreError> {
            unreachable!()
        }
        fn unchanged(&self, _: &str, _: &Token, _: Duration, _: Duration) -> Result<Publish, StoreError> {
            unreachable!()
        }
        fn fail(&self, _: &str, _: &Token, _: Duration) -> Result<bool, StoreError> {
            unreachable!()
        }
        fn renew(&self, _: &str, _: &Token, _: Duration) -> Result<bool, StoreError> {
            unreachable!()
        }
        fn invalidate(&self, _: &str, _: Invalidation) -> Result<Epoch, StoreError> {
            unreachable!()
        }
    }

    #[test]
    fn users_of_one_store_have_the_same_number() {
        let store = Arc::new(MemoryStore::new());
        let users: [Arc<dyn RefreshStore>; 2] = [Arc::new(Arc::clone(&store)), Arc::new(Box::new(store))];
        assert_eq!(users[0].identity(), users[1].identity());
        assert_ne!(users[0].identity(), MemoryStore::new().identity());

        let without_data: [Arc<dyn RefreshStore>; 3] =
            [Arc::new(Nothing::<1>), Arc::new(Box::new(Nothing::<1>)), Arc::new(Box::new(Nothing::<2>))];
        let [one, same, other] = without_data.map(|store| store.identity());
        assert_eq!(one, same);
        assert_ne!(one, other);
    }
}
