//! The attribute `#[dogpile]` of the crate [`dogpile`](https://docs.rs/dogpile), where it is behind the feature `macros`.
//!
//! Not to be used by itself: the code that it writes calls hidden parts of that crate, of the same version.

mod arguments;
mod expand;
mod function;

use proc_macro::TokenStream;

use expand::{Home, expand};

/// Keeps what a function returns in a cell in a `static`: one caller rebuilds it when it goes out of date, all others go on
/// reading the old value.
///
/// The function takes no arguments: one that does needs the same attribute of the crate
/// [`dogpile-map`](https://docs.rs/dogpile-map), `use dogpile_map::dogpile`. It may be `async` (feature `async`), and it may
/// return a `Result`, under any name:
///
/// | as written | as called |
/// |---|---|
/// | `fn rates() -> Rates` | `fn rates() -> Arc<Rates>` |
/// | `fn rates() -> Result<Rates, E>`, `io::Result<Rates>`, `anyhow::Result<Rates>` | `fn rates() -> Result<Arc<Rates>, RefreshError>` |
/// | `async fn rates() -> ..` | `async fn rates() -> ..`, likewise |
///
/// Beside the function there is a type of its name, which has:
///
/// | | |
/// |---|---|
/// | `rates::with(\|rates: &Rates\| ..)` | a read through the thread's own `Reader`: the cheapest one; `Result` and `async` as the function |
/// | `rates::cell()` | the `&'static DogpileCell<Rates>`, for everything else |
/// | `rates::build()` | the function as it was written |
/// | `rates::release()` | lets go of the value that this thread keeps for `with` |
/// | `rates::reset()` | value, failures and statistics are gone, for tests |
/// | `rates::refresher()` | with `ahead`: the `Refresher`, once it was started |
///
/// # Settings
///
/// | setting | meaning | default |
/// |---|---|---|
/// | `ttl = "60s"` | how long a value is fresh | this or `never_expires` is required |
/// | `never_expires` | it is fresh until it is replaced or invalidated | |
/// | `stale_while_refresh = "10m"` | how long past its ttl it may be served while it is rebuilt | without limit |
/// | `stale_if_error = "1h"` | ... when the build fails, if that is another time; set `stale_while_refresh` too | as `stale_while_refresh` |
/// | `retry_backoff = ("100ms", "10s")` | the first and the longest pause after failed builds | these |
/// | `jitter = 10` | shortens ttls and lengthens pauses by up to so many percent | 0 |
/// | `lease_timeout = "30s"` | a build that takes longer may be superseded | never |
/// | `ahead = "5s"` | the first call starts a thread that rebuilds the value this long before its ttl ends | no thread |
/// | `spawn = std::thread::spawn` | builds are handed to this function, as by `Request::spawn_with`; for an `async fn`: `tokio::spawn` | callers build |
/// | `in_impl` | the function stands in an `impl` block: `rates_cell()`, `rates_with(..)`, .. in place of `rates::cell()`, .. | |
/// | `name = "rates"` | the cell's name in spans, events and `Debug` | the path of the function |
///
/// A duration is written as [`humantime`](https://docs.rs/humantime) reads it (`"1h 30m"`, `"100ms"`), or is a constant
/// expression of the type `Duration`. The settings are those of `Policy`, and are checked when they are compiled.
///
/// # Examples
///
/// ```
/// use dogpile::{RefreshError, dogpile};
/// use std::io;
/// use std::sync::Arc;
///
/// pub struct Rates(f64);
///
/// /// The exchange rates.
/// #[dogpile(ttl = "60s", stale_while_refresh = "1h")]
/// pub fn rates() -> Result<Rates, io::Error> {
///     Ok(Rates(1.07)) // slow
/// }
///
/// let all: Arc<Rates> = rates()?;
/// let one: f64 = rates::with(|rates| rates.0)?;
/// assert_eq!(all.0, one);
/// assert_eq!(rates::cell().stats().builds, 1);
/// # Ok::<(), RefreshError>(())
/// ```
#[proc_macro_attribute]
pub fn dogpile(arguments: TokenStream, item: TokenStream) -> TokenStream {
    expand(Home::Cell, arguments.into(), &item.into()).into()
}

/// The same, of the crate [`dogpile-map`](https://docs.rs/dogpile-map): see `dogpile_map::dogpile`.
#[doc(hidden)]
#[proc_macro_attribute]
pub fn dogpile_with_map(arguments: TokenStream, item: TokenStream) -> TokenStream {
    expand(Home::Map, arguments.into(), &item.into()).into()
}
