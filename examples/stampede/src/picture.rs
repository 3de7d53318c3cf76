//! The picture: for each strategy, how long every request had to wait, over the time when it was due.
//!
//! One panel below the other on one time axis and one logarithmic latency axis, so that heights compare. A panel is a
//! grid of small cells; a cell is drawn if requests fell into it, the darker the more. Points would be hundreds of
//! thousands; percentiles over time would hide that it is *all* clients that wait, or only one.

use crate::report::{Standing, Summary, rate, time};
use anyhow::Context;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

const SIZE: (u32, u32) = (960, 760);
const HEAD: u32 = 74;
const COLUMNS: f64 = 220.0;
const CELLS_PER_DECADE: f64 = 8.0;

const INK: RGBColor = RGBColor(0x26, 0x2b, 0x33);
const FAINT: RGBColor = RGBColor(0xd9, 0xdd, 0xe3);
const EXPIRY: RGBColor = RGBColor(0x6b, 0x72, 0x80);

/// What a cell says about the requests in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Unanswered,
    BeforeFirst,
    OwnQuery,
    Other,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Other, Self::OwnQuery, Self::BeforeFirst, Self::Unanswered];

    /// Colours that people with any kind of colour vision tell apart (Okabe and Ito), and a grey.
    const fn colour(self) -> RGBColor {
        match self {
            Self::Other => RGBColor(0x00, 0x72, 0xb2),
            Self::OwnQuery => RGBColor(0xe6, 0x9f, 0x00),
            Self::BeforeFirst => RGBColor(0xcc, 0x79, 0xa7),
            Self::Unanswered => RGBColor(0x9a, 0xa0, 0xa8),
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::Other => "client that runs no query",
            Self::OwnQuery => "client that runs the query",
            Self::BeforeFirst => "before the first answer",
            Self::Unanswered => "no answer in time",
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
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    // A ground of its own: the page around it may be dark.
    area.fill(&WHITE)?;
    let (head, panels) = area.split_vertically(HEAD);
    heading(&head)?;
    let latencies = latency_range(summaries);
    for (panel, summary) in panels.split_evenly((summaries.len().max(1), 1)).iter().zip(summaries) {
        draw_panel(panel, summary, window, latencies)?;
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
    latencies: (f64, f64),
) -> anyhow::Result<()> {
    let caption = TextStyle::from(("sans-serif", 15).into_font().style(FontStyle::Bold)).color(&INK);
    let said =
        TextStyle::from(("sans-serif", 13).into_font()).color(&INK).pos(Pos::new(HPos::Right, VPos::Top));
    let (width, _) = panel.dim_in_pixel();
    panel.draw(&Text::new(summary.name, (66, 4), caption))?;
    panel.draw(&Text::new(in_short(summary), (width.cast_signed() - 20, 5), said))?;

    let seconds = window.as_secs_f64();
    let mut chart = ChartBuilder::on(panel)
        .margin_top(24)
        .margin_right(20)
        .margin_bottom(4)
        .x_label_area_size(34)
        .y_label_area_size(66)
        .build_cartesian_2d(0.0..seconds, (latencies.0..latencies.1).log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(FAINT)
        .axis_style(INK)
        .label_style(TextStyle::from(("sans-serif", 12).into_font()).color(&INK))
        .x_label_formatter(&|x| format!("{x}"))
        .x_desc("time since the start of the run, in seconds")
        .y_label_formatter(&|y| time(Duration::from_secs_f64(*y)))
        .y_labels(8)
        .draw()?;
    for at in summary.expiries.iter().flat_map(|expiries| &expiries.at) {
        let x = at.as_secs_f64();
        chart
            .draw_series([PathElement::new([(x, latencies.0), (x, latencies.1)], EXPIRY.stroke_width(1))])?;
    }
    chart.draw_series(cells(summary, seconds))?;
    Ok(())
}

/// What a panel shows, in numbers.
fn in_short(summary: &Summary) -> String {
    let mut parts = vec![
        format!("{} answers/s", rate(summary.per_second)),
        format!("{} query runs", summary.query_runs),
        format!("p99.9 {}", summary.latency.at(999).map_or_else(|| "–".into(), time)),
    ];
    if let Some(others) = summary.others.latency.at(999) {
        parts.push(format!("p99.9 of those who run no query {}", time(others)));
    }
    parts.join("   ")
}

/// A cell of the grid: column and row.
type Cell = (i64, i64);

fn cells(summary: &Summary, seconds: f64) -> Vec<Rectangle<(f64, f64)>> {
    let column_width = seconds / COLUMNS;
    let mut counts: BTreeMap<(Kind, Cell), u32> = BTreeMap::new();
    for request in &summary.requests {
        let kind = match request.standing {
            _ if !request.answered => Kind::Unanswered,
            Standing::OwnQuery => Kind::OwnQuery,
            Standing::BeforeFirst => Kind::BeforeFirst,
            Standing::Other => Kind::Other,
        };
        let latency = request.latency.as_secs_f64().max(1e-9);
        #[expect(clippy::cast_possible_truncation, reason = "a few hundred at most")]
        let cell = (
            (request.due.as_secs_f64() / column_width) as i64,
            (latency.log10() * CELLS_PER_DECADE).floor() as i64,
        );
        *counts.entry((kind, cell)).or_default() += 1;
    }
    #[expect(clippy::cast_precision_loss, reason = "a few hundred at most")]
    counts
        .into_iter()
        .map(|((kind, (column, row)), count)| {
            let left = column as f64 * column_width;
            let corner = |row: i64| 10_f64.powf(row as f64 / CELLS_PER_DECADE);
            // A single request must be seen, a thousand must not drown it.
            let strength = match count {
                0..3 => 0.45,
                3..20 => 0.7,
                _ => 1.0,
            };
            Rectangle::new(
                [(left, corner(row)), (left + column_width, corner(row + 1))],
                kind.colour().mix(strength).filled(),
            )
        })
        .collect()
}

/// Whole decades that hold every latency, the same for all panels.
fn latency_range(summaries: &[&Summary]) -> (f64, f64) {
    let all = || summaries.iter().flat_map(|summary| &summary.requests).map(|request| request.latency);
    let decade = |latency: Option<Duration>, round: fn(f64) -> f64| {
        10_f64.powf(round(latency.unwrap_or(Duration::from_millis(1)).as_secs_f64().max(1e-6).log10()))
    };
    let (low, high) = (decade(all().min(), f64::floor), decade(all().max(), f64::ceil));
    (low.min(1e-5), high.max(low * 10.0))
}
