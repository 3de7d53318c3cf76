//! A configuration, a certificate with its key, a database of IP addresses, a list of rules: such values live in files. The
//! files change while the program runs, and must be read again, whole, and never half written. And some values are worth
//! keeping when the program ends, so that the next run does not start with nothing.
//!
//! This crate does both for the cells of [`dogpile`]:
//!
#![cfg_attr(feature = "watch", doc = "- [`Watch`] keeps a cell up to date with one or several files.")]
#![cfg_attr(
    not(feature = "watch"),
    doc = "- `Watch` (feature `watch`) keeps a cell up to date with one or several files."
)]
//! - [`Persist`] writes a cell's value to a file, and restores it, with its true age, when the program starts.
//!
//! ```
//! # #[cfg(feature = "watch")] {
//! use dogpile::{DogpileCell, Policy};
//! use dogpile_files::{FileError, Files, Watch};
//! use std::time::Duration;
//!
//! #[derive(serde::Deserialize)]
//! struct Config {
//!     listen: String,
//! }
//!
//! static CONFIG: DogpileCell<Config> = DogpileCell::with_policy(Policy::never_expires());
//!
//! fn parse(files: &Files) -> Result<Config, FileError> {
//!     files.parse(0, toml::from_str)
//! }
//!
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("config.toml");
//! # std::fs::write(&path, "listen = '[::]:443'\n")?;
//! let watch = Watch::files([&path]).spawn(&CONFIG, parse)?;
//! assert!(watch.wait_ready(Duration::from_secs(10)), "{:?}", watch.last_error());
//! assert_eq!(CONFIG.get().unwrap().listen, "[::]:443");
//! # }
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # What it promises
//!
//! - Several files can be one value. They are read as one state: if one of them changes meanwhile, all are read again.
//! - A half-written or invalid file never replaces a good value. The cell goes on serving the last one, and the error of
//!   [`Files`] says which file is wrong. The next change is tried at once.
//! - The same bytes lead to no build and no publication. After an error, those of the value that is served renew it.
//! - However many changes there are, there are three threads, and at most 20 builds a second. Where the operating system
//!   cannot notify, changes are found by polling.
//! - A restored value is never taken for younger than it is, as far as the clocks of the host can tell.
//! - A process that is killed while it writes a value leaves the old file or the new one.
//! - A file that cannot be used is reported and ignored, and stays until a good value replaces it.
//!
//! No code of the user's (closures, codecs, clocks) runs under a lock of the crate. There is no `unsafe` in it.
//!
//! # What it is bad at
//!
//! - Folders as values: files whose names are not known.
//! - Layers, defaults, environment variables: it reads bytes. Parse them inside the closure, with `figment` or `config`.
//! - Large values that change often: [`Persist`] writes the whole value each time.
//! - Files that are written in place while they are mapped into memory: no crate can make that safe.
//! - A half-written file that parses, and stays as it is for longer than the debounce time: nothing tells it from a whole one.
//!
//! # Features
//!
//! | feature | what it adds |
//! |---|---|
//! | `watch` (default) | `Watch`, with the crate `notify` |
//! | `json`, `postcard` | `Persist::json`, `Persist::postcard`, by serde |
//! | `async` | `Watch::wait_ready_async` |
//! | `tracing` | warnings, and `dogpile`'s spans and events |
//!
//! [`Persist::with_codec`] needs no feature. Linux, macOS, Windows; tested on Linux. Rust 1.88.

#![cfg_attr(docsrs, feature(doc_cfg), doc(auto_cfg(hide(doc, doctest))))]

mod cell;
mod own_thread;
mod persist;
mod trace;
#[cfg(feature = "watch")]
mod watch;

pub use cell::Cell;
#[cfg(feature = "json")]
pub use persist::Json;
#[cfg(feature = "postcard")]
pub use persist::Postcard;
pub use persist::{
    Codec, Moment, Persist, PersistError, PersistErrorKind, Persisted, Restored, SystemWallClock, WallClock,
};
#[cfg(feature = "watch")]
pub use watch::{FileError, Files, Watch, WatchOptions};

/// The examples of the README and of the pages are compiled and run.
#[cfg(all(doctest, feature = "watch", feature = "json"))]
mod pages {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../docs/coming_from.md")]
    struct ComingFrom;
}
