//! The picture: for each strategy, how long every request had to wait, over the time when it was due.
//!
//! One panel below the other on one time axis and one logarithmic latency axis, so that heights compare. A panel is a
//! grid of small cells; a cell is drawn if requests fell into it, the darker the more. Points would be hundreds of
//! thousands; percentiles over time would hide that it is *all* clients that wait, or only one.

use crate::report::{Quantiles, Standing, Summary, rate, time};
use anyhow::Context;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

const WIDTH: u32 = 960;
/// Heights: the title and the legend, one panel, and the time axis below the last panel.
const HEAD: u32 = 72;
const PANEL: u32 = 216;
const TIME_AXIS: u32 = 40;

/// The grid: columns over the whole time, and rows.
const COLUMNS: f64 = 200.0;
const ROWS_PER_DECADE: f64 = 8.0;
/// Lower than any timer wakes: the axis begins here, and what is lower is drawn here.
const LOWEST: f64 = 1e-5;

const INK: RGBColor = RGBColor(0x26, 0x2b, 0x33);
const FAINT: RGBColor = RGBColor(0xd9, 0xdd, 0xe3);
const EXPIRY: RGBColor = RGBColor(0x6b, 0x72, 0x80);

/// What a cell says about the requests in it, in the order in which they are drawn: what waits unexpectedly comes last,
/// so that nothing covers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Unanswered,
    OwnQuery,
    BeforeFirst,
    Other,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Other, Self::OwnQuery, Self::BeforeFirst, Self::Unanswered];

    /// Colours that people with any kind of colour vision tell apart (Okabe and Ito), and a dark grey.
    const fn colour(self) -> RGBColor {
        match self {
            Self::Other => RGBColor(0x00, 0x72, 0xb2),
            Self::OwnQuery => RGBColor(0xe6, 0x9f, 0x00),
            Self::BeforeFirst => RGBColor(0xcc, 0x79, 0xa7),
            Self::Unanswered => RGBColor(0x4b, 0x55, 0x63),
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::Other => "client that runs no query",
            Self::OwnQuery => "client that runs the query",
            Self::BeforeFirst => "before the first answer",
            Self::Unanswered => "no answer in time (at least)",
        }
    }
}

/// Draws `summaries`, one panel each, into an SVG file.
pub(crate) fn draw(file: &Path, summaries: &[&Summary], window: Duration) -> anyhow::Result<()> {
    let mut svg = String::new();
    render(&mut svg, summaries, window).context("cannot draw the picture")?;
    std::fs::write(file, svg).with_context(|| format!("cannot write {}", file.display()))
}

