//! A [cell](DogpileCell) for a value that is expensive to make and goes out of date: **one** caller rebuilds it, and all
//! others get the old value at once, as long as there is one that may be served.
//!
//! Without it, a value that has gone out of date is rebuilt by all callers at the same time: a dogpile, also called cache
//! stampede or thundering herd. The remedies are known as *stale-while-revalidate* and *single flight*. A cell is both, for
//! threads and for tasks.
//!
//! One line on your own function does it (`cargo add dogpile --features macros`; before the first release, with `--path` and
//! the folder of the sources):
//!
#![cfg_attr(all(feature = "macros", feature = "async"), doc = "```rust")]
#![cfg_attr(not(all(feature = "macros", feature = "async")), doc = "```text")]
//! use std::{io, sync::Arc};
//! use dogpile::{RefreshError, dogpile};
//!
//! #[dogpile(ttl = "60s")]
//! fn rates() -> io::Result<String> {
//!     Ok("EUR 1.07".to_owned()) // slow: a query, a download
//! }
//!
//! let rates: Result<Arc<String>, RefreshError> = rates(); // called as before
//! assert_eq!(*rates.unwrap(), "EUR 1.07");
//! ```
//!
//! The same in async code, here in a handler of axum (`--features macros,async`):
//!
#![cfg_attr(all(feature = "macros", feature = "async"), doc = "```rust")]
#![cfg_attr(not(all(feature = "macros", feature = "async")), doc = "```text")]
//! use axum::{Router, http::StatusCode, routing::get};
//! use dogpile::dogpile;
//!
//! #[dogpile(ttl = "60s")]
//! async fn report() -> std::io::Result<String> {
//!     Ok("1,024 orders".to_owned()) // slow: a query
//! }
//!
//! async fn handler() -> Result<String, StatusCode> {
//!     match report().await {
//!         Ok(report) => Ok(report.to_string()),
//!         Err(_) => Err(StatusCode::BAD_GATEWAY), // there is no old report
//!     }
//! }
//!
//! let app: Router = Router::new().route("/report", get(handler));
//! ```
//!
//! Two things to know from the start:
//!
//! - **By default an old value is served without limit**: while it is rebuilt, and while the source is down. If an old
//!   value is worse than a wait or an error, set a limit ([`stale_while_refresh = "10m"`](Policy::stale_while_refresh)).
//! - Callers wait if there is no value to serve: for the first build, and past that limit. The one caller that rebuilds the value
//!   runs the build itself, and an async build is cancelled when the future of its caller is dropped. [No request
//!   builds](guide::background) if builds are handed to a thread or a task
//!   ([`request().spawn_with(tokio::spawn)`](Request::spawn_with)), or if a [`Refresher`] builds ahead of time.
//!
//! # Where to start
//!
//! - **Five minutes**: [the first cell](guide::first_cell). A value, a build that fails, a read with conditions, no waiting
//!   at all, and what to use when.
//! - **The guide**: [its pages in order](guide), from the problem to monitoring, and [its words](guide::words).
//! - **Why it is right**: [what it promises](#what-it-promises). The test behind each statement of this page:
//!   `docs/testing.md` of the repository.
//!
//! # Compared with others
//!
//! | | dogpile | `moka` | `cached` | `arc-swap` | `watch` | `quick_cache` | `hitbox` |
//! |---|---|---|---|---|---|---|---|
//! | the old value is served while one caller rebuilds it | [✓](guide::policy) | ✗ | ◐ | ✗ | ✗ | ✗ | ✓ |
//! | one build for all callers that need a first value | [✓](guide::problem) | ✓ | ◐ | ✗ | ✗ | ✓ | ◐ |
//! | callers that wait share the error of a build | [✓](guide::errors) | ✓ | ✗ | – | – | ✗ | ✗ |
//! | the old value in place of an error | [✓](guide::errors) | ✗ | ◐ | – | – | ✗ | ◐ |
//! | a pause after an error | [✓](guide::errors) | ✗ | ✗ | – | – | ✗ | ✗ |
//! | limit the wait, then return the old value | [✓](guide::policy) | ✗ | ✗ | – | – | ✗ | ✗ |
//! | rebuilt before it expires, without a request | [✓](guide::background) | ✗ | ✗ | – | – | ✗ | ✗ |
//! | an invalidation during a build is not lost | [✓](guide::invalidation) | ✗ | ✗ | – | – | ✓ | ✗ |
//! | a read takes no lock | [✓](guide::reads) | ◐ | ✗ | ✓ | ✗ | ✗ | ✗ |
//! | `const` constructor, for a `static` | [✓](guide::statics) | ✗ | ✓ | ◐ | ✗ | ✗ | ✗ |
//! | threads and tasks share one object | [✓](guide) | ✗ | ✗ | ✓ | ◐ | ✓ | ✗ |
//! | wait for the next value | [✓](guide::subscriptions) | ✗ | ✗ | ✗ | ✓ | ✗ | ✗ |
//! | values derived from values | [✓](guide::derived) | ✗ | ✗ | ◐ | ✗ | ✗ | ✗ |
//! | a finalizer that runs after the last reader | [✓](guide::sync_reader) | ✗ | ✗ | ✗ | ✗ | ✗ | ✗ |
//! | a clock that tests move | [✓](guide::manual_clock) | ✗ | ✗ | – | – | – | ✗ |
//! | many keys, bounded memory | [✓](https://docs.rs/dogpile-map) | ✓ | ✓ | ✗ | ✗ | ✓ | ✓ |
//! | ... that expire when they are not read | ✗ | ✓ | ✓ | – | – | ✗ | ✗ |
//! | an attribute for a function with arguments | [✓](https://docs.rs/dogpile-map) | ✗ | ✓ | – | – | ✗ | ✓ |
//! | middleware for HTTP | ✗ | ✗ | ✗ | – | – | ✗ | ✓ |
//! | values from files, reloaded when those change | [✓](https://docs.rs/dogpile-files) | ✗ | ✗ | ✗ | ✗ | ✗ | ✗ |
//! | values that survive a restart | [✓](https://docs.rs/dogpile-files) | ✗ | ✓ | ✗ | ✗ | ✗ | ✓ |
//! | many processes share a value | [✓](https://docs.rs/dogpile-fleet) | ✗ | ✓ | ✗ | ✗ | ✗ | ✓ |
//! | ... and build it once for all of them | [✓](https://docs.rs/dogpile-fleet) | ✗ | ✗ | ✗ | ✗ | ✗ | ✗ |
//! | `no_std` | ✗ | ✗ | ✗ | ◐ | ✗ | ✗ | ✗ |
//!
//! ✓ yes, ◐ in part, ✗ no, – the question does not arise. The column of this crate includes `dogpile-map` (many keys),
//! `dogpile-files` and `dogpile-fleet` (many processes). [Where each mark comes from, what others do better, and Caffeine,
//! `FusionCache`, `dogpile.cache` and folly's `Observer`](guide::comparison).
//!
//! # What it promises
//!
//! - G1. At most one build runs at a time. A caller that saw a stale value just before another caller finished rebuilding
//!   it gets the new value, and does not rebuild it. After a [`set`], a [`clear()`] or a [`revoke()`], and after its
//!   [lease has timed out](Policy::lease_timeout), the build that runs can no longer be published. It does not count: the
//!   next build starts without waiting for it.
//! - G2. No caller waits for another one's build while there is a value that it may be served. A stale read takes no lock,
//!   also while a build runs.
//! - G3. The generation that a thread sees never goes back.
//! - G4. A build that began before [`invalidate()`] never counts as fresh. One that began before [`clear()`] is not
//!   published. One that began before [`set(v)`] does not displace `v`.
//! - G5. A build that fails, panics or is abandoned never displaces a value, never poisons the cell, and leaves no waiter
//!   blocked. If a build returns an error, callers still get the old value as long as the policy allows.
//! - G6. Callers that wait for a build get the value that it publishes, even if that has expired by the time they wake. (Not if
//!   it had expired when it was published: a build may say that its value is old.)
//! - G7. If a first build fails, all callers that waited for it share its error. If it panics, one of them builds next.
//! - G8. Time is monotonic, and a ttl counts from the publication of the value, unless the build says how old it is.
//! - G9. No user code (build, destructor, finalizer, clock, waker) runs under a lock of the crate.
//! - G10. A build that reads its own cell gets the old value or an error; it never deadlocks. (A method that returns no
//!   error panics.)
//! - G11. [`SyncReaderCell`]: the finalizer gets each replaced value once, in order, after its last reader has left.
//! - G12. [`SyncReaderCell`]: while a build holds the write lock, no reader is inside. If the build fails, the old value is
//!   put back.
//! - G13. A caller that gives up (its time is over, its future is dropped) does not stop a build that was handed to a
//!   [spawner](Request::spawn_with).
//! - G14. However often callers ask for something newer, the source is asked at most once per interval that they name
//!   ([`max_age`](Request::max_age)), while it fails as often as the retry pauses allow, and never by two callers at
//!   once. (A source that returns older values than that is asked by each of them.)
//! - G15. A [`Derived`] value never mixes old and new values of one source. After a source has published, the next read is
//!   made from the newest values, or begins to make it.
//!
//! The crate contains no `unsafe` code. Everything that depends on time can be tested without waiting, with a
//! [`ManualClock`].
//!
//! # What it is bad at
//!
//! - Many keys. A cell holds one value. Use the crate `dogpile-map`.
//! - Values that must never be stale. `request().max_stale(Duration::ZERO)` waits for the build, but a plain lock does that
//!   too.
//! - Thousands of cells that are set all the time. At each publication `arc-swap`, which holds the value, walks a list of
//!   all threads that use it. Cells are for values that are built seconds apart.
//! - `no_std`.
//! - It is new. `moka`, `cached` and `arc-swap` have been used in production for years.
//!
//! # Features
//!
//! | feature | what it adds | dependencies |
//! |---|---|---|
//! | (none) | threads: cells, builds handed to threads and pools, [`Refresher`] | `arc-swap`, `parking_lot`, `once_cell`, on Linux `rustix` |
//! | `async` | the same for tasks, on any executor, with the same cells: `get_or_refresh_async` and the like | `futures-core`, `futures-timer` |
//! | `tracing` | a span for each build, events that say how it ended | `tracing` |
//! | `macros` | the attribute `#[dogpile]`, which caches what a function returns | `dogpile-macros`, when compiling |
//!
//! Without features these are 14 crates on Linux, this one included (`cargo tree -e normal`). `Cargo.lock` names more, which are
//! compiled for other targets only.
//!
//! Linux, Android, macOS, Windows and `wasm32-unknown-unknown`: each change is compiled for them, and for 32-bit targets with and
//! without 64-bit atomics (where those are missing, `portable-atomic` emulates them with a lock). In WebAssembly there are no
//! threads: what needs one returns an error, and time comes from `web-time`.
//!
//! The minimum supported Rust version is 1.88. Each change is checked with that compiler. Raising it is a minor release.
//!
//! # Coming from
//!
//! [Python's dogpile](guide::coming_from_python_dogpile), [a lock](guide::coming_from_rwlock),
//! [`cached`](guide::coming_from_cached), [`moka`](guide::coming_from_moka), [Caffeine](guide::coming_from_caffeine),
//! [`singleflight`](guide::coming_from_singleflight), [tokio's `watch`](guide::coming_from_watch),
//! [folly's `Observer`](guide::coming_from_observer)
//!
//! # Which method
//!
//! | need | item |
//! |---|---|
//! | how long a value is fresh or served stale, and what happens on errors | [`Policy`] |
//! | a read that builds if need be | [`DogpileCell::get_or_refresh`], [`DogpileCell::try_get_or_refresh`] |
//! | ... with conditions: only a fresh value, a limit on its age or on the wait, a build on another thread | [`DogpileCell::request`], [`Request`] |
//! | such reads from a task | `DogpileCell::get_or_refresh_async` and the like (feature `async`), see [async] |
//! | a read that never builds | [`DogpileCell::get`], [`DogpileCell::snapshot`] |
//! | a read that touches no reference count | [`DogpileCell::load_or_refresh`], [`Guard`] |
//! | a function whose value is cached | feature `macros`: `#[dogpile]`, see [one line][one_line] |
//! | a cell that keeps its build | [`LazyDogpile`] |
//! | a value that is closed, unmapped or deleted after its last reader | [`SyncReaderCell`] |
//! | a handle for a thread that reads very often | [`DogpileCell::reader`], [`Reader`] |
//! | the same without a handle to carry | [`local!`], [`Local`] |
//! | an owned value from such a handle | [`Reader::get_owned_or_refresh`], [`Owned`] |
//! | to declare the value stale, to take it away, to set it | [`DogpileCell::invalidate`], [`DogpileCell::clear`], [`DogpileCell::set`] |
//! | ... only if the cell still holds the value that the caller has seen | [`DogpileCell::invalidate_if_current`], [`DogpileCell::clear_if_current`] |
//! | to give up a build that hangs | [`DogpileCell::revoke`], [`Policy::lease_timeout`] |
//! | why builds fail | [`DogpileCell::last_error`], [`RefreshError`], [`SharedError`] |
//! | builds ahead of time | [`Refresher`] |
//! | to wait for a publication, or to be called at each one | [`DogpileCell::subscribe`], [`DogpileCell::on_publish`], [`Subscription`], [`Hook`] |
//! | values made from values | [`Derived`] |
//! | conditional builds, a ttl that the value chooses | [`Request::try_get_with`], [`Refreshed`] |
//! | anything else | [`DogpileCell::lookup`], [`Lease`], [`Pending`] |
//! | tests that control the time | [`ManualClock`] |
//! | another clock | [`TickClock`], [`Clock`], see [clocks](guide::clocks) |
//!
//! [`get`]: DogpileCell::get
//! [`set`]: DogpileCell::set
//! [`set(v)`]: DogpileCell::set
//! [`invalidate()`]: DogpileCell::invalidate
//! [`clear()`]: DogpileCell::clear
//! [`revoke()`]: DogpileCell::revoke
//! [`request`]: DogpileCell::request
//! [`last_error`]: DogpileCell::last_error
//! [`try_get_or_refresh`]: DogpileCell::try_get_or_refresh
#![cfg_attr(feature = "async", doc = "[async]: guide::asynchronous")]
#![cfg_attr(
    not(feature = "async"),
    doc = "[async]: https://docs.rs/dogpile/latest/dogpile/guide/asynchronous/"
)]
#![cfg_attr(feature = "macros", doc = "[one_line]: guide::one_line")]
#![cfg_attr(
    not(feature = "macros"),
    doc = "[one_line]: https://docs.rs/dogpile/latest/dogpile/guide/one_line/"
)]
#![cfg_attr(docsrs, feature(doc_cfg), doc(auto_cfg(hide(dogpile_loom, dogpile_shuttle, doc, doctest))))]

