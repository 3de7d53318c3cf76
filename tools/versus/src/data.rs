//! What is measured: series of figures, one for each round, kept as CSV; and what the tables show of them.

use anyhow::{Context, bail};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// One series: what it is of, and a figure for each round.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Series {
    pub(crate) key: Vec<String>,
    pub(crate) rounds: Vec<f64>,
}

/// What one part of the program has measured.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Table {
    /// Where and how: one line.
    pub(crate) origin: String,
    /// What the columns of the key are called.
    pub(crate) columns: Vec<String>,
    pub(crate) series: Vec<Series>,
}

impl Table {
    pub(crate) fn new(origin: &str, columns: &[&str]) -> Self {
        let columns = columns.iter().map(|&column| column.to_owned()).collect();
        Self { origin: origin.to_owned(), columns, series: Vec::new() }
    }

    /// Adds a figure to the series with that key, which is begun by its first figure.
    pub(crate) fn add(&mut self, key: &[&str], figure: f64) {
        if let Some(series) = self.series.iter_mut().find(|series| series.key == key) {
            series.rounds.push(figure);
        } else {
            let key = key.iter().map(|&word| word.to_owned()).collect();
            self.series.push(Series { key, rounds: vec![figure] });
        }
    }

    pub(crate) fn get(&self, key: &[&str]) -> Option<&[f64]> {
        self.series.iter().find(|series| series.key == key).map(|series| series.rounds.as_slice())
    }

    pub(crate) fn spread(&self, key: &[&str]) -> Option<Spread> {
        self.get(key).map(Spread::of)
    }

    pub(crate) fn save(&self, file: &Path) -> anyhow::Result<()> {
        fs::write(file, self.to_csv()).with_context(|| format!("cannot write {}", file.display()))
    }

    fn to_csv(&self) -> String {
        let mut text = format!("# {}\n{},rounds\n", self.origin, self.columns.join(","));
        for series in &self.series {
            text += &series.key.join(",");
            for &figure in &series.rounds {
                text.push(',');
                text += &significant(figure, 4);
            }
            text.push('\n');
        }
        text
    }

    /// `None` if there is no such file.
    pub(crate) fn load(file: &Path) -> anyhow::Result<Option<Self>> {
        if !file.exists() {
            return Ok(None);
        }
        let read = || Self::from_csv(&fs::read_to_string(file)?);
        read().with_context(|| format!("cannot read {}", file.display())).map(Some)
    }

    fn from_csv(text: &str) -> anyhow::Result<Self> {
        let mut lines = text.lines();
        let (Some(origin), Some(header)) = (lines.next(), lines.next()) else { bail!("it is too short") };
        let origin = origin.strip_prefix("# ").context("its first line is no comment")?;
        let header = header.strip_suffix(",rounds").context("its second line is no header")?;
        let mut table = Self::new(origin, &header.split(',').collect::<Vec<_>>());
        for line in lines {
            let mut words = line.split(',');
            let key: Vec<String> = words.by_ref().take(table.columns.len()).map(str::to_owned).collect();
            let rounds: Vec<f64> = words
                .map(str::parse)
                .collect::<Result<_, _>>()
                .with_context(|| format!("no number in: {line}"))?;
            if rounds.is_empty() {
                bail!("no figures in: {line}");
            }
            table.series.push(Series { key, rounds });
        }
        Ok(table)
    }
}

/// The middle of the figures, and the middle half of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

impl Spread {
    pub(crate) fn of(figures: &[f64]) -> Self {
        Self { low: quantile(figures, 0.25), median: quantile(figures, 0.5), high: quantile(figures, 0.75) }
    }
}

/// The figure below which `share` of them lie, between two of them in proportion.
pub(crate) fn quantile(figures: &[f64], share: f64) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[allow(clippy::cast_precision_loss, reason = "some hundreds of figures")]
    let place = (sorted.len() - 1) as f64 * share;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative, and in bounds")]
    let below = place.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * place.fract()
}

pub(crate) fn median(figures: &[f64]) -> f64 {
    quantile(figures, 0.5)
}

/// With so many significant digits, without an exponent.
pub(crate) fn significant(figure: f64, digits: i32) -> String {
    if figure == 0.0 || !figure.is_finite() {
        return figure.to_string();
    }
    #[allow(clippy::cast_possible_truncation, reason = "between -308 and 308")]
    let magnitude = figure.abs().log10().floor() as i32;
    let decimals = digits - 1 - magnitude;
    if decimals >= 0 {
        let text = format!("{figure:.*}", usize::try_from(decimals).unwrap_or(0));
        let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
        text.to_owned()
    } else {
        let unit = 10_f64.powi(-decimals);
        format!("{:.0}", (figure / unit).round() * unit)
    }
}

/// With two or three significant digits, and thousands apart.
pub(crate) fn readable(figure: f64) -> String {
    let text = match figure.abs() {
        size if size < 10.0 => format!("{figure:.2}"),
        size if size < 100.0 => format!("{figure:.1}"),
        _ => significant(figure, 3),
    };
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut spaced = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place).is_multiple_of(3) {
            spaced.push(',');
        }
        spaced.push(digit);
    }
    let _ = write!(spaced, "{rest}");
    spaced
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_the_figures_in_proportion() {
        let figures = [4.0, 1.0, 3.0, 2.0, 5.0];
        assert_eq!(Spread::of(&figures), Spread { low: 2.0, median: 3.0, high: 4.0 });
        assert!((quantile(&[1.0, 2.0], 0.5) - 1.5).abs() < 1e-9);
        assert!((quantile(&[7.0], 0.75) - 7.0).abs() < 1e-9);
    }

    #[test]
    fn figures_are_written_with_significant_digits() {
        let figures = [0.0, 0.012_345_6, 1.0, 12.345, 123.45, 123_456.0];
        let written: Vec<String> = figures.into_iter().map(|figure| significant(figure, 4)).collect();
        assert_eq!(written, ["0", "0.01235", "1", "12.35", "123.5", "123500"]);
        let read: Vec<String> = [0.5, 9.994, 31.46, 1234.0, 1_234_567.0].into_iter().map(readable).collect();
        assert_eq!(read, ["0.50", "9.99", "31.5", "1,230", "1,230,000"]);
    }

    #[test]
    fn what_is_saved_is_what_is_loaded() {
        let mut table = Table::new("a machine, idle", &["contestant", "threads"]);
        for round in [1.5, 2.25, 3.0] {
            table.add(&["one; of them", "1"], round);
            table.add(&["one; of them", "2"], 100.0 * round);
        }
        let text = table.to_csv();
        assert_eq!(Table::from_csv(&text).expect("a table"), table);
        assert_eq!(table.get(&["one; of them", "2"]), Some(&[150.0, 225.0, 300.0][..]));
        for broken in ["", "# x\n", "x\ny,rounds\n", "# x\nkey,rounds\na,b\n", "# x\nkey,rounds\na\n"] {
            assert!(Table::from_csv(broken).is_err(), "{broken:?}");
        }
    }
}
