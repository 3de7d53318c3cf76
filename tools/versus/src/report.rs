//! The page: what was measured, what it was measured on, and what each table means.

pub(crate) mod notify;

use crate::contest::{Builds, Card, Large, Meanwhile, Small, Value};
use crate::contestants;
use crate::data::{Spread, Table, median, quantile, readable};
use crate::machine;
use crate::parts::{ARITHMETIC_ON_TWO, EVERY, Goal, LOOP, Part, Row, THREADS, keyed, rows};
use crate::picture::{Line, Picture};
use std::fmt::Write as _;
use std::path::Path;

const COMMAND: &str = "cargo run --release -p versus";

/// The whole page.
pub(crate) fn page(tables: &[(Part, Table)]) -> String {
    let of = |part| table(tables, part);
    let mut page = format!(
        "# Side by side\n\nThe same work with this crate's cells and with the usual alternatives, in one run: \
         `{COMMAND}`. It takes some minutes and writes this page, its pictures and its raw data \
         ([benchmarks/](benchmarks): one line for each series, one figure for each round). Each part can be run \
         separately (`-- --help`).\n\n"
    );
    page += &origins(tables);
    page += METHOD;
    if let Some(table) = of(Part::Ratios) {
        page += &ratios(table, of(Part::Wakeup));
    }
    page += &of(Part::Fresh).map(fresh).unwrap_or_default();
    page += &of(Part::Building).map(building).unwrap_or_default();
    page += &of(Part::Refresh).map(refresh).unwrap_or_default();
    page += &of(Part::Stampede).map(stampede).unwrap_or_default();
    page += &of(Part::Keyed).map(many_keys).unwrap_or_default();
    if of(Part::Notify).is_some() {
        page += "## Notifications\n\nSubscriptions beside tokio's `watch`, and derived values: \
                 [a page of its own](benchmarks/notify.md).\n\n";
    }
    page += &participants();
    page
}

fn table(tables: &[(Part, Table)], part: Part) -> Option<&Table> {
    tables.iter().find(|(of, _)| *of == part).map(|(_, table)| table)
}

/// Where each part was measured: once, where it was the same machine.
fn origins(tables: &[(Part, Table)]) -> String {
    let machine_of =
        |table: &Table| table.origin.rsplit_once("; ").map_or("", |(machine, _)| machine).to_owned();
    let how = |table: &Table| table.origin.rsplit_once("; ").map_or("", |(_, how)| how).to_owned();
    let Some((_, first)) = tables.first() else { return "Nothing has been measured.\n\n".to_owned() };
    let same = tables.iter().all(|(_, table)| machine_of(table) == machine_of(first));
    let mut text = String::new();
    if same {
        let _ = write!(text, "Measured on: {}.\n\n", machine_of(first));
    }
    for (part, table) in tables {
        let described = if same { how(table) } else { table.origin.clone() };
        let _ = writeln!(text, "- {}: {described}", part.name());
    }
    text.push('\n');
    text
}

const METHOD: &str = "\
How it is measured. Every contestant is compiled into the same loops, which call one read after the other and look at
the first word of the value. The address of the handle is hidden from the compiler before each read, and the word that
was read after it, so no read can be left out or merged with another. There are four variants of each loop, with 1, 2,
3 and 4 reads in its body, and the rounds take them in turns, so that no figure hangs on how one loop happens to lie in
memory. Contestants take turns within each round. Each part runs in a process of its own. Tables show the median over
the rounds, and in brackets the middle half of them.

Names: a ttl that a library does not check itself is checked by hand, with `Instant::now` where the name says *exact
clock*, and with the same coarse clock that this crate uses where it says *coarse clock*, which is the best that one
can write. Rows in bold are this crate's.

";

