//! What the processes write down, each line with one `write`, so that none is torn: a process may be killed at any time.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Microseconds since 1970: the processes run on one host.
pub(crate) fn now() -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

pub(crate) fn ratio(part: usize, whole: usize) -> f64 {
    let number = |number: usize| f64::from(u32::try_from(number).unwrap_or(u32::MAX));
    number(part) / number(whole.max(1))
}

pub(crate) struct Writer(File);

impl Writer {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().append(true).create(true).open(path).map(Self)
    }

    pub(crate) fn write(&self, what: &str, number: u64) {
        let line = format!("{what} {} {} {number}\n", now(), std::process::id());
        // Without its log a process shows nothing, but does no harm.
        let _ = (&self.0).write_all(line.as_bytes());
    }
}

struct Line {
    what: String,
    time: u64,
    process: u32,
    number: u64,
}

pub(crate) struct Log(Vec<Line>);

/// A build that has begun and not ended.
pub(crate) struct Running {
    pub(crate) process: u32,
    /// How many had begun before.
    pub(crate) number: usize,
}

impl Log {
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        let mut lines: Vec<Line> = text.lines().filter_map(parse).collect();
        lines.sort_by_key(|line| line.time);
        Ok(Self(lines))
    }

    fn begins(&self) -> impl Iterator<Item = &Line> {
        self.0.iter().filter(|line| line.what == "begin")
    }

    pub(crate) fn builds(&self) -> usize {
        self.begins().count()
    }

    /// How often the value went out of date.
    pub(crate) fn expiries(&self, ttl: Duration) -> usize {
        let ttl = u64::try_from(ttl.as_micros()).unwrap_or(u64::MAX);
        let (mut expiries, mut end) = (0, 0);
        for begin in self.begins() {
            if begin.time >= end {
                expiries += 1;
                end = begin.time + ttl;
            }
        }
        expiries
    }

    pub(crate) fn oldest_read(&self) -> Duration {
        let ages = self.0.iter().filter(|line| line.what == "age").map(|line| line.number);
        Duration::from_micros(ages.max().unwrap_or(0))
    }

    pub(crate) fn running(&self) -> Option<Running> {
        let last = self.0.iter().rfind(|line| line.what != "age")?;
        (last.what == "begin").then(|| Running { process: last.process, number: self.builds() - 1 })
    }
}

fn parse(line: &str) -> Option<Line> {
    let mut words = line.split(' ');
    Some(Line {
        what: words.next()?.to_owned(),
        time: words.next()?.parse().ok()?,
        process: words.next()?.parse().ok()?,
        number: words.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(lines: &[(&str, u64)]) -> Log {
        let line = |(what, time): &(&str, u64)| Line {
            what: (*what).to_owned(),
            time: *time,
            process: 1,
            number: 0,
        };
        Log(lines.iter().map(line).collect())
    }

    #[test]
    fn builds_that_begin_while_the_first_ones_value_is_fresh_belong_to_one_expiry() {
        let begins =
            log(&[("begin", 10), ("begin", 11), ("end", 12), ("begin", 109), ("begin", 110), ("begin", 300)]);
        assert_eq!((begins.builds(), begins.expiries(Duration::from_micros(100))), (5, 3));
    }

    #[test]
    fn the_last_build_runs_until_it_ends() {
        assert!(log(&[("begin", 1), ("end", 2), ("age", 3)]).running().is_none());
        let running = log(&[("begin", 1), ("end", 2), ("begin", 3), ("age", 4)]).running().unwrap();
        assert_eq!((running.process, running.number), (1, 1));
    }
}
