//! The picture: for each strategy, how long the requests had to wait, over the time when they were due.
//!
//! One panel below the other on one time axis and one logarithmic latency axis, so that heights compare. A panel shows,
//! for each short interval, the wait of half of the requests that fell due in it, that of 95 % of them, and the slowest
//! one: percentiles alone would hide a single client that waits. Below it is how many queries ran at once.
//!
//! The style sheet inside adapts it to light and dark pages, and to narrow screens, on which it is scaled down: larger text,
//! and less of it.

use crate::report::{Quantiles, Standing, Summary, bounded, count, time};
use anyhow::Context;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;
use svg::node::element::path::Data;
use svg::node::element::{Circle, Group, Line, Path as Shape, Rectangle, Style, TSpan, Text, Title};
use svg::{Document, Node};

const WIDTH: f64 = 760.0;
/// Of the plot within it.
const LEFT: f64 = 76.0;
const RIGHT: f64 = WIDTH - 16.0;
/// Heights: the title and the legend; one panel, of which its caption, its plot and its strip of queries; the time axis.
const HEAD: f64 = 100.0;
const PANEL: f64 = 184.0;
const CAPTION: f64 = 56.0;
const PLOT: f64 = 96.0;
const STRIP: f64 = 16.0;
const TIME_AXIS: f64 = 44.0;

/// Intervals over the whole time.
const COLUMNS: u32 = 250;
/// Lower than most timers wake: the axis begins here, and what is lower is drawn here.
const LOWEST: f64 = 3e-5;