fn ratios(table: &Table, wakeup: Option<&Table>) -> String {
    let mut text = String::from(
        "## Goals\n\n![Each ratio with its goal](benchmarks/ratios.svg)\n\nPairs, measured one right \
         after the other on one thread (unless the name says two). The ratio is taken in each round, and the median \
         of the ratios decides. *Less the loop* is the same ratio when what the loop itself costs is taken from both \
         sides. The right-hand sides are the least that can be written: one load, one reading of the coarse clock \
         without a conversion, one comparison with a deadline that never moves, and no protection at all. Two \
         threads that were not caught at the same time, since one of them waited for a core, are measured again.\n\n\
         | operation | ns | held against | ns | ratio | less the loop | goal | reached |\n\
         |---|--:|---|--:|--:|--:|--:|---|\n",
    );
    let empty = table.get(&[LOOP, "", "alone"]).map_or(0.0, median);
    let (mut reached, mut goals) = (0, 0);
    for row in rows() {
        let Some((first, second)) = pair(table, &row) else { continue };
        let less: Vec<f64> =
            first.iter().zip(second).map(|(first, second)| (first - empty) / (second - empty)).collect();
        let line = Verdict { row: &row, first, second, less: Some(&less), unit: "" };
        text += &line.line(&mut reached, &mut goals);
        if row.first == "set"
            && let Some(wakeup) = wakeup
            && let (Some(cell), Some(condvar)) = (wakeup.get(&["cell"]), wakeup.get(&["condvar"]))
        {
            let row = Row::of_wakeup();
            let line = Verdict { row: &row, first: cell, second: condvar, less: None, unit: " ms" };
            text += &line.line(&mut reached, &mut goals);
        }
    }
    let _ = write!(text, "\n{reached} of {goals} goals are reached in this run.\n\n");
    text += &pieces(table);
    text += "`arc_swap::Cache::load` is not marked to be inlined, and whether the compiler does it changes from \
             build to \
             build of the same program: it has been seen at about 0.5 ns and at 1.2 ns. The rows that compare a \
             version \
             by hand are the floor whatever the compiler does.\n\n";
    if let Some(wakeup) = wakeup {
        text += &wakeup_notes(wakeup);
    }
    text
}

/// The figures of both sides.
fn pair<'a>(table: &'a Table, row: &Row) -> Option<(&'a [f64], &'a [f64])> {
    let side = |side| table.get(&[row.first, row.second, side]);
    Some((side("first")?, side("second")?))
}

fn quotients(first: &[f64], second: &[f64], goal: Goal) -> Vec<f64> {
    first
        .iter()
        .zip(second)
        .map(|(first, second)| match goal {
            Goal::TimesAsFast(_) => second / first,
            Goal::AtMost(_) | Goal::None => first / second,
        })
        .collect()
}

struct Verdict<'a> {
    row: &'a Row,
    first: &'a [f64],
    second: &'a [f64],
    less: Option<&'a [f64]>,
    unit: &'static str,
}

impl Verdict<'_> {
    fn line(&self, reached: &mut u32, goals: &mut u32) -> String {
        let Self { row, first, second, less, unit } = self;
        let ratio = Spread::of(&quotients(first, second, row.goal));
        let (goal, met) = match row.goal {
            Goal::AtMost(most) => (format!("≤ {most}"), Some(ratio.median <= most)),
            Goal::TimesAsFast(least) => (format!("≥ {least} times as fast"), Some(ratio.median >= least)),
            Goal::None => ("–".to_owned(), None),
        };
        *goals += u32::from(met.is_some());
        *reached += u32::from(met == Some(true));
        let verdict = met.map_or("", |met| if met { "yes" } else { "**no**" });
        let less = match (less, row.goal) {
            (Some(less), Goal::AtMost(_) | Goal::None) => readable(median(less)),
            (Some(less), Goal::TimesAsFast(_)) => readable(1.0 / median(less)),
            (None, _) => String::new(),
        };
        format!(
            "| {} | {}{unit} | {} | {}{unit} | {} ({} to {}) | {less} | {goal} | {verdict} |\n",
            row.first,
            readable(median(first)),
            row.second,
            readable(median(second)),
            readable(ratio.median),
            readable(ratio.low),
            readable(ratio.high),
        )
    }
}

