//! Many keys, each with a value that is expensive to make: one caller rebuilds a key while all others go on using its old
//! value.
//!
//! A [`DogpileCell`](dogpile::DogpileCell) holds one value. A [`DogpileMap`] holds one for each key, within a bound, with the
//! cell's promises for each of them. A plain cache makes callers wait while it reloads a key, or reloads it several times at
//! once, or both.
//!
//! ```
//! use dogpile::Policy;
//! use dogpile_map::DogpileMap;
//! use std::time::Duration;
//!
//! let users = DogpileMap::<u64, String>::builder(Policy::ttl(Duration::from_secs(60))).max_entries(100_000).build();
//!
//! let user = users.get_or_refresh(&7, |id| format!("user {id}")); // asks the database
//! assert_eq!(*user, "user 7");
//!
//! let many = users.get_many(&[7, 8, 9], |missing| {
//!     assert_eq!(missing, [8, 9]); // one query
//!     Ok::<_, std::io::Error>(missing.iter().map(|id| (*id, format!("user {id}"))).collect::<Vec<_>>())
//! })?;
//! assert_eq!(many.len(), 3);
//! # Ok::<(), dogpile::RefreshError>(())
//! ```
//!
//! # Which method
//!
//! | need | method |
//! |---|---|
//! | the value, built if need be | [`get_or_refresh`](DogpileMap::get_or_refresh) |
//! | the same, with a build that may fail | [`try_get_or_refresh`](DogpileMap::try_get_or_refresh) |
//! | many keys, with one query for those that are missing | [`get_many`](DogpileMap::get_many) |
//! | a read with conditions: fresh only, at most so old, at most so long | [`request`](DogpileMap::request) |
//! | what is there, without a build | [`get`](DogpileMap::get), [`with`](DogpileMap::with), [`iter`](DogpileMap::iter) |
//! | a value from elsewhere | [`set`](DogpileMap::set), [`set_for`](DogpileMap::set_for), [`restore`](DogpileMap::restore) |
//! | a value is out of date | [`invalidate`](DogpileMap::invalidate), [`invalidate_tag`](DogpileMap::invalidate_tag), [`invalidate_if`](DogpileMap::invalidate_if), [`invalidate_all`](DogpileMap::invalidate_all) |
//! | a value must not be served any more | [`clear`](DogpileMap::clear), [`clear_all`](DogpileMap::clear_all) |
//! | stale keys rebuilt together, off the callers' path | [`refresh_in_batches`](DogpileMap::refresh_in_batches) |
//! | how long values are fresh, and served | [`Policy`](dogpile::Policy) |
//! | the bound, weights, tags, a clock for tests | [`Builder`] |
//!
//! The feature `async` adds twins of the reads whose builds are futures, on any executor; `tracing` a span for each build.
//!
//! # Promises
//!
//! For each key, also if it is evicted, invalidated or cleared while it is being built:
//!
//! * At most one build runs whose result can be published. Callers that wait for it get its value, or share its error.
//! * No caller waits while there is a value that may be served. Keys never wait for each other.
//! * A build that began before an invalidation returned never counts as fresh; one that began before a `clear` is not
//!   published; one that began before a `set` does not displace what was set.
//! * A build that fails, panics or is cancelled takes no servable value away, and strands no waiter. A failing
//!   key is left alone for a pause that grows.
//! * No thread sees a key's new value and then its old one.
//!
//! For the map:
//!
//! * Values are bounded by number or weight. Failing keys are bounded too: a flood of unknown keys costs bounded
//!   memory, which later calls of the same shard free.
//! * No build, no destructor of a key or a value, no clock and no waker runs under a lock.
//! * No operation costs more with more keys, but for `iter`, `invalidate_if` and `reset`.
//!
//! How that is done stands at the beginning of `src/flight.rs`.
//!
//! # What it is bad at
//!
//! * A read touches the value's reference count: threads that hammer one key share a cache line. For one hot value use a
//!   [`DogpileCell`](dogpile::DogpileCell) with a [`Reader`](dogpile::Reader).
//! * A build costs some 0.7 microseconds beyond the build itself, since the key gets a cell for its time, and 30 nanoseconds
//!   more for each thread that is alive and has used a cell. It is for values whose build costs more than that.
//! * Values that are never asked for again stay until they are evicted: there is no timer.
//! * After `clear_all` the values are out of reach, but their memory is freed only as their keys are used, or evicted.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "macros")]
mod attribute;
mod batches;
mod builder;
mod clock;
mod epochs;
mod error;
mod flight;
mod inner;
mod many;
mod map;
mod request;
mod stats;
mod store;
mod sync;