/// Colours that people with any kind of colour vision tell apart (Okabe and Ito), on white and on black.
const STYLE: &str = "
text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Liberation Sans',sans-serif;font-size:14px;fill:#262b33}
.ground{fill:#fff}.title{font-size:23px;font-weight:bold}.name{font-size:18px;font-weight:bold}.about{font-weight:normal;font-size:15px;fill:#5b6470}.number{font-weight:bold}
.axis{font-size:12px;fill:#5b6470}.legend{font-size:13px}
.grid{stroke:#e3e6ea}.foot{stroke:#8b94a1}.expiry{stroke:#8b94a1;stroke-dasharray:3 3}
.half{fill:#0072b2}.most{fill:#8fc4e6}.slowest{fill:#5b6470}.query{fill:#e08a00}.open{fill:#5b6470;fill-opacity:.35}
@media(prefers-color-scheme:dark){
text{fill:#e6e9ee}.ground{fill:#0d1117}.axis,.about{fill:#9aa4b2}.grid{stroke:#262c36}.foot,.expiry{stroke:#77818f}
.half{fill:#3fa7e8}.most{fill:#1d5580}.slowest{fill:#aab3c0}.query{fill:#f2a93b}.open{fill:#aab3c0}}
@media(max-width:520px){
.title{font-size:32px}.name{font-size:27px}.short,.number{font-size:24px}.axis{font-size:20px}.legend{font-size:20px}
.wide{display:none}}
";

/// Draws `summaries`, one panel each, into an SVG file.
pub(crate) fn draw(file: &Path, summaries: &[Summary], window: Duration) -> anyhow::Result<()> {
    let text = format!("{}\n", render(summaries, window));
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn render(summaries: &[Summary], window: Duration) -> Document {
    let panels = f64::from(u32::try_from(summaries.len()).unwrap_or(u32::MAX));
    let height = HEAD + panels * PANEL + TIME_AXIS;
    let scale = Scale::of(summaries, window);
    let mut document = Document::new()
        .set("viewBox", (0, 0, WIDTH, height))
        .set("width", WIDTH)
        .set("height", height)
        .set("role", "img")
        .add(Title::new(description(summaries)))
        .add(Style::new(STYLE))
        // A ground of its own: the page around it may be of another colour.
        .add(rectangle("ground", 0.0, 0.0, WIDTH, height));
    document.append(heading());
    let mut top = HEAD;
    for summary in summaries {
        document.append(panel(summary, &scale, top));
        top += PANEL;
    }
    document.append(time_axis(&scale, top));
    document
}

/// The picture in words, for a screen reader.
fn description(summaries: &[Summary]) -> String {
    let mut text = "How long requests wait".to_owned();
    for summary in summaries {
        let _ = write!(
            text,
            "; {}: {} query runs, slowest request {}",
            summary.name,
            count(summary.query_runs),
            bounded(summary, 1000)
        );
    }
    text
}

/// Where a time and a latency are drawn, the same in each panel.
struct Scale {
    seconds: f64,
    highest: f64,
    /// The most that ran at once.
    queries: f64,
}

impl Scale {
    fn of(summaries: &[Summary], window: Duration) -> Self {
        let highest = summaries.iter().filter_map(|summary| summary.latency.max()).max().unwrap_or_default();
        let queries = summaries.iter().map(most_at_once).max().unwrap_or(1);
        Self {
            seconds: window.as_secs_f64(),
            highest: (1.5 * highest.as_secs_f64()).max(100.0 * LOWEST),
            queries: f64::from(queries.max(1)),
        }
    }

    fn x(&self, seconds: f64) -> f64 {
        LEFT + (RIGHT - LEFT) * (seconds / self.seconds).clamp(0.0, 1.0)
    }

    /// Above the foot of the plot.
    fn height(&self, latency: Duration) -> f64 {
        let seconds = latency.as_secs_f64().clamp(LOWEST, self.highest);
        PLOT * (seconds / LOWEST).ln() / (self.highest / LOWEST).ln()
    }

    fn column(&self, number: u32) -> f64 {
        self.x(self.seconds * f64::from(number) / f64::from(COLUMNS))
    }
}

fn rectangle(class: &str, x: f64, y: f64, width: f64, height: f64) -> Rectangle {
    Rectangle::new()
        .set("class", class)
        .set("x", rounded(x))
        .set("y", rounded(y))
        .set("width", rounded(width))
        .set("height", rounded(height))
}

fn line(class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) -> Line {
    Line::new()
        .set("class", class)
        .set("x1", rounded(x1))
        .set("y1", rounded(y1))
        .set("x2", rounded(x2))
        .set("y2", rounded(y2))
}

fn text(class: &str, x: f64, y: f64, content: impl Into<String>) -> Text {
    Text::new(content).set("class", class).set("x", rounded(x)).set("y", rounded(y))
}

fn dot(class: &str, x: f64, y: f64) -> Circle {
    Circle::new().set("class", class).set("cx", rounded(x)).set("cy", rounded(y)).set("r", 1.4)
}

/// A tenth of a pixel is enough, and keeps the file small.
fn rounded(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

fn heading() -> Group {
    let mut group = Group::new().add(text("title", 16.0, 32.0, "How long requests wait"));
    let columns = [16.0, 364.0, 560.0];
    let labels = [
        ["half of the requests", "95 % of them", "slowest request"],
        ["slowest that runs the query", "queries at once", "expiry"],
    ];
    for (labels, y) in labels.into_iter().zip([60.0, 87.0]) {
        for (label, x) in labels.into_iter().zip(columns) {
            group.append(text("legend", x + 22.0, y, label));
        }
    }
    let big = |class, x, y| dot(class, x, y).set("r", 3.5);
    group
        .add(rectangle("half", columns[0], 48.0, 14.0, 12.0))
        .add(rectangle("most", columns[1], 48.0, 14.0, 12.0))
        .add(big("slowest", columns[2] + 7.0, 55.0))
        .add(big("query", columns[0] + 7.0, 82.0))
        .add(rectangle("query", columns[1], 75.0, 14.0, 12.0))
        .add(line("expiry", (columns[2] + 7.0, 73.0), (columns[2] + 7.0, 91.0)))
}

fn panel(summary: &Summary, scale: &Scale, top: f64) -> Group {
    let foot = top + CAPTION + PLOT;
    let about = TSpan::new(format!("· {}", summary.about)).set("class", "about wide");
    let name = text("name", 16.0, top + 21.0, "").add(TSpan::new(summary.name)).add(about);
    let mut group = Group::new().add(name).add(in_short(summary, top + 48.0));
    for (exponent, is_wide) in (-5..=5).zip([true, false].into_iter().cycle()) {
        let latency = 10_f64.powi(exponent);
        if (LOWEST..=scale.highest).contains(&latency) {
            let latency = Duration::from_secs_f64(latency);
            let y = foot - scale.height(latency);
            group.append(line("grid", (LEFT, y), (RIGHT, y)));
            let class = if is_wide { "axis wide" } else { "axis" };
            group.append(text(class, LEFT - 8.0, y + 4.0, time(latency)).set("text-anchor", "end"));
        }
    }
    for at in summary.expiries.iter().flat_map(|expiries| &expiries.at) {
        let x = scale.x(at.as_secs_f64());
        group.append(line("expiry", (x, top + CAPTION - 4.0), (x, foot + STRIP)));
    }
    let columns = columns(summary, scale);
    let quantile =
        |column: &Column, per_mille| column.waits.at(per_mille).map_or(0.0, |wait| scale.height(wait));
    group.append(area("most", &columns, scale, foot, |column| quantile(column, 950)));
    group.append(area("half", &columns, scale, foot, |column| quantile(column, 500)));
    for (number, column) in (0..).zip(&columns) {
        let x = f64::midpoint(scale.column(number), scale.column(number + 1));
        if let Some(slowest) = column.slowest {
            group.append(dot("slowest", x, foot - scale.height(slowest)));
        }
        if let Some(slowest) = column.slowest_of_own {
            group.append(dot("query", x, foot - scale.height(slowest)));
        }
        // Without an answer a request has waited for at least so long: the area above is shaded.
        if let Some(least) = column.unanswered {
            let low = scale.height(least);
            let width = scale.column(number + 1) - scale.column(number);
            group.append(rectangle("open", scale.column(number), foot - PLOT, width, PLOT - low));
        }
    }
    group.append(line("foot", (LEFT, foot), (RIGHT, foot)));
    // How many queries ran at once: the share of the most in any panel, and never too little to be seen.
    let highest = STRIP - 3.0;
    let queries = |column: &Column| match column.queries {
        0 => 0.0,
        queries => (highest * f64::from(queries) / scale.queries).clamp(3.0, highest),
    };
    group.append(area("query", &columns, scale, foot + STRIP, queries));
    group
}

/// What a panel shows, in numbers; on a narrow screen two of them. (Between two spans there is a space.)
fn in_short(summary: &Summary, y: f64) -> Text {
    let part = |class: &str, content: &str| TSpan::new(content).set("class", class);
    let at_once = match most_at_once(summary) {
        0 | 1 => "· one at a time".to_owned(),
        most => format!("· {} at once", count(most as usize)),
    };
    text("short", 16.0, y, "")
        .add(part("number", &count(summary.query_runs)))
        .add(part("short", if summary.query_runs == 1 { "query run" } else { "query runs" }))
        .add(part("wide", &at_once))
        .add(part("short", "· 99 % wait at most"))
        .add(part("number", &bounded(summary, 990)))
        .add(part("wide", "· the slowest"))
        .add(part("number wide", &bounded(summary, 1000)))
}

/// What fell due, and which queries ran, in one interval.
#[derive(Default)]
struct Column {
    waits: Quantiles,
    /// Of the clients that were not running the query.
    slowest: Option<Duration>,
    /// Of those that were.
    slowest_of_own: Option<Duration>,
    /// The shortest wait of those that were never answered.
    unanswered: Option<Duration>,
    queries: u32,
}

fn columns(summary: &Summary, scale: &Scale) -> Vec<Column> {
    let width = scale.seconds / f64::from(COLUMNS);
    let mut columns: Vec<Column> = (0..COLUMNS).map(|_| Column::default()).collect();
    let mut waits: Vec<Vec<Duration>> = vec![Vec::new(); COLUMNS as usize];
    for request in &summary.requests {
        let place = grid(request.due.as_secs_f64() / width);
        let Some(column) = columns.get_mut(place) else { continue };
        waits[place].push(request.latency);
        let slowest = match request.standing {
            Standing::OwnQuery => &mut column.slowest_of_own,
            Standing::Other => &mut column.slowest,
        };
        *slowest = (*slowest).max(Some(request.latency));
        if !request.answered {
            let least = column.unanswered.get_or_insert(request.latency);
            *least = request.latency.min(*least);
        }
    }
    for ((column, waits), number) in columns.iter_mut().zip(waits).zip(0..) {
        column.waits = Quantiles::of(waits.into_iter());
        let (from, to) = (f64::from(number) * width, f64::from(number + 1) * width);
        let runs = summary.runs.iter().filter(|run| {
            let ended = run.ended.map_or(f64::INFINITY, |ended| ended.as_secs_f64());
            run.began.as_secs_f64() < to && ended >= from
        });
        column.queries = u32::try_from(runs.count()).unwrap_or(u32::MAX);
    }
    columns
}

/// How many runs of the query there were at once, at most.
fn most_at_once(summary: &Summary) -> u32 {
    let mut changes: Vec<(Duration, i32)> = Vec::new();
    for run in &summary.runs {
        changes.push((run.began, 1));
        changes.extend(run.ended.map(|ended| (ended, -1)));
    }
    changes.sort_unstable();
    let running = changes.iter().scan(0, |running, (_, change)| {
        *running += change;
        Some(*running)
    });
    running.max().and_then(|most| u32::try_from(most).ok()).unwrap_or(0)
}

/// The area under a height of each interval.
fn area(class: &str, columns: &[Column], scale: &Scale, foot: f64, height: impl Fn(&Column) -> f64) -> Shape {
    let mut data = Data::new().move_to((LEFT, rounded(foot)));
    let mut level = rounded(foot);
    for (number, column) in (0..).zip(columns) {
        let next = rounded(foot - height(column));
        if next.total_cmp(&level).is_ne() {
            data = data.horizontal_line_to(rounded(scale.column(number))).vertical_line_to(next);
            level = next;
        }
    }
    data = data.horizontal_line_to(RIGHT).vertical_line_to(rounded(foot)).close();
    Shape::new().set("class", class).set("d", data)
}

fn time_axis(scale: &Scale, top: f64) -> Group {
    let step = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0]
        .into_iter()
        .find(|step| scale.seconds / step <= 8.0)
        .unwrap_or(scale.seconds);
    let mut group = Group::new();
    for number in 0..=8 {
        let at = step * f64::from(number);
        // Whole multiples of the step: the sum of its rounding errors is no reason to leave one out.
        if at > scale.seconds * 1.0001 {
            break;
        }
        let x = scale.x(at);
        let label = time(Duration::from_secs_f64(at));
        let label = if number == 0 { "0" } else { &label };
        let anchor = if x > RIGHT - 16.0 { "end" } else { "middle" };
        group.append(text("axis", x, top + 8.0, label).set("text-anchor", anchor));
    }
    group.add(
        text(
            "axis",
            f64::midpoint(LEFT, RIGHT),
            top + 31.0,
            "when the request was due (waits on a logarithmic scale)",
        )
        .set("text-anchor", "middle"),
    )
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a place in the grid, not negative"
)]
fn grid(place: f64) -> usize {
    place.floor() as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Plan, Request, Trace};
    use crate::strategies::{QueryRun, TimedCache};

    const ONE: Duration = Duration::from_secs(1);

    fn drawn(traces: &[Trace]) -> String {
        let plan = Plan { clients: 1, rate: 1.0, window: 10 * ONE, grace: 10 * ONE };
        let summary = Summary::new(&TimedCache::new(ONE), plan, Some((ONE, ONE)), traces);
        render(&[summary.clone(), summary.clone(), summary], plan.window).to_string()
    }

    /// How many elements are of that class.
    fn of_class(svg: &str, class: &str) -> usize {
        svg.matches(&format!("class=\"{class}\"")).count()
    }

    fn request(due: u32, answered: Option<u32>) -> Request {
        Request {
            due: due * ONE,
            asked: Some(due * ONE),
            answered: answered.map(|answered| answered * ONE),
            age: Duration::ZERO,
            slept: true,
            ran_query: false,
        }
    }

    fn run(began: u32, ended: u32) -> QueryRun {
        QueryRun { began: began * ONE, ended: Some(ended * ONE), answered: Some(ended * ONE) }
    }

    #[test]
    fn a_run_without_any_request_can_be_drawn() {
        let svg = drawn(&[]);
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert_eq!(svg.matches("A timed cache").count(), 3 + 3, "in each panel, and in the description");
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn each_kind_of_request_has_its_mark_and_each_expiry_its_line() {
        let mut own = request(3, Some(4));
        own.ran_query = true;
        let requests = vec![request(0, Some(1)), own, request(5, Some(5)), request(9, None)];
        let empty = drawn(&[]);
        let svg = drawn(&[Trace { requests, runs: vec![run(1, 2), run(3, 4)] }]);
        for (class, each) in [("slowest", 3), ("query", 1), ("open", 1), ("expiry", 3)] {
            let new = of_class(&svg, class) - of_class(&empty, class);
            assert_eq!(new, 3 * each, "{class} in three panels");
        }
    }

    #[test]
    fn queries_that_overlap_are_counted() {
        let summary = |runs| {
            let plan = Plan { clients: 3, rate: 1.0, window: 10 * ONE, grace: ONE };
            Summary::new(
                &TimedCache::new(ONE),
                plan,
                Some((ONE, ONE)),
                &[Trace { requests: Vec::new(), runs }],
            )
        };
        assert_eq!(most_at_once(&summary(vec![run(0, 2), run(1, 4), run(1, 3), run(5, 6)])), 3);
        // The end of one is no overlap with the next.
        assert_eq!(most_at_once(&summary(vec![run(0, 2), run(2, 4)])), 1);
        assert_eq!(most_at_once(&summary(vec![])), 0);
    }

    #[test]
    fn higher_is_slower_and_nothing_leaves_the_plot() {
        let scale = Scale { seconds: 10.0, highest: 20.0, queries: 1.0 };
        let heights: Vec<f64> = [0, 40, 1_000, 1_000_000, 20_000_000, 90_000_000]
            .map(|micros| scale.height(Duration::from_micros(micros)))
            .into();
        assert!(heights.is_sorted() && heights[0] >= 0.0 && heights[5] <= PLOT, "{heights:?}");
    }

    #[test]
    fn the_strip_is_as_high_as_queries_run_at_once() {
        let column = |queries| Column { queries, ..Column::default() };
        let scale = Scale { seconds: 10.0, highest: 20.0, queries: 2.0 };
        let heights = |column: &Column| f64::from(column.queries) * 5.0;
        let drawn =
            area("query", &[column(0), column(1), column(1), column(2), column(0)], &scale, 100.0, heights);
        assert_eq!(drawn.to_string().matches('V').count(), 3 + 1, "each height once: {drawn}");
        assert!(drawn.to_string().contains("V95") && drawn.to_string().contains("V90"), "{drawn}");
    }
}