/// What the operations are made of, in the same run.
fn pieces(table: &Table) -> String {
    let mut text = String::from(
        "The parts of these operations, measured in the same rounds:\n\n| alone | ns |\n|---|--:|\n",
    );
    let alone = |name: &str| table.spread(&[name, "", "alone"]);
    for series in &table.series {
        if let [name, _, side] = &series.key[..]
            && side == "alone"
        {
            let _ = writeln!(text, "| {name} | {} |", spread(Spread::of(&series.rounds)));
        }
    }
    text.push('\n');
    let of = |first: &str, side: &str| {
        let row = rows().into_iter().find(|row| row.first == first)?;
        pair(table, &row).map(|(one, other)| median(if side == "first" { one } else { other }))
    };
    if let (Some(set), Some(swap), Some(now), Some(lock), Some(count)) = (
        of("set", "first"),
        of("set", "second"),
        alone("SystemClock::now"),
        alone("lock and unlock a parking_lot::Mutex"),
        alone("clone + drop of an Arc"),
    ) {
        let _ = write!(
            text,
            "`set` takes {} ns more than the bare swap. It does more: it reads the exact clock, from which the ttl \
             counts ({} ns), it takes a lock for elections and the fence ({} ns), and it returns an `Arc` ({} ns). \
             The rest, {} ns, writes the record of the publication.\n\n",
            readable(set - swap),
            readable(now.median),
            readable(lock.median),
            readable(count.median),
            readable(set - swap - now.median - lock.median - count.median),
        );
    }
    if let Some((two, one)) =
        rows().iter().find(|row| row.first == ARITHMETIC_ON_TWO).and_then(|row| pair(table, row))
    {
        let ratio = median(&quotients(two, one, Goal::None));
        let _ = write!(
            text,
            "The arithmetic shares nothing: that it takes {} times as long on two threads is what this machine adds to \
             the other rows on two threads.\n\n",
            readable(ratio)
        );
    }
    text
}

fn wakeup_notes(table: &Table) -> String {
    let of = |way: &str| table.spread(&[way]);
    let (Some(cell), Some(condvar), Some(park)) = (of("cell"), of("condvar"), of("park")) else {
        return String::new();
    };
    format!(
        "The wake-up, in milliseconds from the publication until the last waiter runs: {} in a cell, {} with a \
         `parking_lot::Condvar` and its mutex, {} when the threads are parked and the waker has a list of them, which \
         is the floor.\n\n",
        spread(cell),
        spread(condvar),
        spread(park)
    )
}

fn fresh(table: &Table) -> String {
    let mut text = String::from(
        "## Reads of a value that is up to date\n\n![Nanoseconds per read](benchmarks/fresh.svg)\n\nNanoseconds of \
         processor time per read: the time of the window, times the cores that were busy, by the number of reads. \
         So with more threads the figures show their effect on each other, not that they take turns.\n\n",
    );
    for value in [Small::SIZE, Large::SIZE] {
        let headings: Vec<String> = THREADS
            .iter()
            .map(|threads| format!("{threads} thread{}", if *threads == 1 { "" } else { "s" }))
            .collect();
        text += &grid(&format!("value of {value}"), &headings, |card| {
            THREADS
                .iter()
                .map(|threads| table.spread(&[card.name, value, &threads.to_string()]).map(spread))
                .collect()
        });
    }
    text += "**With more cores.** A read slows others down only by what it writes to memory that they use too. \
             `cargo run --release -p instructions` counts those stores: none in `load_or_refresh`, `Reader` and \
             `arc_swap`'s `load` and `Cache`, so nothing in them grows with the number of cores. Two in \
             `get_or_refresh` (the count of the `Arc`, up and down), and more in a lock: their cache line goes \
             from core to core at each read, so all cores together read no more often than it can move, and each \
             further core makes a single read slower. The step from one thread to two shows the price of one such \
             move on this machine. With many cores, keep a `Reader` or use `load_or_refresh`; if an owned value is \
             needed, `Reader::get_owned` counts in a line of that reader's own.\n\n";
    text
}

