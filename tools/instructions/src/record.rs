//! Figures on paper: how they are kept, and what counts as grown.

use std::fmt::Write as _;

/// By how much a count may grow, in percent. Less than one instruction of a read.
const TOLERANCE: f64 = 2.0;

/// Of one read or write.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Figures {
    pub(crate) instructions: f64,
    /// Loads, from wherever.
    pub(crate) reads: f64,
    /// Stores, to wherever: most go to the stack and to what belongs to the thread.
    pub(crate) writes: f64,
    /// Stores to the cell and to the allocation of its value.
    pub(crate) shared: u64,
}

/// All figures, and what they were made with.
#[derive(Debug, PartialEq)]
pub(crate) struct Record {
    pub(crate) environment: String,
    pub(crate) figures: Vec<(String, Figures)>,
}

pub(crate) struct Comparison {
    pub(crate) has_grown: bool,
    pub(crate) report: String,
}

impl Record {
    pub(crate) fn to_text(&self) -> String {
        let mut text = String::from(
            "# Per read or write: instructions, loads, stores, stores to shared memory.\n\
             # Written by: cargo run --release -p instructions -- --update\n",
        );
        let _ = writeln!(text, "made with: {}", self.environment);
        for (name, figures) in &self.figures {
            let Figures { instructions, reads, writes, shared } = figures;
            let _ = writeln!(text, "{instructions:8.1} {reads:7.1} {writes:7.1} {shared:3}  {name}");
        }
        text
    }

    pub(crate) fn from_text(text: &str) -> Result<Self, String> {
        let mut environment = None;
        let mut figures = Vec::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some(made_with) = line.strip_prefix("made with: ") {
                environment = Some(made_with.to_owned());
            } else {
                figures.push(parse(line).ok_or_else(|| format!("not understood: {line}"))?);
            }
        }
        let environment = environment.ok_or("does not say what it was made with")?;
        Ok(Self { environment, figures })
    }

    pub(crate) fn to_markdown(&self) -> String {
        let mut text =
            String::from("| | instructions | loads | stores | shared stores |\n|---|--:|--:|--:|--:|\n");
        for (name, figures) in &self.figures {
            let Figures { instructions, reads, writes, shared } = figures;
            let _ = writeln!(text, "| {name} | {instructions:.0} | {reads:.0} | {writes:.0} | {shared} |");
        }
        text
    }

    /// What has become of the kept figures.
    pub(crate) fn compare(&self, now: &Self) -> Comparison {
        let mut report = String::new();
        let (mut has_grown, mut has_shrunk) = (false, false);
        let mut tell = |what: &str, name: &str, change: &str| {
            let _ = writeln!(report, "{what:7} {name}: {change}");
        };
        for (name, new) in &now.figures {
            let Some((_, old)) = self.figures.iter().find(|(kept, _)| kept == name) else {
                has_grown = true;
                tell("NEW", name, "has no kept figures");
                continue;
            };
            let changes = [
                ("instructions", old.instructions, new.instructions),
                ("loads", old.reads, new.reads),
                ("stores", old.writes, new.writes),
            ];
            for (unit, old, new) in changes {
                let change = format!("{old:.1} -> {new:.1} {unit}");
                if new > old * (1.0 + TOLERANCE / 100.0) {
                    has_grown = true;
                    tell("GROWN", name, &change);
                } else if new < old * (1.0 - TOLERANCE / 100.0) {
                    has_shrunk = true;
                    tell("shrunk", name, &change);
                }
            }
            if new.shared != old.shared {
                has_grown |= new.shared > old.shared;
                let what = if new.shared > old.shared { "GROWN" } else { "shrunk" };
                tell(what, name, &format!("{} -> {} stores to shared memory", old.shared, new.shared));
            }
        }
        for (name, _) in &self.figures {
            if !now.figures.iter().any(|(counted, _)| counted == name) {
                has_grown = true;
                tell("GONE", name, "is not counted any more");
            }
        }
        if has_grown || has_shrunk {
            report.push_str("if that is as it should be: cargo run --release -p instructions -- --update\n");
        } else {
            let _ = writeln!(report, "all {} within {TOLERANCE} % of what was kept", now.figures.len());
        }
        Comparison { has_grown, report }
    }
}

fn parse(line: &str) -> Option<(String, Figures)> {
    let mut rest = line;
    let mut column = || {
        let (column, left) = rest.trim_start().split_once(' ')?;
        rest = left;
        Some(column)
    };
    let figures = Figures {
        instructions: column()?.parse().ok()?,
        reads: column()?.parse().ok()?,
        writes: column()?.parse().ok()?,
        shared: column()?.parse().ok()?,
    };
    let name = rest.trim();
    (!name.is_empty()).then(|| (name.to_owned(), figures))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(figures: &[(&str, f64, u64)]) -> Record {
        let figures = figures.iter().map(|(name, instructions, shared)| {
            let figures = Figures { instructions: *instructions, reads: 5.0, writes: 0.0, shared: *shared };
            ((*name).to_owned(), figures)
        });
        Record { environment: "rustc 1.2.3; glibc 4.5".to_owned(), figures: figures.collect() }
    }

    #[test]
    fn what_is_written_can_be_read() {
        let record = record(&[("get, fresh", 8.0, 0), ("(set)", 1719.5, 12)]);
        assert_eq!(Record::from_text(&record.to_text()).unwrap(), record);
        assert!(Record::from_text("8 5 0 0 get\n").is_err());
        assert!(Record::from_text("made with: x\n8 5 get\n").is_err());
    }

    #[test]
    fn an_instruction_more_in_a_read_is_grown_and_one_less_is_not() {
        let kept = record(&[("get", 48.0, 0)]);
        let more = kept.compare(&record(&[("get", 49.0, 0)]));
        assert!(more.has_grown);
        assert!(more.report.starts_with("GROWN   get: 48.0 -> 49.0 instructions\n"), "{}", more.report);
        let less = kept.compare(&record(&[("get", 47.0, 0)]));
        assert!(!less.has_grown);
        assert!(less.report.starts_with("shrunk"), "{}", less.report);
    }

    #[test]
    fn within_the_tolerance_nothing_is_told() {
        let kept = record(&[("set", 1000.0, 9)]);
        let comparison = kept.compare(&record(&[("set", 1019.0, 9)]));
        assert!(!comparison.has_grown);
        assert!(comparison.report.starts_with("all 1 within"), "{}", comparison.report);
        assert!(kept.compare(&record(&[("set", 1021.0, 9)])).has_grown);
    }

    #[test]
    fn a_store_to_shared_memory_is_grown_at_any_size() {
        let kept = record(&[("get", 1000.0, 0)]);
        assert!(kept.compare(&record(&[("get", 1000.0, 1)])).has_grown);
    }

    #[test]
    fn a_name_on_one_side_only_is_told() {
        let (one, other) = (record(&[("get", 8.0, 0)]), record(&[("load", 8.0, 0)]));
        let comparison = one.compare(&other);
        assert!(comparison.has_grown);
        assert!(comparison.report.contains("NEW     load"), "{}", comparison.report);
        assert!(comparison.report.contains("GONE    get"), "{}", comparison.report);
    }
}
