//! How old a value is that was made before this process was.
//!
//! A cell's clock starts anew with each process, so the file contains the time of day at which the value was made. The time of
//! day can be set. The rule is: a value is never taken for younger than it is, as far as that can be known.
//!
//! - Linux has a clock that runs since the host was started, also while it is suspended, and that cannot be set. If the file
//!   was written since that start, the value is at least as old as that clock says.
//! - The value is also at least as old as the time of day says, if that is later than the time in the file.
//! - If the time of day is earlier, and the host was restarted, the age is unknown, and is taken as unlimited.
//!
//! A host that is suspended between a publication and its write makes the cell's clock show too little. Elsewhere than on Linux
//! the time of day tells, so a clock that is set forward in that second makes the value older.
//!
//! If the time of day was wrong when the value was made, and is corrected while the same process runs, that process writes the
//! corrected time. One case is not noticed: the clock was ahead, it was corrected while the process did not run, the host was
//! restarted, and the time in the file has passed by now. Then the value is taken for younger by as much as the clock was
//! ahead.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The wall clock may be off by this much before it counts as having been set.
pub(super) const STEP: Duration = Duration::from_secs(1);

/// What the clocks of the host show, apart from the cell's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The time of day.
    pub wall: SystemTime,
    /// Which start of the host this is, and the time since then, suspended or not. `None` where that cannot be told.
    pub boot: Option<(u64, Duration)>,
}

/// Where [`Persist`](crate::Persist) gets the time of day from. A test can replace it.
///
/// The age of a restored value is the longest that one of these clocks tells: the time of day, and on Linux the clock that
/// runs since the host was started. It is unknown, and counts as unlimited, if the time of day is before that in the file and
/// the host was restarted. So clocks that are set make a value older, not younger, with one exception: the time of day was
/// ahead when the value was made, and was corrected while the program did not run, before a restart of the host.
///
/// # Examples
///
/// ```
/// use dogpile_files::{Moment, SystemWallClock, WallClock};
/// use std::time::Duration;
///
/// /// A clock that is an hour late.
/// struct Late;
///
/// impl WallClock for Late {
///     fn now(&self) -> Moment {
///         let now = SystemWallClock.now();
///         Moment { wall: now.wall - Duration::from_secs(3600), boot: None }
///     }
/// }
/// assert!(Late.now().wall < SystemWallClock.now().wall);
/// ```
pub trait WallClock: Send + 'static {
    /// The time.
    fn now(&self) -> Moment;
}

/// The clocks of the operating system; the default.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemWallClock;

impl WallClock for SystemWallClock {
    fn now(&self) -> Moment {
        Moment { wall: SystemTime::now(), boot: since_boot() }
    }
}

#[cfg(target_os = "linux")]
fn since_boot() -> Option<(u64, Duration)> {
    use std::sync::OnceLock;
    static BOOT: OnceLock<Option<u64>> = OnceLock::new();
    let boot = (*BOOT.get_or_init(|| {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        // 122 random bits, of which these are 60.
        u64::from_str_radix(id.get(..18)?.replace('-', "").as_str(), 16).ok()
    }))?;
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Some((boot, Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?)))
}

#[cfg(not(target_os = "linux"))]
fn since_boot() -> Option<(u64, Duration)> {
    None
}

impl Moment {
    /// The moment `age` before this one.
    pub(super) fn before(self, age: Duration) -> Self {
        Self {
            // Before 1970 there is nothing to tell apart.
            wall: self.wall.checked_sub(age).unwrap_or(UNIX_EPOCH).max(UNIX_EPOCH),
            // It may be older than the host has been running.
            boot: self.boot.and_then(|(id, time)| Some((id, time.checked_sub(age)?))),
        }
    }

    /// How long ago `made` was, at least. `None`: that is not known.
    pub(super) fn age_since(self, made: Self) -> Option<Duration> {
        let by_wall = self.wall.duration_since(made.wall).ok();
        // A container that was moved to another host can see another clock under the same name.
        by_wall.max(self.elapsed_since(made))
    }

    /// The same moment, if the time of day has been set since it was noted.
    pub(super) fn corrected(self, now: Self) -> Self {
        let Some(elapsed) = now.elapsed_since(self) else { return self };
        let corrected = now.before(elapsed);
        let off = corrected.wall.duration_since(self.wall).unwrap_or_else(|error| error.duration());
        if off > STEP { corrected } else { self }
    }

    /// The time between, on the clock of the host's start.
    pub(super) fn elapsed_since(self, earlier: Self) -> Option<Duration> {
        let ((id, now), (earlier_id, earlier)) = self.boot.zip(earlier.boot)?;
        if id == earlier_id { now.checked_sub(earlier) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(wall: u32, boot: Option<(u64, u32)>) -> Moment {
        Moment { wall: UNIX_EPOCH + HOUR * wall, boot: boot.map(|(id, time)| (id, HOUR * time)) }
    }

    #[test]
    fn an_age_is_the_longest_that_a_clock_tells() {
        let made = at(1000, Some((1, 10)));
        for (now, age) in [
            (at(1002, Some((1, 12))), Some(2)),
            // The time of day was set back, or forward.
            (at(900, Some((1, 12))), Some(2)),
            (at(1009, Some((1, 12))), Some(9)),
            // After a restart there is only the time of day.
            (at(1002, Some((2, 12))), Some(2)),
            (at(1002, None), Some(2)),
            (at(900, Some((2, 12))), None),
            (at(900, None), None),
            // The same start by name only.
            (at(1002, Some((1, 3))), Some(2)),
        ] {
            assert_eq!(now.age_since(made), age.map(|hours| HOUR * hours), "{now:?}");
        }
    }

    #[test]
    fn the_moment_before_is_not_before_the_clocks_began() {
        let now = at(5, Some((1, 3)));
        assert_eq!(now.before(2 * HOUR), at(3, Some((1, 1))));
        assert_eq!(now.before(4 * HOUR), at(1, None));
        assert_eq!(now.before(Duration::MAX), at(0, None));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn linux_tells_its_starts_apart() {
        let (first, second) = (SystemWallClock.now(), SystemWallClock.now());
        assert_eq!(first.boot.unwrap().0, second.boot.unwrap().0);
        assert!(second.elapsed_since(first).is_some());
    }
}