pub use batches::Batches;
pub use builder::Builder;
pub use error::LeftOut;
pub use map::DogpileMap;
pub use request::{InCaller, Request, SpawnWith};
pub use stats::Stats;

/// Keeps what a function returns: in a cell, or, if it has arguments, in a [`DogpileMap`] with the arguments as the key
/// (feature `macros`).
///
/// It is the attribute [`dogpile::dogpile`](dogpile::dogpile), and adds functions with arguments. The guide's page *One line*
/// tells all of it.
///
/// The key is the argument, or a tuple of several. `&str` and any other `&T` are kept in their owned form; a single one is
/// looked up as it is, without a copy. An argument is `Hash + Eq + Clone + Send + Sync + 'static`.
///
/// | setting | meaning |
/// |---|---|
/// | `max_entries = 1_000` | how many keys have a value at most: with arguments it is required |
/// | `ttl`, `stale_while_refresh`, `jitter`, .. | as without arguments, for each key |
/// | `spawn = tokio::spawn` | builds are handed to this function: a caller waits only where there is nothing to serve |
///
/// | beside the function | |
/// |---|---|
/// | `user::map()` | the `&'static DogpileMap<K, T>`, for everything else |
/// | `user::with(7, \|user: &User\| ..)` | calls the function, and passes a reference to the value to the closure |
/// | `user::build(7)` | the function as it was written |
/// | `user::reset()` | values, failures and statistics are gone, for tests |
///
/// # Examples
///
/// ```
/// use dogpile::RefreshError;
/// use dogpile_map::dogpile;
/// use std::io;
/// use std::sync::Arc;
///
/// pub struct User {
///     name: String,
/// }
///
/// /// Asks the database.
/// #[dogpile(ttl = "60s", max_entries = 10_000)]
/// pub fn user(id: u64, region: &str) -> Result<User, io::Error> {
///     Ok(User { name: format!("user {id} of {region}") })
/// }
///
/// let found: Arc<User> = user(7, "north")?;
/// assert_eq!(found.name, "user 7 of north");
/// assert_eq!(user::with(7, "north", |user| user.name.len())?, 15);
/// assert_eq!(user::map().stats().builds, 1);
/// # Ok::<(), RefreshError>(())
/// ```
#[cfg(feature = "macros")]
#[cfg_attr(docsrs, doc(cfg(feature = "macros")))]
pub use dogpile_macros::dogpile_with_map as dogpile;

/// For the code that the attribute writes.
#[cfg(feature = "macros")]
#[doc(hidden)]
pub mod __private {
    pub use crate::attribute::{Key, Keyed, new, reset};
    pub use dogpile;
}

/// The body of an `async fn`, for which the feature `async` is needed.
#[cfg(all(feature = "macros", feature = "async"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __async_body {
    ($($body:tt)*) => {
        $($body)*
    };
}

/// In place of the body, so that the only error is this one.
#[cfg(all(feature = "macros", not(feature = "async")))]
#[doc(hidden)]
#[macro_export]
macro_rules! __async_body {
    ($($body:tt)*) => {
        ::core::compile_error!(
            "`#[dogpile]` on an `async fn` with arguments needs the feature `async` of the crate `dogpile-map`"
        )
    };
}

/// The examples of the README are compiled and run, with the feature that they need.
#[cfg(all(doctest, feature = "async"))]
#[doc = include_str!("../README.md")]
struct Readme;