fn building(table: &Table) -> String {
    let mut text = String::from(
        "## Reads while one thread builds\n\n![Latency of reads during a build](benchmarks/building.svg)\n\nThe \
         value is out of date, and the first thread that reads it builds a new one, which takes 100 ms of waiting. \
         The table shows how many reads the other threads complete meanwhile (all together, per second), and how \
         long their reads take. \
         Percentiles are medians over the rounds; the last column is the longest read of all rounds. A clock is read \
         once per read, which is part of each latency.\n\n",
    );
    let latency = |name: &str, measure: &str| table.get(&[name, measure]).map(|nanos| time(median(nanos)));
    text += &grid(
        "contestant",
        &["reads per second", "p50", "p99", "p99.9", "max", "longest", "builds [1]"].map(String::from),
        |card| {
            let name = card.name;
            vec![
                table.get(&[name, "reads per second"]).map(|rate| readable(median(rate))),
                latency(name, "p50 ns"),
                latency(name, "p99 ns"),
                latency(name, "p99.9 ns"),
                latency(name, "max ns"),
                table.get(&[name, "max ns"]).map(|nanos| time(quantile(nanos, 1.0))),
                table.get(&[name, "builds"]).map(|builds| readable(median(builds)).replace(".00", "")),
            ]
        },
    );
    text += "- [1] Builds of the value that was out of date. If there is more than one, the library does not \
             prevent a second build while one runs, and each caller waits for its own.\n\
             - If no read completes during the build, the old value cannot be served: readers wait for the lock, or \
             for the caller that the library has elected.\n\
             - Contestants that never expire are left out.\n\n";
    text
}

fn refresh(table: &Table) -> String {
    let mut text = String::from(
        "## Reads while the value is replaced\n\n![Reads per second](benchmarks/refresh.svg)\n\nMillions of reads per \
         second, all threads together, while the value is rebuilt as soon as it is out of date. In brackets: the \
         rebuilds per second. The build only fills the value.\n\n",
    );
    for value in [Small::SIZE, Large::SIZE] {
        let headings: Vec<String> = EVERY.iter().map(|(every, _)| format!("ttl {every} ms")).collect();
        text += &grid(&format!("value of {value}"), &headings, |card| {
            EVERY
                .iter()
                .map(|(every, _)| {
                    let every = every.to_string();
                    let of = |measure| table.get(&[card.name, value, &every, measure]).map(median);
                    let (reads, builds) = (of("reads per second")?, of("builds per second")?);
                    Some(if card.traits.expires {
                        format!("{} ({})", readable(reads / 1e6), readable(builds))
                    } else {
                        readable(reads / 1e6)
                    })
                })
                .collect()
        });
    }
    text += "- A ttl that is checked with the coarse clock alone is noticed a kernel tick or two too late, so it is \
             replaced less often than it should be with a ttl of 1 or 10 ms. This crate asks the exact clock when a \
             deadline is as near as the coarse clock may lag: its values are replaced on time, and with so short a ttl \
             each of its reads pays for that.\n\
             - Contestants without protected builds may build several times for one expiry.\n\n";
    text
}

fn stampede(table: &Table) -> String {
    let mut text = String::from(
        "## An empty cell and many threads\n\nAll threads read the value at once, and there is none. A build waits for \
         20 ms, as for a database, and then computes for 1 ms.\n\n",
    );
    text += &grid("contestant", &["builds", "ms until all have the value"].map(String::from), |card| {
        vec![
            table.get(&[card.name, "builds"]).map(|builds| readable(median(builds)).replace(".00", "")),
            table.spread(&[card.name, "ms until all have it"]).map(spread),
        ]
    });
    text
}

