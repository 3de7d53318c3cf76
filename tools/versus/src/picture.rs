//! Pictures: one row for each contestant, dots on a logarithmic axis, and the middle half of the rounds as a line.

use crate::data::{Spread, readable, significant};
use anyhow::Context;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::path::Path;

const WIDTH: u32 = 960;
/// The title and the legend; one row; the axis.
const HEAD: u32 = 64;
const ROW: u32 = 20;
const AXIS: u32 = 44;
/// The names, and the margin on the other side.
const NAMES: i32 = 310;
const MARGIN: i32 = 24;

const INK: RGBColor = RGBColor(0x26, 0x2b, 0x33);
const FAINT: RGBColor = RGBColor(0xd9, 0xdd, 0xe3);
/// What this crate's own rows stand on.
const OWN: RGBColor = RGBColor(0xee, 0xf3, 0xf8);

/// Colours that people with any kind of colour vision tell apart (Okabe and Ito).
const COLOURS: [RGBColor; 3] =
    [RGBColor(0x00, 0x72, 0xb2), RGBColor(0xe6, 0x9f, 0x00), RGBColor(0xcc, 0x79, 0xa7)];

/// A picture before it is drawn.
pub(crate) struct Picture<'a> {
    pub(crate) title: &'a str,
    /// What the axis shows.
    pub(crate) axis: &'a str,
    /// What the dots of a row stand for, at most three.
    pub(crate) legend: &'a [&'a str],
    pub(crate) rows: Vec<Line>,
}

/// A row of a picture.
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) own: bool,
    /// One for each entry of the legend.
    pub(crate) dots: Vec<Option<Spread>>,
    /// The figure that is to be reached.
    pub(crate) goal: Option<f64>,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Where a figure is on the axis.
struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    fn of(rows: &[Line]) -> Self {
        let dots = rows.iter().flat_map(|row| row.dots.iter().flatten());
        let figures = dots.flat_map(|dot| [dot.low, dot.high]).chain(rows.iter().filter_map(|row| row.goal));
        // Zero has no place on a logarithmic axis; what is zero is left out.
        let figures: Vec<f64> = figures.filter(|figure| *figure > 0.0).collect();
        let low = figures.iter().copied().fold(f64::MAX, f64::min);
        let high = figures.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        Self { low: low.min(high) * 0.8, high: high * 1.25 }
    }

    #[allow(clippy::cast_possible_truncation, reason = "a place in the picture")]
    fn place(&self, figure: f64) -> i32 {
        let share = (figure / self.low).ln() / (self.high / self.low).ln();
        let width = f64::from(WIDTH.cast_signed() - NAMES - MARGIN);
        NAMES + (share.clamp(0.0, 1.0) * width).round() as i32
    }

    /// 1, 2, 5, 10 and so on, or only the powers of ten where these are too many.
    fn ticks(&self) -> Vec<f64> {
        let decades = (self.high / self.low).log10();
        let steps: &[f64] = match decades {
            decades if decades < 3.5 => &[1.0, 2.0, 5.0],
            _ => &[1.0],
        };
        #[allow(clippy::cast_possible_truncation, reason = "between -308 and 308")]
        let (first, last) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
        let all = (first..=last).flat_map(|decade| steps.iter().map(move |step| step * 10_f64.powi(decade)));
        all.filter(|tick| (self.low..=self.high).contains(tick)).collect()
    }
}

