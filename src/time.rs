//! Time as the cells see it: nanoseconds on a monotonic clock that can be replaced.
//!
//! | file | what |
//! |---|---|
//! | `clock.rs` | [`Tick`], and the trait [`Clock`] |
//! | `system.rs` | [`SystemClock`]: the operating system's monotonic clock |
//! | `ticker.rs` | [`TickClock`]: a thread stores the time once per millisecond |
//! | `manual.rs` | [`ManualClock`]: time stands still until a test advances it |

mod clock;
mod manual;
mod system;
mod ticker;

#[cfg(feature = "async")]
pub(crate) use clock::Alarm;
pub use clock::{Clock, Tick};
pub(crate) use clock::{FOREVER, deadline, nanos};
pub use manual::ManualClock;
#[cfg(feature = "tracing")]
pub(crate) use system::Instant;
pub use system::SystemClock;
pub use ticker::TickClock;