fn many_keys(table: &Table) -> String {
    let mut text = String::from(
        "## Many keys\n\n`DogpileMap` of the crate `dogpile-map`, and what one would pick instead. Hits: reads of keys \
         that are there, 1,000 of them in random order or one, by so many threads, in ns for which a thread is busy; values are `u64`s in `Arc`s. Misses: \
         reads of new keys, which cost nothing to build, with an eviction each; also while 512 other threads are alive. \
         Memory: resident bytes per entry of a full cache of a million, in a process of its own. Hit ratio: a million \
         keys, Zipf 0.9, places for a tenth of them. Rebuild: what a second thread gets done while the first one \
         rebuilds a key, for 100 ms; the others would build it a second time. quick_cache and foyer-memory have no \
         ttl: they are what a hit costs without one.\n\n![Hits](benchmarks/keyed.svg)\n\n![Misses](benchmarks/keyed_misses.svg)\n\n",
    );
    let mut measures: Vec<&str> = Vec::new();
    for series in &table.series {
        if !measures.contains(&series.key[1].as_str()) {
            measures.push(&series.key[1]);
        }
    }
    let _ = writeln!(text, "| | {} |\n|---|{}", keyed::ALL.join(" | "), "---|".repeat(keyed::ALL.len()));
    for measure in measures {
        let cell = |name: &&str| table.spread(&[name, measure]).map_or_else(|| "–".to_owned(), spread);
        let cells: Vec<String> = keyed::ALL.iter().map(cell).collect();
        let _ = writeln!(text, "| {measure} | {} |", cells.join(" | "));
    }
    text += "\nWhat the map is held to:\n\n| goal | | |\n|---|---|---|\n";
    for Target { what, measure, of, goal } in TARGETS {
        let figure = |name: &str| table.get(&[name, measure]).map(median);
        let Some(own) = figure(keyed::MAP) else { continue };
        let figure = match of {
            None => own,
            Some(other) => own / figure(other).unwrap_or(f64::NAN),
        };
        let (verdict, bound) = match goal {
            Bound::AtMost(most) => (figure <= most, format!("at most {}", readable(most))),
            Bound::AtLeast(least) => (figure >= least, format!("at least {}", readable(least))),
        };
        let _ = writeln!(
            text,
            "| {what}: {bound} | {} | {} |",
            readable(figure),
            if verdict { "reached" } else { "**missed**" }
        );
    }
    text.push('\n');
    text
}

/// What the map is held to, as a share of what another one takes, or by itself.
struct Target {
    what: &'static str,
    measure: &'static str,
    of: Option<&'static str>,
    goal: Bound,
}

enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

const TARGETS: [Target; 9] = [
    Target {
        what: "a hit, one thread, of moka's time",
        measure: "ns per hit of 1000 keys by 1",
        of: Some(keyed::MOKA),
        goal: Bound::AtMost(0.2),
    },
    Target {
        what: "a hit, two threads, of moka's time",
        measure: "ns per hit of 1000 keys by 2",
        of: Some(keyed::MOKA),
        goal: Bound::AtMost(0.2),
    },
    Target {
        what: "a hit, one thread, of quick_cache's time",
        measure: "ns per hit of 1000 keys by 1",
        of: Some(keyed::BARE),
        goal: Bound::AtMost(1.3),
    },
    Target {
        what: "a hit, two threads, of quick_cache's time",
        measure: "ns per hit of 1000 keys by 2",
        of: Some(keyed::BARE),
        goal: Bound::AtMost(1.3),
    },
    Target {
        what: "a hit, one thread, of the time of quick_cache with deadlines",
        measure: "ns per hit of 1000 keys by 1",
        of: Some(keyed::DEADLINES),
        goal: Bound::AtMost(1.3),
    },
    Target {
        what: "resident bytes per entry",
        measure: "resident bytes per entry",
        of: None,
        goal: Bound::AtMost(100.0),
    },
    Target {
        what: "hit ratio, of moka's",
        measure: "hit ratio",
        of: Some(keyed::MOKA),
        goal: Bound::AtLeast(1.0),
    },
    Target {
        what: "reads that wait while a hot key is rebuilt",
        measure: "reads that wait for it",
        of: None,
        goal: Bound::AtMost(0.0),
    },
    Target {
        what: "reads that are served while a hot key is rebuilt",
        measure: "reads during a rebuild",
        of: None,
        goal: Bound::AtLeast(1_000.0),
    },
];

