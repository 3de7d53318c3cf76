//! Prints, as a Markdown table, what one call of each candidate for the coarse clock costs and what kind of
//! clock it reads. `docs/internals/clock.md` shows the table and says what follows from it.
//!
//! Run it with `cargo run --release -p clocks`; it takes about a quarter of a minute.

use std::fs;
use std::hint::{self, black_box};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Rounds of the cost measurement; in each round every candidate has its turn.
const ROUNDS: usize = 201;
/// Calls in one turn.
const CALLS: u32 = 20_000;
/// How long each clock is watched beside the exact one.
const WATCH: Duration = Duration::from_secs(1);

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// How a clock tells nanoseconds.
#[derive(Clone, Copy)]
enum Reading {
    /// Since the kernel's own zero, which is that of [`exact_nanos`] too: a lag can be seen as it is.
    SinceBoot(fn() -> u64),
    /// Since a moment of its own: a lag can only be seen against the nearest that the two clocks ever were.
    SinceFirstUse(fn() -> u64),
}

/// One row of the table.
struct Candidate {
    call: &'static str,
    clock: &'static str,
    /// Makes so many calls in a row and says how long they took.
    run: Box<dyn Fn(u32) -> Duration + Sync>,
    /// None if it is no clock.
    reading: Option<Reading>,
}

impl Candidate {
    /// `read` is what the cost is measured of; generic, so that the loop around it is compiled for it.
    fn new<R>(
        call: &'static str,
        clock: &'static str,
        read: impl Fn() -> R + Sync + 'static,
        reading: Option<Reading>,
    ) -> Self {
        let run = move |calls| {
            let start = Instant::now();
            for _ in 0..calls {
                black_box(read());
            }
            start.elapsed()
        };
        Self { call, clock, run: Box::new(run), reading }
    }

    /// Nanoseconds per call, the loop included.
    fn cost(&self) -> f64 {
        nanos_per_call((self.run)(CALLS))
    }

    /// The same while a second thread does the same; the mean of both.
    fn cost_with_company(&self) -> f64 {
        // Spinning, for a wake-up takes as long as a good part of the turn. Relaxed: it orders nothing.
        let ready = AtomicUsize::new(0);
        let turn = || {
            ready.fetch_add(1, Ordering::Relaxed);
            while ready.load(Ordering::Relaxed) < 2 {
                hint::spin_loop();
            }
            self.cost()
        };
        thread::scope(|scope| {
            let other = scope.spawn(turn);
            let own = turn();
            f64::midpoint(own, other.join().expect("a turn does not panic"))
        })
    }
}

fn nanos_per_call(elapsed: Duration) -> f64 {
    elapsed.as_secs_f64() * 1e9 / f64::from(CALLS)
}

fn candidates() -> Vec<Candidate> {
    let coarse = |nanos| {
        Some(if cfg!(target_os = "linux") {
            Reading::SinceBoot(nanos)
        } else {
            Reading::SinceFirstUse(nanos)
        })
    };
    let own = |nanos| Some(Reading::SinceFirstUse(nanos));
    Vec::from([
        Candidate::new("(the loop alone)", "none", || 0_u64, None),
        Candidate::new("`std::time::Instant::now()`", "exact", Instant::now, own(std_nanos)),
        #[cfg(target_os = "linux")]
        Candidate::new(
            "rustix, exact, as nanoseconds",
            "exact",
            linux::rustix_exact,
            own(linux::rustix_exact),
        ),
        Candidate::new("coarsetime, as ticks", "coarse", coarse_ticks, coarse(coarse_nanos)),
        Candidate::new("coarsetime, as nanoseconds", "coarse", coarse_nanos, coarse(coarse_nanos)),
        Candidate::new(
            "coarsetime, `Instant::now()`",
            "coarse, and a store",
            coarsetime::Instant::now,
            coarse(|| ticks_to_nanos(coarsetime::Instant::now().as_ticks())),
        ),
        #[cfg(target_os = "linux")]
        Candidate::new(
            "rustix, coarse, as nanoseconds",
            "coarse",
            linux::rustix_coarse,
            coarse(linux::rustix_coarse),
        ),
        #[cfg(target_os = "linux")]
        Candidate::new("nix, as nanoseconds", "coarse", linux::nix_coarse, coarse(linux::nix_coarse)),
        Candidate::new("quanta, `Instant::now()`", "counter", quanta::Instant::now, own(quanta_nanos)),
        // The last one: its thread would keep the kernel awake while the others are watched.
        Candidate::new("std: an atomic, moved by a thread", "1 ms sleeps", ticker_nanos, own(ticker_nanos)),
    ])
}