#[cfg(feature = "macros")]
mod attribute;
mod cell;
mod contain;
mod derived;
mod error;
mod hook;
mod inside;
mod lazy;
mod local;
mod own_thread;
mod policy;
mod refresher;
mod stats;
mod subscription;
mod sync;
mod sync_reader;
mod time;
mod trace;
mod wait;

#[cfg(feature = "macros")]
pub use dogpile_macros::dogpile;

#[cfg(feature = "async")]
pub use cell::Task;
pub use cell::{
    BuildResult, DogpileCell, Guard, Handle, Job, Lease, Lookup, Owned, Pending, Published, Reader,
    Refreshable, Refreshed, Request, Snapshot, Waited,
};
#[cfg(feature = "async")]
pub use derived::AsyncDerived;
pub use derived::{Cx, Derived, DerivedReader, DerivedSubscription, Source};
pub use error::{BoxError, RefreshError, SharedError};
pub use hook::{Change, Hook};
pub use lazy::{LazyDogpile, LazyReader};
pub use local::Local;
pub use policy::{Freshness, Policy};
pub use refresher::{Refresher, RefresherOptions};
pub use stats::Stats;
pub use subscription::Subscription;
pub use sync_reader::{Drain, DrainTimeout, ReadGuard, ReaderArc, SyncReaderCell, WriteLock, Writer};
pub use time::{Clock, ManualClock, SystemClock, Tick, TickClock};
pub use trace::PublishOutcome;