fn participants() -> String {
    let mut text = String::from(
        "## The contestants\n\n| contestant | one build at a time | the old value during a build | expires |\n\
         |---|---|---|---|\n",
    );
    for card in contestants::all::<Small>() {
        let yes = |is| if is { "yes" } else { "no" };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} |",
            name(&card),
            yes(card.traits.builds == Builds::One),
            if card.traits.expires { yes(card.traits.meanwhile == Meanwhile::Stale) } else { "–" },
            yes(card.traits.expires),
        );
    }
    text += "\n- The locks: there is one build at a time because it runs under the lock, so no thread reads \
             meanwhile. The same holds for left-right, whose writer is behind a mutex.\n\
             - arc_swap, hazarc, arcshift and tokio's watch only publish values. They do not limit the number of \
             builds, and no such limit was written by hand here. With watch, a separate task would usually send the \
             values.\n\
             - moka and quick_cache are caches of many keys, used here with one. quick_cache has no ttl, so the \
             time is stored with the value.\n\
             - cached: `#[once]`, and `#[cached]` where there is an argument, with a ttl and with `sync_writes`, which \
             is not the default.\n\
             - kovan: its guards are cheaper than arc-swap's, at the price of values that stay alive. Of 400 values that \
             are replaced one after the other, all are alive until `kovan::flush()` is called, and the contestant does \
             not call it. It limits the number of builds as little as arc_swap does.\n\
             - hitbox: an `async` function under `#[cached]`, on moka, with one build at a time and with the old value \
             during a build, neither of which is the default. It keeps values as bytes, so that each read decodes the \
             value: here with bincode, the quicker of its formats. A build behind an old value runs on tokio's threads.\n\
             - Contestants without expiry are the lower bound: a read that checks nothing.\n\n";
    text += "Releases: ";
    let crates = [
        "dogpile",
        "arc-swap",
        "parking_lot",
        "once_cell",
        "hazarc",
        "arcshift",
        "kovan",
        "left-right",
        "tokio",
        "moka",
        "quick_cache",
        "cached",
        "hitbox",
        "rustix",
    ];
    let releases: Vec<String> =
        crates.iter().map(|name| format!("{name} {}", machine::version(name))).collect();
    text += &releases.join(", ");
    text += ".\n";
    text
}

/// A table with one line for each contestant of which there is anything to show.
fn grid(corner: &str, headings: &[String], cells: impl Fn(&Card<Small>) -> Vec<Option<String>>) -> String {
    let mut text =
        format!("| {corner} | {} |\n|---|{}\n", headings.join(" | "), "--:|".repeat(headings.len()));
    for card in contestants::all::<Small>() {
        let cells = cells(&card);
        if cells.iter().any(Option::is_some) {
            let cells: Vec<String> =
                cells.into_iter().map(|cell| cell.unwrap_or_else(|| "–".into())).collect();
            let _ = writeln!(text, "| {} | {} |", name(&card), cells.join(" | "));
        }
    }
    text.push('\n');
    text
}

fn name<V>(card: &Card<V>) -> String {
    if card.own { format!("**{}**", card.name) } else { card.name.to_owned() }
}

fn spread(Spread { low, median, high }: Spread) -> String {
    format!("{} ({}–{})", readable(median), readable(low), readable(high))
}

fn time(nanos: f64) -> String {
    match nanos {
        nanos if nanos < 999.5 => format!("{nanos:.0} ns"),
        nanos if nanos < 999_500.0 => format!("{} µs", readable(nanos / 1e3)),
        nanos => format!("{} ms", readable(nanos / 1e6)),
    }
}

