//! A value is expensive to make, read by many callers, and out of date after a while: a key set, a price table, a report.
//! When it expires under load, every caller rebuilds it at once. That is a dogpile, or cache stampede.
//! [`DogpileCell<T>`](DogpileCell) owns such a value: **one** caller rebuilds it, and all others go on reading the old one.
//!
//! ```rust
//! use std::{sync::Arc, time::Duration};
//! use dogpile::DogpileCell;
//!
//! struct Rates(f64);
//!
//! fn download_rates() -> Rates {
//!     Rates(1.07) // slow
//! }
//!
//! static RATES: DogpileCell<Rates> = DogpileCell::new(Duration::from_secs(60));
//!
//! let rates: Arc<Rates> = RATES.get_or_refresh(|| download_rates());
//! assert_eq!(rates.0, 1.07);
//! ```
//!
//! Two things to know from the start:
//!
//! - **By default an old value is served without limit**: while it is rebuilt, and while the source is down. If an old
//!   value is worse than a wait or an error, set a limit with [`Policy::stale_while_refresh`].
//! - Callers wait if there is no value to serve: for the first build, and past that limit. The caller that is elected runs
//!   the build itself, unless the build is handed to a thread or a task ([`Request::spawn_with`]), or a [`Refresher`]
//!   builds ahead of time.
//!
//! To use it, run `cargo add dogpile`; before the first release, `cargo add --path` with the folder of its sources.
//!
//! # What do you need?
//!
//! | need | use |
//! |---|---|
//! | a value that is made once and never again | `std::sync::OnceLock`, `once_cell`'s `OnceCell` |
//! | a value that is only set from outside, with no build and no clock | `arc-swap`'s `ArcSwap` |
//! | ... and tasks that are notified when it changes | `tokio::sync::watch`, or a cell's [`subscribe`](DogpileCell::subscribe) |
//! | many keys whose values are cheap to make | `moka`, `quick_cache` |
//! | the results of a function with arguments, cached by an attribute | `cached` |
//! | ... without arguments | the attribute `#[dogpile]` |
//! | **one value, expensive to make, out of date after a while** | **[`DogpileCell`]** |
//! | ... and its build kept beside it | [`LazyDogpile`] |
//! | ... that no request should ever wait for | a [`Refresher`] beside the cell |
//! | ... that other code has to follow | [`subscribe`](DogpileCell::subscribe), [`on_publish`](DogpileCell::on_publish) |
//! | ... that is made from other such values | [`Derived`] |
//! | ... that stands for a file, a mapping or a connection, which is closed when its last reader has left | [`SyncReaderCell`] |
//! | ... shared by many processes | the crate `dogpile-fleet` |
//! | ... one for each of many keys, bounded | the crate `dogpile-map` |
//! | ... that is in files which change, or that is to survive a restart | the crate `dogpile-files` |
//!
//! # First steps
//!
//! **The build can fail.** [`try_get_or_refresh`] returns its error if there is no value that may be served instead. With
//! the defaults, callers do not notice an outage of the source as long as there is a value. The source is asked a few times
//! a minute, and [`last_error`] returns the error of the latest build. A policy sets how long an old value is served in
//! place of an error, and how soon after a failure the next build may begin:
//!
//! ```rust
//! use std::{io, sync::Arc, time::Duration};
//! use dogpile::{DogpileCell, Policy, RefreshError};
//!
//! const POLICY: Policy = Policy::ttl(Duration::from_secs(60))
//!     .stale_while_refresh(Duration::from_secs(600))
//!     .stale_if_error(Duration::from_secs(3600))
//!     .retry_backoff(Duration::from_secs(1), Duration::from_secs(30));
//!
//! static MOTD: DogpileCell<String> = DogpileCell::with_policy(POLICY);
//!
//! fn motd() -> Result<Arc<String>, RefreshError> {
//!     MOTD.try_get_or_refresh(|| std::fs::read_to_string("/etc/motd"))
//! }
//!
//! match motd() {
//!     Ok(text) => println!("{text}"),
//!     Err(error) if error.is::<io::Error>() => println!("none: {error}"), // the text of the io::Error
//!     Err(error) => println!("none: {error}"),
//! }
//! ```
//!
//! **A read can have conditions.** [`request`] collects them; the last call does the work:
//!
//! ```rust
//! use std::{io, sync::Arc, time::Duration};
//! use dogpile::{DogpileCell, RefreshError};
//!
//! static PRICES: DogpileCell<f64> = DogpileCell::new(Duration::from_secs(60));
//!
//! fn fetch() -> io::Result<f64> {
//!     Ok(9.5) // slow
//! }
//!
//! fn fresh_or_an_error() -> Result<Arc<f64>, RefreshError> {
//!     PRICES.request().max_stale(Duration::ZERO).try_get(fetch)
//! }
//!
//! /// The old value, if the new one takes more than 200 ms. The build goes on, on its own thread (`spawn_with`).
//! fn fresh_if_that_is_quick() -> Result<Arc<f64>, RefreshError> {
//!     PRICES
//!         .request()
//!         .max_stale(Duration::ZERO)
//!         .wait_at_most(Duration::from_millis(200))
//!         .or_stale()
//!         .spawn_with(std::thread::spawn)
//!         .try_get(fetch)
//! }
//!
//! assert_eq!(*fresh_or_an_error().unwrap(), 9.5);
//! assert_eq!(*fresh_if_that_is_quick().unwrap(), 9.5);
//! ```
//!
//! **No request waits for a build.** A [`Refresher`] is a thread that rebuilds the value *before* it goes out of date:
//!
//! ```rust
//! use std::{io, time::Duration};
//! use dogpile::{DogpileCell, Refresher};
//!
//! static KEYS: DogpileCell<String> = DogpileCell::new(Duration::from_secs(600));
//!
//! fn fetch_keys() -> io::Result<String> {
//!     Ok("key-1".to_owned()) // slow
//! }
//!
//! fn main() -> io::Result<()> {
//!     let ahead = Duration::from_secs(60);
//!     let refresher = Refresher::spawn(&KEYS, ahead, |_previous| fetch_keys())?;
//!     if !refresher.wait_ready(Duration::from_secs(10)) {
//!         // The program does not start without keys.
//!         return Err(io::Error::other(format!("no keys: {:?}", refresher.last_error())));
//!     }
//!
//!     // On any thread, while `refresher` is alive:
//!     let keys = KEYS.get().expect("there since the start");
//!     assert_eq!(*keys, "key-1");
//!     Ok(())
//! }
//! ```
//!
//! The build is given the previous value, so that it can ask the source whether that value is still right. [`get`] never
//! builds: it returns `None` until the refresher's first build has ended.
//!
//! **The build belongs to the value**, as in `once_cell::sync::Lazy`:
//!
//! ```rust
//! use std::time::Duration;
//! use dogpile::LazyDogpile;
//!
//! fn download_limit() -> u32 {
//!     7 // slow
//! }
//!
//! static LIMIT: LazyDogpile<u32> = LazyDogpile::new(Duration::from_secs(60), download_limit);
//!
//! assert_eq!(*LIMIT.get_or_refresh(), 7);
//! ```
//!
//! If the build can fail, the type names it: `LazyDogpile<u32, fn() -> io::Result<u32>>`, with `try_get_or_refresh`.
//!
//! **The policy is known only at run time.** Use `once_cell` (`cargo add once_cell`), or `std::sync::LazyLock` in its
//! place:
//!
//! ```rust
//! use std::time::Duration;
//! use dogpile::{DogpileCell, Policy};
//! use once_cell::sync::Lazy;
//!
//! fn policy_from_env() -> Policy {
//!     let seconds = std::env::var("KEYS_TTL").ok().and_then(|ttl| ttl.parse().ok());
//!     Policy::ttl(Duration::from_secs(seconds.unwrap_or(60))).jitter(10)
//! }
//!
//! static KEYS: Lazy<DogpileCell<Vec<u8>>> =
//!     Lazy::new(|| DogpileCell::with_policy(policy_from_env()));
//!
//! assert_eq!(*KEYS.get_or_refresh(|| vec![1, 2, 3]), [1, 2, 3]);
//! ```
//!
//! # What it promises
//!
//! - G1. At most one build runs at a time. A caller that saw a stale value just before another caller finished rebuilding
//!   it gets the new value, and does not rebuild it. After a [`set`], a [`clear()`] or a [`revoke()`] the build that runs
//!   can no longer be published. It does not count: the next build starts without waiting for it.
//! - G2. No caller blocks while there is a value that it may be served. A stale read takes no lock, also while a build
//!   runs.
//! - G3. The generation that a thread sees never goes back.
//! - G4. A build that began before [`invalidate()`] never counts as fresh. One that began before [`clear()`] is not
//!   published. One that began before [`set(v)`] does not displace `v`.
//! - G5. A build that fails, panics or is abandoned never displaces a value, never poisons the cell, and leaves no waiter
//!   blocked. If a build returns an error, callers still get the old value as long as the policy allows.
//! - G6. Callers that wait for a build get its value, even if it has expired by the time they wake.
//! - G7. If a first build fails, all callers that waited for it share its error. If it panics, one of them builds next.
//! - G8. Time is monotonic, and a ttl counts from the publication of the value.
//! - G9. No user code (build, destructor, finalizer, clock, waker) runs under a lock of the crate.
//! - G10. A build that reads its own cell gets the old value or an error; it never deadlocks. (A method that returns no
//!   error panics.)
//! - G11. [`SyncReaderCell`]: the finalizer gets each replaced value once, in order, after its last reader has left.
//! - G12. [`SyncReaderCell`]: while a build holds the write lock, no reader is inside. If the build fails, the old value is
//!   put back.
//! - G13. A caller that gives up (its time is over, its future is dropped) does not stop a build that was handed to a
//!   [spawner](Request::spawn_with).
//! - G14. However often callers ask for something newer, the source is asked at most once per interval that they name
//!   ([`max_age`](Request::max_age)), and never by two callers at once.
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
//!
//! # Features
//!
//! | feature | what it adds | dependencies |
//! |---|---|---|
//! | (none) | threads: cells, builds handed to threads and pools, [`Refresher`] | `arc-swap`, `parking_lot`, `once_cell`, on Linux `rustix` |
//! | `async` | the same for tasks, on any executor, with the same cells: `get_or_refresh_async` and the like | `futures-core`, `futures-timer` |
//! | `tracing` | a span for each build, events that say how it ended | `tracing` |
//! | `macros` | the attribute `#[dogpile]`, which keeps what a function returns | `dogpile-macros`, when compiling |
//!
//! Linux, Android, macOS, Windows and `wasm32-unknown-unknown`: each change is compiled for them, and for 32-bit targets with and
//! without 64-bit atomics (where those are missing, `portable-atomic` emulates them with a lock). In WebAssembly there are no
//! threads: what needs one returns an error, and time comes from `web-time`.
//!
//! The minimum supported Rust version is 1.88. Each change is checked with that compiler. Raising it is a minor release.
//!
//! # The guide
//!
//! [One line][one_line] · [choosing a policy](guide::policy) · [errors, and old values instead](guide::errors) ·
//! [invalidation and the fence](guide::invalidation) · [conditional builds](guide::conditional) ·
//! [background builds and `Refresher`](guide::background) · [tell me when it changes](guide::subscriptions) ·
//! [values made from values](guide::derived) · [credentials that rotate](guide::credentials) ·
//! [key sets](guide::key_sets) · [connection pools](guide::pools) ·
//! [files and `SyncReaderCell`](guide::sync_reader) · [async] · [statics](guide::statics) · [which read when](guide::reads) ·
//! [many keys](guide::many_keys) · [testing your code](guide::manual_clock) · [monitoring](guide::monitoring) ·
//! [fork](guide::fork) · [suspend](guide::suspend) · [pitfalls](guide::pitfalls)
//!
//! Coming from [Python's dogpile](guide::coming_from_python_dogpile), [a lock](guide::coming_from_rwlock),
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
//! | a handle for a thread that reads very often | [`DogpileCell::reader`], [`Reader`] |
//! | the same without a handle to carry | [`local!`], [`Local`] |
//! | an owned value from such a handle | [`Reader::get_owned_or_refresh`], [`Owned`] |
//! | to declare the value stale, to take it away, to set it | [`DogpileCell::invalidate`], [`DogpileCell::clear`], [`DogpileCell::set`] |
//! | ... only if the cell still holds the value that the caller has seen | [`DogpileCell::invalidate_if_current`] |
//! | to give up a build that hangs | [`DogpileCell::revoke`], [`Policy::lease_timeout`] |
//! | why builds fail | [`DogpileCell::last_error`], [`RefreshError`], [`SharedError`] |
//! | builds ahead of time | [`Refresher`] |
//! | to wait for a publication, or to be called at each one | [`DogpileCell::subscribe`], [`DogpileCell::on_publish`], [`Subscription`], [`Hook`] |
//! | values made from values | [`Derived`] |
//! | conditional builds, a ttl that the value chooses | [`Request::try_get_with`], [`Refreshed`] |
//! | anything else | [`DogpileCell::lookup`], [`Lease`], [`Pending`] |
//! | tests that control the time | [`ManualClock`] |
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
mod signal;
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
    BuildResult, DogpileCell, Guard, Handle, Job, Lease, Lookup, Owned, Pending, PublishOutcome, Published,
    Reader, Refreshable, Refreshed, Request, Snapshot, Waited,
};
pub use derived::{Cx, Derived, DerivedReader, Source};
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

/// Types that appear in signatures. Programs do not need to name them.
pub mod markers {
    pub use crate::cell::{CanFail, CannotFail, InCaller, SpawnWith, TakesBuild};
    #[cfg(feature = "async")]
    pub use crate::derived::InTask;
    pub use crate::derived::{InThread, Node};
}

/// For the code that macros write, and for no other.
#[doc(hidden)]
pub mod __private {
    #[cfg(feature = "macros")]
    pub use crate::attribute::{Ahead, IsValue, Probe, Returned};
    pub use crate::local::LocalReader;
}

/// Nothing, if the feature `async` is there.
#[cfg(all(feature = "macros", feature = "async"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __needs_async {
    () => {};
}

/// Nothing, if the feature `async` is there.
#[cfg(all(feature = "macros", not(feature = "async")))]
#[doc(hidden)]
#[macro_export]
macro_rules! __needs_async {
    () => {
        ::core::compile_error!(
            "`#[dogpile]` on an `async fn` needs the feature `async` of the crate `dogpile`"
        );
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