fn render(svg: &mut String, summaries: &[&Summary], window: Duration) -> anyhow::Result<()> {
    let panels = u32::try_from(summaries.len())?;
    let area = SVGBackend::with_string(svg, (WIDTH, HEAD + panels * PANEL + TIME_AXIS)).into_drawing_area();
    // A ground of its own: the page around it may be dark.
    area.fill(&WHITE)?;
    let (head, mut rest) = area.split_vertically(HEAD);
    heading(&head)?;
    let highest = summaries.iter().filter_map(|summary| summary.latency.max()).max().unwrap_or_default();
    let highest = (2.0 * highest.as_secs_f64()).max(100.0 * LOWEST);
    for (number, summary) in (1..).zip(summaries) {
        let time_axis = if number == panels { TIME_AXIS } else { 0 };
        let (panel, below) = rest.split_vertically(PANEL + time_axis);
        draw_panel(&panel, summary, window, highest, time_axis)?;
        rest = below;
    }
    area.present()?;
    Ok(())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn heading(head: &Area<'_>) -> anyhow::Result<()> {
    let title = TextStyle::from(("sans-serif", 19).into_font().style(FontStyle::Bold)).color(&INK);
    head.draw(&Text::new(
        "How long a request waits for its answer, by the time when it was due",
        (18, 12),
        title,
    ))?;
    let plain =
        TextStyle::from(("sans-serif", 13).into_font()).color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
    let mut x = 20;
    for kind in Kind::ALL {
        head.draw(&Rectangle::new([(x, 45), (x + 14, 57)], kind.colour().filled()))?;
        head.draw(&Text::new(kind.label(), (x + 20, 51), plain.clone()))?;
        x += 212;
    }
    head.draw(&PathElement::new([(x, 43), (x, 59)], EXPIRY.stroke_width(1)))?;
    head.draw(&Text::new("expiry", (x + 8, 51), plain))?;
    Ok(())
}

fn draw_panel(
    panel: &Area<'_>,
    summary: &Summary,
    window: Duration,
    highest: f64,
    time_axis: u32,
) -> anyhow::Result<()> {
    let caption = TextStyle::from(("sans-serif", 15).into_font().style(FontStyle::Bold)).color(&INK);
    let said =
        TextStyle::from(("sans-serif", 13).into_font()).color(&INK).pos(Pos::new(HPos::Right, VPos::Top));
    panel.draw(&Text::new(summary.name, (66, 6), caption))?;
    panel.draw(&Text::new(in_short(summary), (WIDTH.cast_signed() - 20, 7), said))?;

    let seconds = window.as_secs_f64();
    let mut chart = ChartBuilder::on(panel)
        .margin_top(26)
        .margin_right(20)
        .margin_bottom(8)
        .x_label_area_size(time_axis)
        .y_label_area_size(66)
        .build_cartesian_2d(0.0..seconds, (LOWEST..highest).log_scale())?;
    let mut mesh = chart.configure_mesh();
    mesh.light_line_style(TRANSPARENT)
        .bold_line_style(FAINT)
        .axis_style(INK)
        .label_style(TextStyle::from(("sans-serif", 12).into_font()).color(&INK))
        .x_label_formatter(&|x| format!("{x}"))
        .y_label_formatter(&|y| time(Duration::from_secs_f64(*y)))
        .y_labels(8);
    if time_axis > 0 {
        mesh.x_desc("when the request was due, in seconds since the start of the run");
    }
    mesh.draw()?;
    chart.draw_series(at_least(summary, seconds, highest))?;
    for at in summary.expiries.iter().flat_map(|expiries| &expiries.at) {
        let x = at.as_secs_f64();
        chart.draw_series([PathElement::new([(x, LOWEST), (x, highest)], EXPIRY.stroke_width(1))])?;
    }
    chart.draw_series(cells(summary, seconds))?;
    Ok(())
}

/// What a panel shows, in numbers.
fn in_short(summary: &Summary) -> String {
    let p999 = |quantiles: &Quantiles| quantiles.at(999).map(time);
    let mut parts = vec![
        format!("{} of {} requests/s answered", rate(summary.per_second), rate(summary.due_per_second)),
        format!("{} query runs", summary.query_runs),
    ];
    parts.extend(p999(&summary.latency).map(|time| format!("p99.9 of all {time}")));
    parts.extend(p999(&summary.others.latency).map(|time| format!("of those who run no query {time}")));
    parts.join(" · ")
}

type Bar = Rectangle<(f64, f64)>;

/// A request without an answer would have waited longer than it could: the area above is shaded, in the columns where
/// that is the rule. (One that was under way when the window closed is no rule.)
fn at_least(summary: &Summary, seconds: f64, highest: f64) -> Vec<Bar> {
    let width = seconds / COLUMNS;
    // For each column: how many requests were answered and how many not, and the shortest wait of the latter.
    let mut columns: BTreeMap<i32, (u32, u32, f64)> = BTreeMap::new();
    for request in &summary.requests {
        let (answered, not, low) =
            columns.entry(grid(request.due.as_secs_f64() / width)).or_insert((0, 0, highest));
        if request.answered {
            *answered += 1;
        } else {
            *not += 1;
            *low = low.min(request.latency.as_secs_f64().max(LOWEST));
        }
    }
    let style = Kind::Unanswered.colour().mix(0.22).filled();
    columns
        .into_iter()
        .filter(|(_, (answered, not, _))| not > answered)
        .map(|(column, (_, _, low))| {
            let left = f64::from(column) * width;
            Rectangle::new([(left, low), (left + width, highest)], style)
        })
        .collect()
}

/// The grid's cells that hold requests; neighbours in a row that look the same are one bar.
fn cells(summary: &Summary, seconds: f64) -> Vec<Bar> {
    let width = seconds / COLUMNS;
    let mut counts: BTreeMap<(Kind, i32, i32), u32> = BTreeMap::new();
    for request in &summary.requests {
        let kind = match request.standing {
            _ if !request.answered => Kind::Unanswered,
            Standing::OwnQuery => Kind::OwnQuery,
            Standing::BeforeFirst => Kind::BeforeFirst,
            Standing::Other => Kind::Other,
        };
        let row = grid(request.latency.as_secs_f64().max(LOWEST).log10() * ROWS_PER_DECADE);
        let column = grid(request.due.as_secs_f64() / width);
        *counts.entry((kind, row, column)).or_default() += 1;
    }
    // A single request must be seen, a thousand must not drown it.
    let strength = |count: u32| match count {
        0..3 => 0.45,
        3..20 => 0.7,
        _ => 1.0,
    };
    let counts: Vec<((Kind, i32, i32), f64)> =
        counts.into_iter().map(|(cell, count)| (cell, strength(count))).collect();
    counts
        .chunk_by(|((kind, row, column), strength), (next, next_strength)| {
            *next == (*kind, *row, column + 1) && strength.total_cmp(next_strength).is_eq()
        })
        .map(|bar| {
            let ((kind, row, first), strength) = bar[0];
            let ((_, _, last), _) = bar[bar.len() - 1];
            let height = |row: i32| 10_f64.powf(f64::from(row) / ROWS_PER_DECADE);
            Rectangle::new(
                [(f64::from(first) * width, height(row)), (f64::from(last + 1) * width, height(row + 1))],
                kind.colour().mix(strength).filled(),
            )
        })
        .collect()
}

#[expect(clippy::cast_possible_truncation, reason = "a place in the grid: some hundreds at most")]
fn grid(place: f64) -> i32 {
    place.floor() as i32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Plan, Request, Trace};
    use crate::strategies::QueryRun;

    const ONE: Duration = Duration::from_secs(1);

    fn drawn(traces: &[Trace]) -> String {
        let plan = Plan { clients: 1, rate: 1.0, window: 10 * ONE };
        let summary = Summary::new("one of them", plan, Some(ONE), traces);
        let mut svg = String::new();
        render(&mut svg, &[&summary, &summary, &summary], plan.window).expect("a picture");
        svg
    }

    /// How many elements have that colour.
    fn coloured(svg: &str, RGBColor(red, green, blue): RGBColor) -> usize {
        svg.matches(&format!("#{red:02X}{green:02X}{blue:02X}")).count()
    }

    #[test]
    fn a_run_without_any_request_can_be_drawn() {
        let svg = drawn(&[]);
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert_eq!(svg.matches("one of them").count(), 3, "a caption for each panel");
    }

    #[test]
    fn each_kind_of_request_has_its_colour_and_each_expiry_its_line() {
        let run = |began, ended| QueryRun {
            began: began * ONE,
            ended: Some(ended * ONE),
            answered: Some(ended * ONE),
        };
        let request = |due, answered: Option<u32>| Request {
            due: due * ONE,
            asked: Some(due * ONE),
            answered: answered.map(|answered| answered * ONE),
            age: Duration::ZERO,
            slept: true,
            ran_query: false,
        };
        let mut own = request(3, Some(4));
        own.ran_query = true;
        let requests = vec![request(0, Some(1)), own, request(5, Some(5)), request(9, None)];
        let empty = drawn(&[]);
        let svg = drawn(&[Trace { requests, runs: vec![run(0, 1), run(3, 4)] }]);
        // For the request without an answer: its own cell, and the area above.
        for (colour, each) in [
            (Kind::BeforeFirst.colour(), 1),
            (Kind::OwnQuery.colour(), 1),
            (Kind::Other.colour(), 1),
            (Kind::Unanswered.colour(), 2),
            (EXPIRY, 2),
        ] {
            let new = coloured(&svg, colour) - coloured(&empty, colour);
            assert_eq!(new, 3 * each, "{colour:?} in three panels");
        }
    }
}