/// The pictures, beside the raw data.
pub(crate) fn draw(tables: &[(Part, Table)], beside: &Path) -> anyhow::Result<()> {
    let lines = |dots: &dyn Fn(&Card<Small>) -> Vec<Option<Spread>>| -> Vec<Line> {
        contestants::all::<Small>()
            .iter()
            .map(|card| Line { name: card.name.to_owned(), own: card.own, dots: dots(card), goal: None })
            .filter(|line| line.dots.iter().any(Option::is_some))
            .collect()
    };
    if let Some(fresh) = table(tables, Part::Fresh) {
        let of = |card: &Card<Small>, threads: &str| fresh.spread(&[card.name, Small::SIZE, threads]);
        Picture {
            title: "A read of a value that is up to date",
            axis: "nanoseconds of processor time per read (8 B)",
            legend: &["1 thread", "2 threads", "8 threads"],
            rows: lines(&|card| vec![of(card, "1"), of(card, "2"), of(card, "8")]),
        }
        .save(&beside.join("fresh.svg"))?;
    }
    if let Some(building) = table(tables, Part::Building) {
        let of = |card: &Card<Small>, measure: &str| building.spread(&[card.name, measure]);
        Picture {
            title: "A read while another thread builds for 100 ms",
            axis: "nanoseconds per read, the reading of a clock included",
            legend: &["p50", "p99.9", "max"],
            rows: lines(&|card| vec![of(card, "p50 ns"), of(card, "p99.9 ns"), of(card, "max ns")]),
        }
        .save(&beside.join("building.svg"))?;
    }
    if let Some(refresh) = table(tables, Part::Refresh) {
        let of = |card: &Card<Small>, every: &str| {
            refresh.spread(&[card.name, Small::SIZE, every, "reads per second"])
        };
        Picture {
            title: "Reads while the value is replaced all the time",
            axis: "reads per second, all threads together (8 B)",
            legend: &["ttl 100 ms", "ttl 10 ms", "ttl 1 ms"],
            rows: lines(&|card| vec![of(card, "100"), of(card, "10"), of(card, "1")]),
        }
        .save(&beside.join("refresh.svg"))?;
    }
    if let Some(table) = table(tables, Part::Keyed) {
        let rows = |measures: &[&str]| -> Vec<Line> {
            let line = |name: &&str| Line {
                name: (*name).to_owned(),
                own: *name == keyed::MAP,
                dots: measures.iter().map(|measure| table.spread(&[name, measure])).collect(),
                goal: None,
            };
            keyed::ALL.iter().map(line).filter(|line| line.dots.iter().any(Option::is_some)).collect()
        };
        Picture {
            title: "A hit, of 1,000 keys",
            axis: "nanoseconds of processor time per read",
            legend: &["1 thread", "2 threads", "1 thread beside 512"],
            rows: rows(&[
                "ns per hit of 1000 keys by 1",
                "ns per hit of 1000 keys by 2",
                "ns per hit beside 512 threads",
            ]),
        }
        .save(&beside.join("keyed.svg"))?;
        Picture {
            title: "A miss, with an eviction, beyond the build itself",
            axis: "nanoseconds of processor time per read",
            legend: &["1 thread", "1 thread beside 512"],
            rows: rows(&["ns per miss", "ns per miss beside 512 threads"]),
        }
        .save(&beside.join("keyed_misses.svg"))?;
    }
    if let Some(ratios) = table(tables, Part::Ratios) {
        Picture {
            title: "Each ratio with its goal",
            axis: "ratio (further left is faster)",
            legend: &["median and middle half"],
            rows: ratio_lines(ratios, table(tables, Part::Wakeup)),
        }
        .save(&beside.join("ratios.svg"))?;
    }
    if let Some(notify) = table(tables, Part::Notify) {
        notify::draw(notify, beside)?;
    }
    Ok(())
}

