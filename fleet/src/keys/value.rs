//! The values of keys, and what their node knows about them.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use dogpile::Tick;

use crate::store::{Value, Version};

/// A value of a key, with what its node knows about it. Dereferences to the value.
///
/// # Examples
///
/// ```
/// use dogpile_fleet::{FleetKeys, FleetPolicy, FleetValue, MemoryStore, Plain};
/// use dogpile_map::DogpileMap;
/// use std::time::Duration;
///
/// let keys = FleetKeys::new("users", MemoryStore::new(), Plain, FleetPolicy::ttl(Duration::from_secs(60)));
/// let users = DogpileMap::<u64, FleetValue<String>>::builder(keys.policy()).max_entries(1000).build();
///
/// let user = users.request(&7).try_get_with(|id, previous| {
///     keys.load(&id.to_string(), previous, || Ok::<_, &str>(format!("user {id}")))
/// })?;
/// assert_eq!(user.len(), 6, "the length of the `String`");
/// # Ok::<(), dogpile_fleet::RefreshError>(())
/// ```
pub struct FleetValue<T> {
    pub(super) value: Arc<T>,
    pub(super) origin: Origin,
    /// When it must not be served any more.
    pub(super) hard_end: Tick,
}

/// Where a value comes from.
#[derive(Clone)]
pub(super) enum Origin {
    /// The store has it, under this version.
    Stored(Version),
    /// A build for this node alone, which ended at this tick.
    Alone(Tick),
    /// A build that ended at this tick, and is served while it is published.
    Early(Tick, Arc<Verdict>),
}

/// What the store has said to a publication, when it has: the version, or that there is none.
pub(super) type Verdict = OnceLock<Option<Version>>;

impl<T> FleetValue<T> {
    /// The value.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetKeys, FleetPolicy, MemoryStore, Plain, Refreshed};
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// let keys = FleetKeys::new("users", MemoryStore::new(), Plain, FleetPolicy::ttl(Duration::from_secs(60)));
    /// let loaded = keys.load("7", None, || Ok::<_, &str>(String::from("user 7")))?;
    /// let Refreshed::NewFor(user, _) = loaded else { unreachable!("a load says how long its value is fresh") };
    /// let value: Arc<String> = Arc::clone(user.value());
    /// assert_eq!(*value, "user 7");
    /// # Ok::<(), dogpile_fleet::RefreshError>(())
    /// ```
    #[must_use]
    pub fn value(&self) -> &Arc<T> {
        &self.value
    }

    /// The store's version of it. `None` if it was built for this node alone, or if the store has not answered to its publication
    /// yet.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetKeys, FleetPolicy, MemoryStore, Plain, Refreshed};
    /// use std::time::Duration;
    ///
    /// let minute = Duration::from_secs(60);
    /// let policy = FleetPolicy::ttl(minute).patience(minute);
    /// let keys = FleetKeys::new("users", MemoryStore::new(), Plain, policy);
    /// let loaded = keys.load("7", None, || Ok::<_, &str>(String::from("user 7")))?;
    /// let Refreshed::NewFor(user, _) = loaded else { unreachable!("a load says how long its value is fresh") };
    /// assert_eq!(user.version().unwrap().number, 1);
    /// # Ok::<(), dogpile_fleet::RefreshError>(())
    /// ```
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        match &self.origin {
            Origin::Stored(version) => Some(*version),
            Origin::Alone(_) => None,
            Origin::Early(_, verdict) => verdict.get().copied().flatten(),
        }
    }

    /// When its build ended, unless the store has accepted it.
    fn alone_since(&self) -> Option<Tick> {
        match &self.origin {
            Origin::Stored(_) => None,
            Origin::Alone(built) => Some(*built),
            Origin::Early(built, _) => Some(*built).filter(|_| self.version().is_none()),
        }
    }

    /// Whether the store has not answered to its publication yet.
    pub(super) fn is_on_its_way(&self) -> bool {
        matches!(&self.origin, Origin::Early(_, verdict) if verdict.get().is_none())
    }

    /// Whether the store's `value`, which was asked for at `asked`, may be from an older reading of the source: its builder was
    /// elected before this one's build had ended.
    pub(super) fn is_newer_than(&self, value: &Value, asked: Tick) -> bool {
        self.alone_since().is_some_and(|built| value.age > asked.saturating_duration_since(built))
    }
}

impl<T> Deref for FleetValue<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Clone for FleetValue<T> {
    fn clone(&self) -> Self {
        Self { value: Arc::clone(&self.value), origin: self.origin.clone(), hard_end: self.hard_end }
    }
}

impl<T> fmt::Debug for FleetValue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetValue").field("version", &self.version()).finish_non_exhaustive()
    }
}
