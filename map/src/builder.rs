//! Making a map.

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use dogpile::{Clock, Policy, SystemClock};

use crate::DogpileMap;
use crate::inner::{Inner, Setup, Tag, Weigh};
use crate::store::Bound;

/// Makes a [`DogpileMap`]. See [`DogpileMap::builder`].
///
/// # Examples
///
/// ```
/// use dogpile::{ManualClock, Policy};
/// use dogpile_map::DogpileMap;
/// use std::time::Duration;
///
/// let clock = ManualClock::new();
/// let pages = DogpileMap::<String, String>::builder(Policy::ttl(Duration::from_secs(60)))
///     .max_weight(1_000_000, |path, page| (path.len() + page.len()) as u32)
///     .name("pages")
///     .clock(clock.clone())
///     .build();
///
/// assert_eq!(*pages.get_or_refresh("/", |path| format!("page {path}")), "page /");
/// assert_eq!((pages.len(), pages.weight()), (1, 7));
/// ```
#[must_use = "a builder does nothing until `build` is called"]
pub struct Builder<K, T, C = SystemClock> {
    policy: Policy,
    bound: Bound,
    parked: usize,
    clock: C,
    name: Option<&'static str>,
    weigh: Option<Weigh<K, T>>,
    tag: Option<Tag<K, T>>,
}

impl<K, T> Builder<K, T> {
    pub(crate) fn new(policy: Policy) -> Self {
        Self {
            policy,
            bound: Bound::Entries(10_000),
            parked: 1_024,
            clock: SystemClock,
            name: None,
            weigh: None,
            tag: None,
        }
    }
}

impl<K, T, C> Builder<K, T, C> {
    /// The most keys that the map holds a value of. Default: 10,000.
    ///
    /// The bound is divided among the shards of the store, so that a map may evict a little before it is full.
    ///
    /// # Panics
    ///
    /// If it is zero.
    pub fn max_entries(mut self, entries: usize) -> Self {
        assert!(entries > 0, "max_entries: a map that holds nothing builds at each call; at least 1");
        (self.bound, self.weigh) = (Bound::Entries(entries), None);
        self
    }

    /// In place of a number of entries: the most that all values weigh together. `weigh` is called each time a value is made or
    /// renewed, without a lock. A weight of zero counts as one.
    ///
    /// The bound is divided evenly among the shards of the store. There are four per core, rounded up to a power of two, but at
    /// most 256, and not so many that the share of each would be below some 2,000. A value that is heavier than 97 % of a share
    /// is not kept: each caller builds it anew, one at a time.
    ///
    /// # Panics
    ///
    /// If `weight` is zero.
    pub fn max_weight(mut self, weight: u64, weigh: impl Fn(&K, &T) -> u32 + Send + Sync + 'static) -> Self {
        assert!(weight > 0, "max_weight: a map that holds nothing builds at each call; at least 1");
        let weigh: Weigh<K, T> = Box::new(weigh);
        (self.bound, self.weigh) = (Bound::Weight(weight), Some(weigh));
        self
    }

    /// What a value is tagged with, for [`invalidate_tag`](DogpileMap::invalidate_tag). `tags` is called each time a value is made
    /// or renewed ([`NotModified`](dogpile::Refreshed::NotModified)), without a lock.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Policy;
    /// use dogpile_map::DogpileMap;
    /// use std::time::Duration;
    ///
    /// struct User {
    ///     team: u32,
    /// }
    ///
    /// let users = DogpileMap::<u64, User>::builder(Policy::ttl(Duration::from_secs(60)))
    ///     .tags(|_, user| [format!("team {}", user.team)])
    ///     .build();
    ///
    /// users.set(1, User { team: 7 });
    /// users.set(2, User { team: 8 });
    /// users.invalidate_tag("team 7");
    /// assert_eq!(users.get_or_refresh(&1, |_| User { team: 9 }).team, 9);
    /// assert_eq!(users.get_or_refresh(&2, |_| unreachable!("it is fresh")).team, 8);
    /// ```
    pub fn tags<I>(mut self, tags: impl Fn(&K, &T) -> I + Send + Sync + 'static) -> Self
    where
        I: IntoIterator<Item: Into<Box<str>>>,
    {
        self.tag = Some(Box::new(move |key, value| tags(key, value).into_iter().map(Into::into).collect()));
        self
    }

    /// Names the map, in `tracing`'s spans and events (feature `tracing`).
    pub fn name(mut self, name: &'static str) -> Self {
        self.name = Some(name);
        self
    }

    /// How many failing keys are remembered: their last error, and how long to leave the source alone. Default: 1,024.
    ///
    /// When there are more, the one that failed first is forgotten before its time. The bound is divided among 16 shards or
    /// more, and rounded up. There is no timer: a key whose pause is over is forgotten when another key of its shard is built.
    pub fn max_failing(mut self, keys: usize) -> Self {
        self.parked = keys;
        self
    }

    /// The clock by which values get stale. Default: [`SystemClock`]. A test takes a [`ManualClock`](dogpile::ManualClock).
    pub fn clock<D: Clock + Clone>(self, clock: D) -> Builder<K, T, D> {
        let Self { policy, bound, parked, clock: _, name, weigh, tag } = self;
        Builder { policy, bound, parked, clock, name, weigh, tag }
    }

    /// The map.
    pub fn build(self) -> DogpileMap<K, T, C>
    where
        K: Hash + Eq + Clone,
        C: Clock + Clone,
    {
        let Self { policy, bound, parked, clock, name, weigh, tag } = self;
        let setup = Setup { policy, bound, parked, clock, name, weigh, tag };
        DogpileMap { inner: Arc::new(Inner::new(setup)) }
    }
}

impl<K, T, C> fmt::Debug for Builder<K, T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("policy", &self.policy)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