/// Those that have a goal. *n times as fast* is drawn as one nth.
fn ratio_lines(ratios: &Table, wakeup: Option<&Table>) -> Vec<Line> {
    let wakeup = wakeup
        .and_then(|wakeup| Some((Row::of_wakeup(), (wakeup.get(&["cell"])?, wakeup.get(&["condvar"])?))));
    let pairs = rows().into_iter().filter_map(|row| {
        let figures = pair(ratios, &row)?;
        Some((row, figures))
    });
    pairs
        .chain(wakeup)
        .filter_map(|(row, (first, second))| {
            let goal = match row.goal {
                Goal::AtMost(most) => most,
                Goal::TimesAsFast(least) => 1.0 / least,
                Goal::None => return None,
            };
            let dots = vec![Some(Spread::of(&quotients(first, second, Goal::None)))];
            let name = match row.goal {
                Goal::TimesAsFast(_) => {
                    let second = row.second.split('<').next().unwrap_or(row.second);
                    format!("{} / {second}", row.first)
                }
                _ => row.first.to_owned(),
            };
            Some(Line { name, own: false, dots, goal: Some(goal) })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ratio_table(cost: f64) -> Table {
        let mut table = Table::new("a machine; 3 rounds", &["first", "second", "side"]);
        for row in rows() {
            for round in [1.0, 2.0, 3.0] {
                table.add(&[row.first, row.second, "first"], cost * round);
                table.add(&[row.first, row.second, "second"], round);
            }
        }
        table.add(&[LOOP, "", "alone"], 0.1);
        table
    }

    #[test]
    fn a_goal_is_reached_by_the_median_ratio_or_not() {
        let goals = rows().iter().filter(|row| row.goal != Goal::None).count();
        let good = ratios(&ratio_table(0.1), None);
        assert!(good.contains(&format!("{goals} of {goals} goals")) && !good.contains("**no**"), "{good}");
        let bad = ratios(&ratio_table(10.0), None);
        assert!(bad.contains(&format!("0 of {goals} goals")) && !bad.contains("| yes |"), "{bad}");
        // Within 1.05, but not twice as fast.
        let mixed = ratios(&ratio_table(1.0), None);
        assert!(mixed.contains("| yes |") && mixed.contains("**no**"), "{mixed}");
    }

    #[test]
    fn a_ratio_is_taken_in_each_round_and_not_of_the_medians() {
        let ratio = quotients(&[1.0, 20.0, 3.0], &[1.0, 10.0, 3.0], Goal::AtMost(1.05));
        assert_eq!(ratio, [1.0, 2.0, 1.0]);
        assert!((median(&ratio) - 1.0).abs() < 1e-9);
        assert_eq!(quotients(&[2.0], &[10.0], Goal::TimesAsFast(5.0)), [5.0]);
    }

    #[test]
    fn each_table_has_as_many_columns_in_each_line() {
        let mut wakeup = Table::new("a machine; 1 round", &["way"]);
        for way in ["cell", "condvar", "park"] {
            wakeup.add(&[way], 7.0);
        }
        let tables = vec![(Part::Ratios, ratio_table(1.0)), (Part::Wakeup, wakeup)];
        let text = page(&tables);
        assert!(text.contains("Condvar") && text.contains("7.00 ms"), "{text}");
        let mut columns = None;
        for line in text.lines() {
            let bars = line.matches('|').count();
            match columns {
                Some(columns) if line.starts_with('|') => assert_eq!(bars, columns, "{line}"),
                _ => columns = line.starts_with('|').then_some(bars),
            }
        }
    }

    #[test]
    fn parts_of_different_machines_say_so() {
        let tables = [
            (Part::Fresh, Table::new("one; 3 rounds", &["x"])),
            (Part::Stampede, Table::new("other; 2 rounds", &["x"])),
        ];
        let text = origins(&tables);
        assert!(
            text.contains("fresh: one; 3 rounds") && text.contains("stampede: other; 2 rounds"),
            "{text}"
        );
        assert!(origins(&tables[..1]).contains("Measured on: one."));
    }
}