/// Types that appear in signatures. Programs do not need to name them.
pub mod markers {
    pub use crate::cell::{InCaller, SpawnWith, TakesBuild};
    #[cfg(feature = "async")]
    pub use crate::derived::InTask;
    pub use crate::derived::{InThread, Node};
}

/// For the code that macros write, and for no other.
#[doc(hidden)]
pub mod __private {
    #[cfg(all(feature = "macros", feature = "async"))]
    pub use crate::attribute::spawns_tasks;
    #[cfg(feature = "macros")]
    pub use crate::attribute::{IsValue, Probe, Returned, spawns_jobs};
    pub use crate::local::{Cleaner, LocalReader, LocalSlot};
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
            "`#[dogpile]` on an `async fn` needs the feature `async` of the crate `dogpile`"
        )
    };
}

#[cfg(any(doc, doctest))]
pub mod guide;

/// For the models, and in no other build.
#[cfg(any(dogpile_loom, dogpile_shuttle))]
#[doc(hidden)]
pub mod model {
    /// From now on this thread drops things as if it unwound; or no longer.
    pub fn set_panicking(panicking: bool) {
        crate::sync::set_panicking(panicking);
    }
}

/// The examples of the README are compiled and run, with the features that they need.
#[cfg(all(doctest, feature = "async", feature = "macros"))]
mod pages {
    #[doc = include_str!("../README.md")]
    struct Readme;
}