impl Picture<'_> {
    pub(crate) fn save(&self, file: &Path) -> anyhow::Result<()> {
        let svg = self.svg().context("cannot draw the picture")?;
        std::fs::write(file, svg).with_context(|| format!("cannot write {}", file.display()))
    }

    fn svg(&self) -> anyhow::Result<String> {
        let mut svg = String::new();
        let rows = u32::try_from(self.rows.len())?;
        let height = HEAD + rows * ROW + AXIS;
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        // A ground of its own: the page around it may be dark.
        area.fill(&WHITE)?;
        self.heading(&area)?;
        let scale = Scale::of(&self.rows);
        let (top, bottom) = (HEAD.cast_signed(), (HEAD + rows * ROW).cast_signed());
        for (line, place) in self.rows.iter().zip((top..).step_by(ROW as usize)) {
            ground(&area, line, place)?;
        }
        for tick in scale.ticks() {
            let x = scale.place(tick);
            area.draw(&PathElement::new([(x, top), (x, bottom)], FAINT.stroke_width(1)))?;
            let text = if tick < 1.0 { significant(tick, 1) } else { readable(tick) };
            let text = text.trim_end_matches(".00").trim_end_matches(".0").to_owned();
            area.draw(&Text::new(text, (x, bottom + 6), style(12, HPos::Center, VPos::Top)))?;
        }
        let middle = i32::midpoint(NAMES, WIDTH.cast_signed());
        area.draw(&Text::new(self.axis, (middle, bottom + 24), style(12, HPos::Center, VPos::Top)))?;
        for (line, place) in self.rows.iter().zip((top..).step_by(ROW as usize)) {
            dots(&area, line, &scale, place + ROW.cast_signed() / 2)?;
        }
        area.present()?;
        drop(area);
        Ok(svg)
    }

    fn heading(&self, area: &Area<'_>) -> anyhow::Result<()> {
        let title = TextStyle::from(("sans-serif", 19).into_font().style(FontStyle::Bold)).color(&INK);
        area.draw(&Text::new(self.title, (18, 10), title))?;
        let mut x = NAMES;
        for (label, colour) in self.legend.iter().zip(COLOURS) {
            area.draw(&Circle::new((x, 46), 4, colour.filled()))?;
            area.draw(&Text::new(*label, (x + 10, 46), style(13, HPos::Left, VPos::Center)))?;
            x += 200;
        }
        if self.rows.iter().any(|row| row.goal.is_some()) {
            area.draw(&PathElement::new([(x, 39), (x, 53)], INK.stroke_width(2)))?;
            area.draw(&Text::new("the goal", (x + 10, 46), style(13, HPos::Left, VPos::Center)))?;
        }
        Ok(())
    }
}

fn style(size: u32, horizontal: HPos, vertical: VPos) -> TextStyle<'static> {
    TextStyle::from(("sans-serif", size).into_font()).color(&INK).pos(Pos::new(horizontal, vertical))
}

fn ground(area: &Area<'_>, line: &Line, top: i32) -> anyhow::Result<()> {
    let height = ROW.cast_signed();
    if line.own {
        area.draw(&Rectangle::new([(0, top), (WIDTH.cast_signed(), top + height)], OWN.filled()))?;
    }
    let name = style(13, HPos::Right, VPos::Center);
    area.draw(&Text::new(line.name.as_str(), (NAMES - 14, top + height / 2), name))?;
    Ok(())
}

fn dots(area: &Area<'_>, line: &Line, scale: &Scale, middle: i32) -> anyhow::Result<()> {
    if let Some(goal) = line.goal {
        let x = scale.place(goal);
        area.draw(&PathElement::new([(x, middle - 7), (x, middle + 7)], INK.stroke_width(2)))?;
    }
    for (dot, colour) in line.dots.iter().zip(COLOURS) {
        let Some(Spread { low, median, high }) = dot.filter(|dot| dot.median > 0.0) else { continue };
        let (left, right) = (scale.place(low.max(scale.low)), scale.place(high));
        area.draw(&PathElement::new([(left, middle), (right, middle)], colour.stroke_width(2)))?;
        area.draw(&Circle::new((scale.place(median), middle), 4, colour.filled()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, dots: &[f64], goal: Option<f64>) -> Line {
        let spread = |&median: &f64| Some(Spread { low: 0.9 * median, median, high: 1.1 * median });
        Line { name: name.into(), own: false, dots: dots.iter().map(spread).collect(), goal }
    }

    fn drawn(rows: Vec<Line>) -> String {
        Picture { title: "title", axis: "axis", legend: &["one", "two"], rows }.svg().expect("a picture")
    }

    #[test]
    fn each_figure_has_a_dot_and_zero_has_none() {
        let circles = |svg: &str| svg.matches("<circle").count();
        let svg = drawn(vec![line("first", &[1.0, 100.0], None), line("second", &[0.0, 7.0], Some(3.0))]);
        // Two of them are the legend's.
        assert_eq!(circles(&svg), 2 + 3);
        assert!(svg.contains("first") && svg.contains("second") && svg.contains("the goal"));
        assert!(!drawn(vec![line("first", &[1.0, 2.0], None)]).contains("the goal"));
        assert!(drawn(Vec::new()).starts_with("<svg"), "nothing to show is no reason to fail");
    }

    #[test]
    fn what_is_larger_is_further_right() {
        let scale = Scale::of(&[line("x", &[0.3, 4000.0], None)]);
        let places: Vec<i32> = [0.3, 1.0, 50.0, 4000.0].map(|figure| scale.place(figure)).into();
        assert!(places.is_sorted() && places[0] > NAMES && places[3] < WIDTH.cast_signed() - MARGIN);
        let ticks = scale.ticks();
        assert_eq!(ticks.iter().map(|tick| tick.round()).collect::<Vec<_>>(), [1.0, 10.0, 100.0, 1000.0]);
    }
}