fn coarse_ticks() -> u64 {
    coarsetime::Instant::now_without_cache_update().as_ticks()
}

/// From seconds in 32.32 fixed point. The fraction times a billion fits into 62 bits.
fn ticks_to_nanos(ticks: u64) -> u64 {
    let (seconds, fraction) = (ticks >> 32, ticks & 0xffff_ffff);
    seconds * NANOS_PER_SECOND + ((fraction * NANOS_PER_SECOND) >> 32)
}

fn coarse_nanos() -> u64 {
    ticks_to_nanos(coarse_ticks())
}

fn std_nanos() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    to_nanos(START.elapsed())
}

fn quanta_nanos() -> u64 {
    static START: LazyLock<quanta::Instant> = LazyLock::new(quanta::Instant::now);
    to_nanos(START.elapsed())
}

/// The cheapest read there is: a thread does the asking. Its first use starts the thread.
fn ticker_nanos() -> u64 {
    static TICKER: LazyLock<&'static AtomicU64> = LazyLock::new(|| {
        let now: &AtomicU64 = Box::leak(Box::new(AtomicU64::new(std_nanos())));
        thread::spawn(move || {
            loop {
                // Relaxed, here and in the load: the number stands for nothing but itself.
                now.store(std_nanos(), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(1));
            }
        });
        now
    });
    TICKER.load(Ordering::Relaxed)
}

/// The exact clock that all others are watched beside.
fn exact_nanos() -> u64 {
    #[cfg(target_os = "linux")]
    return linux::nix_exact();
    #[cfg(not(target_os = "linux"))]
    std_nanos()
}

fn to_nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("less than 584 years")
}

#[cfg(target_os = "linux")]
mod linux {
    use super::NANOS_PER_SECOND;
    use nix::time::ClockId as NixClock;
    use rustix::time::ClockId as RustixClock;

    /// What the published crate calls on Linux.
    pub(crate) fn rustix_coarse() -> u64 {
        let time = rustix::time::clock_gettime(RustixClock::MonotonicCoarse);
        join(time.tv_sec, time.tv_nsec)
    }

    /// And for the exact time.
    pub(crate) fn rustix_exact() -> u64 {
        let time = rustix::time::clock_gettime(RustixClock::Monotonic);
        join(time.tv_sec, time.tv_nsec)
    }

    pub(crate) fn nix_coarse() -> u64 {
        nix(NixClock::CLOCK_MONOTONIC_COARSE)
    }

    pub(crate) fn nix_exact() -> u64 {
        nix(NixClock::CLOCK_MONOTONIC)
    }

    fn nix(clock: NixClock) -> u64 {
        let time = nix::time::clock_gettime(clock).expect("every Linux has it");
        join(time.tv_sec(), time.tv_nsec())
    }

    fn join(seconds: impl Into<i64>, nanos: impl Into<i64>) -> u64 {
        seconds.into().cast_unsigned() * NANOS_PER_SECOND + nanos.into().cast_unsigned()
    }
}

/// What was seen of a clock beside the exact one.
struct Seen {
    first_call: Duration,
    smallest_step: Duration,
    least_lag: Duration,
    most_lag: Duration,
}

/// Reads the clock between two exact readings, again and again: for 20 ms without a pause, so that every step
/// of it is met, then after a sleep, so that an idle kernel, which may skip its ticks, is met too.
fn watch(reading: Reading) -> Seen {
    let (Reading::SinceBoot(nanos) | Reading::SinceFirstUse(nanos)) = reading;
    let before = Instant::now();
    let mut previous = black_box(nanos());
    let first_call = before.elapsed();

    let start = Instant::now();
    let mut smallest_step = u64::MAX;
    // Most is counted from the exact reading before the call and least from the one after it, so that a thread
    // that is interrupted in between cannot make either of them up.
    let (mut least, mut most) = (i128::MAX, i128::MIN);
    while start.elapsed() < WATCH {
        thread::sleep(Duration::from_millis(7));
        let pause = start.elapsed() + Duration::from_millis(20);
        while start.elapsed() < pause {
            let before = exact_nanos();
            let now = nanos();
            let after = exact_nanos();
            most = most.max(i128::from(before) - i128::from(now));
            least = least.min(i128::from(after) - i128::from(now));
            if now > previous {
                smallest_step = smallest_step.min(now - previous);
            }
            previous = now;
        }
    }
    if let Reading::SinceFirstUse(_) = reading {
        most = (most - least).max(0);
        least = 0;
    }
    let lag =
        |nanos| Duration::from_nanos(u64::try_from(nanos).expect("a coarse clock lags, it never leads"));
    Seen {
        first_call,
        smallest_step: Duration::from_nanos(smallest_step),
        least_lag: lag(least),
        most_lag: lag(most),
    }
}

