//! One refresh for a whole fleet of processes.
//!
//! A [`DogpileCell`](dogpile::DogpileCell) turns the builds of many threads into one for each process. With many processes,
//! on many hosts, each still builds once per expiry, and none notices what another one invalidates. A [`FleetCell`]
//! shares one build through a store that is there already: a directory, Redis, or `PostgreSQL`.
//!
//! ```
//! use dogpile_fleet::{FileStore, FleetCell, FleetPolicy, Plain};
//! use std::time::Duration;
//!
//! # let directory = tempfile::tempdir()?;
//! # let directory = directory.path();
//! let store = FileStore::open(directory)?;
//! let report = FleetCell::new("report", store, Plain, FleetPolicy::ttl(Duration::from_secs(60)));
//!
//! let text = report.get_or_refresh(|| String::from("made by one process, used by all"));
//! assert_eq!(*text, "made by one process, used by all");
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # Which type
//!
//! | need | type |
//! |---|---|
//! | the value | [`FleetCell`] |
//! | how long it is fresh, how long it is served while the store is down, leases | [`FleetPolicy`] |
//! | a build that fails | [`FleetCell::try_get_or_refresh`] |
//! | a build that finds nothing changed, has a ttl of its own, or makes files | [`FleetCell::try_get_with`], [`Refreshed`], [`BuildContext`] |
//! | what went wrong | [`RefreshError`], with [`Backoff`] or [`Busy`] in it |
//! | a value that is rebuilt before it expires, so that no caller builds | [`FleetRefresher`], on a thread or as a task |
//! | builds that run on a pool, not in the caller | [`FleetCell::spawn_with`] |
//! | many keys, kept by a `DogpileMap` of `dogpile-map` | [`FleetKeys`] |
//! | the processes of one host, without a server | [`FileStore`] |
//! | many hosts | `RedisStore` (feature `redis`), `PostgresStore` (feature `postgres`) |
//! | tests | [`MemoryStore`] |
//! | tasks | `FleetCell::get_or_refresh_async`, `FleetCell::invalidate_async`, `FleetRefresher::spawn_async`, `FleetKeys::load_async` (feature `async`) |
//! | the value as bytes | [`Plain`], [`Functions`], `Json` (feature `json`), `Postcard` (feature `postcard`), [`Codec`] |
//! | a client, a pool or a database of one's own | `RedisConnect`, `PostgresPool`, [`SwapStore`] |
//! | a store of one's own | [`RefreshStore`], [`rules`], [`conformance`] |
//!
//! # Promises
//!
//! * A fresh value is read at the price of the local cell: the store has no part in it.
//! * One build at a time in the whole fleet, as long as the builder renews its lease in time.
//! * A build is accepted only if no other was begun and nothing was invalidated since it began. The store decides that, in
//!   one step. A process that was stopped, or cut off, and comes back later, changes nothing.
//! * After an [`invalidate`](FleetCell::invalidate) has returned, a node (a process with the cell) that asks the store does not serve
//!   an older value as fresh.
//! * What a node serves is never older than what it has served before. (A build that the store refuses is not served: its
//!   own caller gets it, if there is nothing else.)
//! * Nobody blocks while there is a value that may be served, whatever the store does; but the one caller that is elected
//!   waits for the policy's [`patience`](FleetPolicy::patience), and for its own build.
//! * A finished build is served after `patience` at the latest. If the store has not accepted it by then, its publication goes on in
//!   the background.
//! * An invalidation that could not be delivered is an error, and is not forgotten as long as the cell lives: it is delivered before
//!   anything else is asked of the store. (When the cell is dropped it is tried once more.)
//! * A store that is down makes each process build for itself, one build at a time, once its value is too old to be served.
//! * Threads do not grow with cells: those of a process share four at most. A store that hangs never takes all of them, so that it holds
//!   up no cell of another store.
//! * Times are measured by the store's clock. The clocks of two nodes are never compared.
#![cfg_attr(docsrs, feature(doc_cfg), doc(auto_cfg(hide(doc, doctest))))]

mod access;
mod breaker;
mod cell;
mod codec;
pub mod conformance;
mod draw;
mod entry;
mod error;
#[cfg(feature = "file")]
mod file;
#[cfg(any(feature = "redis", feature = "postgres"))]
mod hub;
#[cfg(any(feature = "redis", feature = "postgres"))]
mod io;
mod keys;
mod memory;
mod operations;
mod policy;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;
pub mod rules;
mod scheduler;
mod stats;
mod store;
mod swap;
mod trace;

pub use breaker::Breaker;
pub use cell::{BuildContext, FleetCell, FleetReader, FleetRefresher, FleetSnapshot, FleetSpawn};
#[cfg(feature = "json")]
pub use codec::Json;
#[cfg(feature = "postcard")]
pub use codec::Postcard;
pub use codec::{Codec, CodecError, Functions, Plain};
pub use dogpile::{RefreshError, Refreshed, SharedError};
pub use error::{Backoff, Busy};
#[cfg(feature = "file")]
pub use file::{FileStore, HostClock};
pub use keys::{FleetKeys, FleetValue};
pub use memory::MemoryStore;
pub use policy::FleetPolicy;
#[cfg(feature = "postgres")]
pub use postgres::{PostgresClient, PostgresPool, PostgresStore};
#[cfg(feature = "redis")]
pub use redis::{RedisConnect, RedisConnection, RedisStore};
pub use stats::FleetStats;
pub use store::{
    Acquire, Current, Epoch, Fence, Hint, Invalidation, LONGEST, Poll, Publication, Publish, RefreshStore,
    Request, Seen, StoreError, Subscription, Token, Value, Version,
};
pub use swap::{Row, SwapEntry, SwapStore};

/// The examples of the README and of the guide are compiled and run.
#[cfg(all(doctest, feature = "file"))]
mod pages {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../docs/policy.md")]
    struct Policy;
    #[doc = include_str!("../docs/stores.md")]
    struct Stores;
    #[doc = include_str!("../docs/keys.md")]
    struct Keys;
    #[doc = include_str!("../docs/recipes.md")]
    struct Recipes;
    #[cfg(all(feature = "redis", feature = "postgres"))]
    #[doc = include_str!("../docs/production.md")]
    struct Production;
}
