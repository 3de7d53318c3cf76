//! Counting: the half outside valgrind, which starts it and reads what it says, and the half inside, which is counted.

use std::fs;
use std::hint::black_box;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::record::{Figures, Record};
use crate::subjects::{LOOP, Subject, subjects};

/// The argument with which the program is started inside valgrind.
pub(crate) const INSIDE: &str = "--inside";

/// A first section of so many times, then one of twice as many.
const TIMES: u32 = 1000;

/// Before the first section, so that what happens only once (thread-locals, the clock's anchor) is not counted.
const WARM_UP: u64 = 10;

/// Why there are no figures.
pub(crate) enum Failure {
    /// Nothing to count with here.
    Impossible(String),
    Broken(String),
}

/// Compiler and libc: what else than the crate and its dependencies decides about the counts.
pub(crate) fn environment() -> String {
    let libc = Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    let libc = libc.ok().and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    format!("{}; {}", env!("COMPILED_WITH").trim(), libc.trim())
}

/// Stored to when a section ends: so that the trace of all stores shows it.
static SECTIONS: AtomicU64 = AtomicU64::new(0);

/// Where callgrind writes what it has counted.
#[inline(never)]
fn section_ends() {
    // Relaxed: no other thread reads it.
    SECTIONS.store(black_box(1), Ordering::Relaxed);
}

/// What is counted. Prints a line for each subject, in the order in which it does them.
pub(crate) fn inside(times: u64) {
    println!("{}", std::ptr::from_ref(&SECTIONS).addr());
    for Subject { name, shared, mut run } in subjects() {
        let ranges: Vec<String> =
            shared.into_iter().map(|range| format!("{}-{}", range.start, range.end)).collect();
        println!("{name}\t{}", ranges.join(","));
        run(WARM_UP);
        section_ends();
        run(times);
        section_ends();
        run(2 * times);
        section_ends();
    }
}

/// Instructions, data reads and data writes: of the first section, and of the second.
type Sections = [[u64; 3]; 2];

/// What the half inside has printed.
struct Inside {
    marker: u64,
    /// Names, and the addresses of what they share.
    subjects: Vec<(String, Vec<(u64, u64)>)>,
}

