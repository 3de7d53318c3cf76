//! The guide. Its examples are compiled and run by the crate's tests. In the order in which they teach:
//!
//! [the problem](problem), [the first cell](first_cell), [words], [one line][one_line], [choosing a policy](policy),
//! [errors, and old values instead](errors), [async], [background builds and `Refresher`](background),
//! [conditional builds](conditional), [subscriptions and hooks](subscriptions), [values made from values](derived),
//! [invalidation and the fence](invalidation), [many keys](many_keys), [files and `SyncReaderCell`](sync_reader).
//!
//! In a program: [statics](statics), [which read when](reads), [credentials that rotate](credentials), [key sets](key_sets),
//! [connection pools](pools), [fork](fork), [suspend](suspend), [clocks], [testing your code](manual_clock),
//! [monitoring](monitoring), [pitfalls](pitfalls).
//!
//! [What the crate promises](promises), and how it [compares with others](comparison). In the repository, `bash tools/book.sh` makes a site of these pages, which can be
//! searched, and has those of the other crates and of the internals too.
//!
//! Coming from: [Python's dogpile](coming_from_python_dogpile), [a lock](coming_from_rwlock),
//! [`cached`](coming_from_cached), [`moka`](coming_from_moka), [Caffeine](coming_from_caffeine),
//! [`singleflight`](coming_from_singleflight), [tokio's `watch`](coming_from_watch),
//! [folly's `Observer`](coming_from_observer).
//!
#![cfg_attr(feature = "async", doc = "[async]: asynchronous")]
#![cfg_attr(
    not(feature = "async"),
    doc = "[async]: https://docs.rs/dogpile/latest/dogpile/guide/asynchronous/"
)]
#![cfg_attr(feature = "macros", doc = "[one_line]: one_line")]
#![cfg_attr(
    not(feature = "macros"),
    doc = "[one_line]: https://docs.rs/dogpile/latest/dogpile/guide/one_line/"
)]

/// A page. Its links to other pages lead to files where it is read as a file, and to modules here: of two definitions of a
/// link the first one counts. The same for a picture, which here is an address that contains it (`tests/it/pages.rs`).
macro_rules! page {
    ($name:ident, $path:literal $(, $picture:literal)?) => {
        /// [problem]: crate::guide::problem
        /// [first_cell]: crate::guide::first_cell
        /// [words]: crate::guide::words
        /// [clocks]: crate::guide::clocks
        /// [promises]: crate::guide::promises
        /// [policy]: crate::guide::policy
        /// [errors]: crate::guide::errors
        /// [invalidation]: crate::guide::invalidation
        /// [conditional]: crate::guide::conditional
        /// [background]: crate::guide::background
        /// [subscriptions]: crate::guide::subscriptions
        /// [derived]: crate::guide::derived
        /// [credentials]: crate::guide::credentials
        /// [key_sets]: crate::guide::key_sets
        /// [pools]: crate::guide::pools
        /// [statics]: crate::guide::statics
        /// [reads]: crate::guide::reads
        /// [many_keys]: crate::guide::many_keys
        /// [map_crate]: https://docs.rs/dogpile-map
        /// [files_crate]: https://docs.rs/dogpile-files
        /// [fleet_crate]: https://docs.rs/dogpile-fleet
        /// [sync_reader]: crate::guide::sync_reader
        /// [manual_clock]: crate::guide::manual_clock
        /// [monitoring]: crate::guide::monitoring
        /// [fork]: crate::guide::fork
        /// [suspend]: crate::guide::suspend
        /// [pitfalls]: crate::guide::pitfalls
        #[cfg_attr(feature = "async", doc = "[async]: crate::guide::asynchronous")]
        #[cfg_attr(
            not(feature = "async"),
            doc = "[async]: https://docs.rs/dogpile/latest/dogpile/guide/asynchronous/"
        )]
        #[cfg_attr(feature = "macros", doc = "[one_line]: crate::guide::one_line")]
        #[cfg_attr(
            not(feature = "macros"),
            doc = "[one_line]: https://docs.rs/dogpile/latest/dogpile/guide/one_line/"
        )]
        $(#[doc = include_str!($picture)])?
        #[doc = include_str!($path)]
        pub mod $name {}
    };
}

page!(problem, "../docs/problem.md");
page!(first_cell, "../docs/first_cell.md");
page!(words, "../docs/words.md");
page!(promises, "../docs/promises.md");
page!(comparison, "../docs/comparison.md");
page!(policy, "../docs/policy.md", "../docs/life.link");
page!(errors, "../docs/errors.md");
page!(invalidation, "../docs/invalidation.md");
page!(conditional, "../docs/conditional.md");
page!(background, "../docs/background.md");
page!(subscriptions, "../docs/subscriptions.md");
page!(derived, "../docs/derived.md");
page!(credentials, "../docs/credentials.md");
page!(key_sets, "../docs/key_sets.md");
page!(pools, "../docs/pools.md");
page!(statics, "../docs/statics.md");
page!(reads, "../docs/reads.md");
page!(many_keys, "../docs/many_keys.md");
page!(sync_reader, "../docs/sync_reader.md");
page!(manual_clock, "../docs/manual_clock.md");
page!(monitoring, "../docs/monitoring.md");
page!(fork, "../docs/fork.md");
page!(suspend, "../docs/suspend.md");
page!(clocks, "../docs/clocks.md");
page!(pitfalls, "../docs/pitfalls.md");
#[cfg(feature = "macros")]
page!(one_line, "../docs/one_line.md");
#[cfg(feature = "async")]
page!(asynchronous, "../docs/async.md");
page!(coming_from_python_dogpile, "../docs/coming_from/python_dogpile.md");
page!(coming_from_rwlock, "../docs/coming_from/rwlock.md");
page!(coming_from_cached, "../docs/coming_from/cached.md");
page!(coming_from_moka, "../docs/coming_from/moka.md");
page!(coming_from_caffeine, "../docs/coming_from/caffeine.md");
page!(coming_from_singleflight, "../docs/coming_from/singleflight.md");
page!(coming_from_watch, "../docs/coming_from/watch.md");
page!(coming_from_observer, "../docs/coming_from/observer.md");