/// The value below which `share` of the values lie.
fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let index = ((values.len() - 1) as f64 * share).round() as usize;
    values[index]
}

fn median(values: &mut [f64]) -> f64 {
    quantile(values, 0.5)
}

fn machine() -> String {
    let read = |path| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let kernel = read("/proc/sys/kernel/osrelease").map_or(String::new(), |release| {
        let version: Vec<_> = release.split(['.', '-']).take(2).collect();
        format!(" {}", version.join("."))
    });
    let source = read("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    format!(
        "{}, {} cores, {}{kernel}, clock source {}",
        std::env::consts::ARCH,
        thread::available_parallelism().map_or(1, usize::from),
        std::env::consts::OS,
        source.as_deref().unwrap_or("unknown"),
    )
}

fn main() {
    let candidates = candidates();
    let seen: Vec<Option<Seen>> = candidates.iter().map(|candidate| candidate.reading.map(watch)).collect();

    // Interleaved, each round beginning one row further on, so that a noisy moment hits every row alike.
    let mut alone = vec![Vec::new(); candidates.len()];
    let mut in_company = vec![Vec::new(); candidates.len()];
    for round in 0..ROUNDS {
        for turn in 0..candidates.len() {
            let row = (round + turn) % candidates.len();
            alone[row].push(candidates[row].cost());
            in_company[row].push(candidates[row].cost_with_company());
        }
    }
    // Ratios are taken within a round, before sorting: both sides then had the same weather.
    let std_row = candidates.iter().position(|row| row.call.contains("std::time")).expect("listed above");
    let ratios: Vec<f64> = alone
        .iter()
        .map(|row| {
            median(&mut row.iter().zip(&alone[std_row]).map(|(own, std)| own / std).collect::<Vec<_>>())
        })
        .collect();

    println!("{}; {ROUNDS} rounds of {CALLS} calls\n", machine());
    println!(
        "| call | clock | ns, one thread | 10 % to 90 % | of `Instant::now` | ns, two threads \
         | first call | smallest step | lag |"
    );
    println!("|---|---|--:|--:|--:|--:|--:|--:|--:|");
    for (row, candidate) in candidates.iter().enumerate() {
        print!("| {} | {} ", candidate.call, candidate.clock);
        print!("| {:.1} ", median(&mut alone[row]));
        print!("| {:.1} to {:.1} ", quantile(&mut alone[row], 0.1), quantile(&mut alone[row], 0.9));
        print!("| {:.2} | {:.1} ", ratios[row], median(&mut in_company[row]));
        match &seen[row] {
            Some(Seen { first_call, smallest_step, least_lag, most_lag }) => {
                print!("| {first_call:.1?} | {smallest_step:.1?} | ");
                if !least_lag.is_zero() {
                    print!("{least_lag:.1?} to ");
                }
                println!("{most_lag:.1?} |");
            }
            None => println!("| | | |"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each reads the clock that its row says: one reading lies between two of the others.
    #[test]
    #[cfg(target_os = "linux")]
    fn the_candidates_read_the_kernels_clocks() {
        for _ in 0..1_000 {
            let before = linux::rustix_coarse();
            let reading = coarse_nanos();
            let after = linux::nix_coarse();
            // The fixed point of coarsetime loses up to one nanosecond.
            assert!(before <= reading + 1 && reading <= after, "{before} {reading} {after}");
            let before = linux::nix_exact();
            let reading = linux::rustix_exact();
            let after = linux::nix_exact();
            assert!(before <= reading && reading <= after, "{before} {reading} {after}");
            // One time line.
            assert!(linux::rustix_coarse() <= linux::rustix_exact());
        }
    }
}
