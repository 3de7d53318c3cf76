//! How long the caller that replaces a value waits for the readers of that value.

use std::error::Error;
use std::fmt;
use std::time::Duration;

/// What the caller that replaces a value does while the value is still being read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Drain {
    /// The caller does not wait, and never runs the finalizer. The cell's own thread runs it when the last reader has left.
    /// That thread is started when it is needed, and ends when nothing is left to finalise.
    #[default]
    Background,
    /// The caller waits for the readers of the replaced value, at most for this time, and runs the finalizer itself. Values
    /// that are still being read then go to the background. [`Duration::MAX`] waits without end, as Python's dogpile did.
    ///
    /// Readers of the new value do not wait. The lease stays taken meanwhile, so builds keep at most two generations alive.
    /// (`set` takes no lease.)
    ///
    /// # Deadlocks
    ///
    /// A thread that holds a `ReaderArc` of the old value waits for itself, until the time is over, if it is elected, calls
    /// `set` or `clear`, or waits for the build that drains. (It waits for that build in a request that rules out the current
    /// value, and in any read after a `clear` or of a value that has expired.) Give the old handle up first:
    /// [`exchange`](crate::SyncReaderCell::exchange). The same holds for a task with a guard. A thread that holds a `ReadGuard`
    /// of the old value, or of a value replaced before it, does not wait: the old value goes to the background at once.
    Wait(Duration),
}

/// The readers have not left within the time allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainTimeout {
    /// How many `ReaderArc`s of the awaited values are left, leaked ones included. 0 if no reader is in the way, but a
    /// finalizer that has not ended, or the caller itself: a build that has been overtaken, or a call from inside the finalizer.
    pub readers: usize,
}

impl fmt::Display for DrainTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.readers {
            0 => f.write_str(
                "no reader is in the way: a finalizer has not ended within the time allowed, the build has been overtaken, or the call \
                 came from inside the finalizer",
            ),
            1 => f.write_str("1 reader has not left within the time allowed"),
            readers => write!(f, "{readers} readers have not left within the time allowed"),
        }
    }
}

impl Error for DrainTimeout {}