impl Inside {
    fn of(output: &Output) -> Result<Self, Failure> {
        let inside =
            Self::parse(&String::from_utf8_lossy(&output.stdout)).filter(|_| output.status.success());
        inside.ok_or_else(|| {
            let errors = String::from_utf8_lossy(&output.stderr);
            Failure::Broken(format!("valgrind ended with {}:\n{errors}", output.status))
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let marker = lines.next()?.parse().ok()?;
        let subjects = lines.map(|line| {
            let (name, ranges) = line.split_once('\t')?;
            let ranges = ranges.split(',').filter(|range| !range.is_empty()).map(|range| {
                let (start, end) = range.split_once('-')?;
                Some((start.parse().ok()?, end.parse().ok()?))
            });
            Some((name.to_owned(), ranges.collect::<Option<_>>()?))
        });
        Some(Self { marker, subjects: subjects.collect::<Option<_>>()? })
    }
}

/// Whether this is worth counting.
pub(crate) fn is_as_released() -> bool {
    env!("COMPILED_AT_LEVEL") == "3"
}

/// Counts everything.
pub(crate) fn all() -> Result<Record, Failure> {
    if !cfg!(target_os = "linux") {
        return Err(Failure::Impossible("this is not Linux".into()));
    }
    if Command::new("valgrind").arg("--version").stdout(Stdio::null()).status().is_err() {
        return Err(Failure::Impossible("there is no valgrind here (apt-get install valgrind)".into()));
    }
    let folder = Folder::new()?;
    let (inside, sections) = instructions(&folder.0)?;
    let stores = shared_stores(&folder.0)?;
    if sections.len() != inside.subjects.len() || stores.len() != sections.len() {
        return Err(Failure::Broken("valgrind has not seen each section".into()));
    }
    let per_time = |[once, twice]: &Sections| {
        let per_time = |index: usize| (to_f64(twice[index]) - to_f64(once[index])) / f64::from(TIMES);
        [per_time(0), per_time(1), per_time(2)]
    };
    let alone =
        inside.subjects.iter().position(|(name, _)| name == LOOP).map(|index| per_time(&sections[index]));
    let alone = alone.ok_or_else(|| Failure::Broken("the loop alone is not among the subjects".into()))?;
    let figures =
        inside.subjects.iter().zip(sections.iter().zip(stores)).map(|((name, _), (section, shared))| {
            let [instructions, reads, writes] = per_time(section);
            let figures = Figures {
                instructions: instructions - alone[0],
                reads: reads - alone[1],
                writes: writes - alone[2],
                shared,
            };
            (name.clone(), figures)
        });
    Ok(Record { environment: environment(), figures: figures.filter(|(name, _)| name != LOOP).collect() })
}

#[allow(clippy::cast_precision_loss)] // counts of a few millions
fn to_f64(count: u64) -> f64 {
    count as f64
}

/// A folder for what valgrind writes, removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("instructions-{}", std::process::id()));
        fs::create_dir_all(&path).map_err(|error| broken(&path, &error))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn broken(what: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::Broken(format!("{}: {error}", what.display()))
}

fn valgrind(tool: &str) -> Command {
    let mut valgrind = Command::new("valgrind");
    // Whatever the user has set for other purposes does not change the counts.
    valgrind.args([&format!("--tool={tool}"), "--command-line-only=yes"]);
    valgrind
}

fn program() -> Result<PathBuf, Failure> {
    std::env::current_exe().map_err(|error| Failure::Broken(error.to_string()))
}

/// Instructions, data reads and data writes of both sections of each subject.
fn instructions(folder: &Path) -> Result<(Inside, Vec<Sections>), Failure> {
    let out = folder.join("out");
    let output = valgrind("callgrind")
        // Counts data reads and writes, too.
        .arg("--cache-sim=yes")
        // The thread behind `TickClock` is not what is counted.
        .arg("--separate-threads=yes")
        .arg("--dump-after=*section_ends*")
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program()?)
        .args([INSIDE, &TIMES.to_string()])
        .output()
        .map_err(|error| Failure::Broken(error.to_string()))?;
    let inside = Inside::of(&output)?;
    let section = |number: usize| {
        let path = PathBuf::from(format!("{}.{number}-01", out.display()));
        let text = fs::read_to_string(&path).map_err(|error| broken(&path, &error))?;
        counts(&text).ok_or_else(|| broken(&path, &"has no totals"))
    };
    // Three for each subject; the first is its warm-up. They are numbered from 1.
    let sections =
        (0..inside.subjects.len()).map(|index| Ok([section(3 * index + 2)?, section(3 * index + 3)?]));
    let sections = sections.collect::<Result<_, _>>()?;
    Ok((inside, sections))
}

/// The totals of one of callgrind's files.
fn counts(text: &str) -> Option<[u64; 3]> {
    let events = text.lines().find_map(|line| line.strip_prefix("events: "))?;
    if !events.starts_with("Ir Dr Dw") {
        return None;
    }
    let totals = text.lines().find_map(|line| line.strip_prefix("totals: "))?;
    let mut totals = totals.split_whitespace().map(|count| count.parse().ok());
    Some([totals.next()??, totals.next()??, totals.next()??])
}

/// How often each subject stores to what other threads read, doing it once.
fn shared_stores(folder: &Path) -> Result<Vec<u64>, Failure> {
    // Into a file: the output of the program itself has to come apart from the trace.
    let trace = folder.join("trace");
    let output = valgrind("lackey")
        .args(["--trace-mem=yes", &format!("--log-file={}", trace.display())])
        .arg(program()?)
        .args([INSIDE, "1"])
        .output()
        .map_err(|error| Failure::Broken(error.to_string()))?;
    let inside = Inside::of(&output)?;
    let lines = BufReader::new(fs::File::open(&trace).map_err(|error| broken(&trace, &error))?).lines();
    let mut stores = Vec::new();
    // Of each subject three sections, as above; the second does it once.
    let (mut section, mut hits) = (0, 0);
    for line in lines {
        let line = line.map_err(|error| broken(&trace, &error))?;
        let Some(address) = stored_to(&line) else { continue };
        if address == inside.marker {
            if section % 3 == 1 {
                stores.push(hits);
            }
            (section, hits) = (section + 1, 0);
        } else if let Some((_, shared)) = inside.subjects.get(section / 3)
            && shared.iter().any(|(start, end)| (*start..*end).contains(&address))
        {
            hits += 1;
        }
    }
    Ok(stores)
}

/// The address of a store or of a change in place; `None`: the line tells of something else.
fn stored_to(line: &str) -> Option<u64> {
    let address = line.strip_prefix(" S ").or_else(|| line.strip_prefix(" M "))?;
    u64::from_str_radix(address.split_once(',')?.0, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_totals_of_a_file_are_read() {
        let text = "version: 1\nevents: Ir Dr Dw I1mr\n\nfn=(1) x\n1 2 3 4\n\ntotals: 30 20 10 0\n";
        assert_eq!(counts(text), Some([30, 20, 10]));
        assert_eq!(counts("events: Ir\ntotals: 30\n"), None);
    }

    #[test]
    fn stores_are_told_from_loads_and_instructions() {
        assert_eq!(stored_to(" S 1ffe,8"), Some(0x1ffe));
        assert_eq!(stored_to(" M 04222c,4"), Some(0x4222c));
        for line in [" L 1ffe,8", "I  0400d7d4,3", "==123== Lackey", ""] {
            assert_eq!(stored_to(line), None, "{line}");
        }
    }

    #[test]
    fn what_the_half_inside_prints_is_understood() {
        let inside = Inside::parse("77\nget, fresh\t16-32,64-72\nloop\t\n").unwrap();
        assert_eq!(inside.marker, 77);
        assert_eq!(inside.subjects[0], ("get, fresh".to_owned(), vec![(16, 32), (64, 72)]));
        assert_eq!(inside.subjects[1], ("loop".to_owned(), vec![]));
        assert!(Inside::parse("no number\n").is_none());
    }
}
