//! What the traces of a run come to: the numbers, the table and what each line of it means.

use crate::load::{Plan, Request, Trace};
use crate::strategies::QueryRun;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::HumanCount;
use std::fmt::Write as _;
use std::time::Duration;

/// What a request had to do with the queries that ran while it waited.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Standing {
    /// It ran the query itself, or fell due while its client was running it.
    OwnQuery,
    /// It fell due before there was a first answer: there was nothing that anybody could have been given.
    BeforeFirst,
    /// Neither: whatever it waited for is due to the strategy or to the machine.
    Other,
}

/// One request, judged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Judged {
    pub(crate) due: Duration,
    /// From due to answered, or to the end of the window.
    pub(crate) latency: Duration,
    /// From asked to answered, or to the end of the window; `None` if its client never came to ask.
    pub(crate) call: Option<Duration>,
    /// How late the client woke up to ask, where it slept until then.
    pub(crate) woken_late: Option<Duration>,
    pub(crate) answered: bool,
    pub(crate) age: Duration,
    pub(crate) standing: Standing,
}

/// How the runs of the query go with the expiries of the values that they made.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Expiries {
    /// When a value ran out while it was the newest, and somebody asked after that.
    pub(crate) at: Vec<Duration>,
    /// Runs of the query that no expiry called for, the first one apart.
    pub(crate) needless: usize,
}

impl Expiries {
    /// One run after each expiry is what should be; this finds both what is missing and what is too much.
    ///
    /// A run is called for if it began when the value before it had run out: one ttl after that value's query had
    /// ended, or later. `last_asked` tells whether anybody came after the last value had run out.
    pub(crate) fn find(runs: &[QueryRun], ttl: Duration, last_asked: Duration) -> Self {
        let mut found = Self::default();
        for (position, run) in runs.iter().enumerate() {
            let next = runs.get(position + 1);
            match (run.ended, next) {
                (Some(ended), Some(next)) if next.began >= ended + ttl => found.at.push(ended + ttl),
                (_, Some(_)) => found.needless += 1,
                // Nobody can have published it before its query ended, nor later than it was handed out.
                (Some(_), None) => {
                    if let Some(at) =
                        run.answered.map(|answered| answered + ttl).filter(|at| *at < last_asked)
                    {
                        found.at.push(at);
                    }
                }
                (None, None) => {}
            }
        }
        found
    }
}

/// The numbers of one run.
#[derive(Clone, Debug)]
pub(crate) struct Summary {
    pub(crate) name: &'static str,
    pub(crate) requests: Vec<Judged>,
    pub(crate) query_runs: usize,
    /// For strategies that keep an answer.
    pub(crate) expiries: Option<Expiries>,
    pub(crate) answered: usize,
    pub(crate) per_second: f64,
    pub(crate) latency: Quantiles,
    /// The longest that any client was inside one call.
    pub(crate) longest_call: Duration,
    pub(crate) oldest: Option<Duration>,
    /// The same of those who ran no query, once there was a first answer.
    pub(crate) others: Others,
}

/// The requests with [`Standing::Other`].
#[derive(Clone, Debug)]
pub(crate) struct Others {
    pub(crate) latency: Quantiles,
    pub(crate) longest_call: Option<Duration>,
    pub(crate) woken_late: Quantiles,
}

impl Summary {
    /// Sums up what the clients noted. `ttl` is that of a strategy which keeps an answer.
    pub(crate) fn new(name: &'static str, plan: Plan, ttl: Option<Duration>, traces: &[Trace]) -> Self {
        let mut runs: Vec<QueryRun> = traces.iter().flat_map(|trace| trace.runs.iter().copied()).collect();
        runs.sort_by_key(|run| run.began);
        let first = runs.iter().filter_map(|run| run.ended).min().unwrap_or(Duration::MAX);
        let asked = traces.iter().flat_map(|trace| &trace.requests).filter_map(|request| request.asked);
        let expiries = ttl.map(|ttl| Expiries::find(&runs, ttl, asked.max().unwrap_or_default()));

        let requests: Vec<Judged> =
            traces.iter().flat_map(|trace| judge(&trace.requests, first, plan.window)).collect();
        let answered: Vec<&Judged> = requests.iter().filter(|request| request.answered).collect();
        let others = || requests.iter().filter(|request| request.standing == Standing::Other);
        #[expect(clippy::cast_precision_loss, reason = "a rate to be read by people")]
        let per_second = answered.len() as f64 / plan.window.as_secs_f64();
        Self {
            name,
            query_runs: runs.len(),
            expiries,
            per_second,
            answered: answered.len(),
            latency: Quantiles::of(requests.iter().map(|request| request.latency)),
            longest_call: requests.iter().filter_map(|request| request.call).max().unwrap_or_default(),
            oldest: answered.iter().map(|request| request.age).max(),
            others: Others {
                latency: Quantiles::of(others().map(|request| request.latency)),
                longest_call: others().filter_map(|request| request.call).max(),
                woken_late: Quantiles::of(others().filter_map(|request| request.woken_late)),
            },
            requests,
        }
    }

    /// How many runs of the query the expiries call for: a first one, and one for each.
    pub(crate) fn expected_runs(&self) -> Option<usize> {
        self.expiries.as_ref().map(|expiries| 1 + expiries.at.len())
    }
}

/// Judges the requests of one client, which are in the order in which they fell due.
fn judge(requests: &[Request], first: Duration, window: Duration) -> impl Iterator<Item = Judged> {
    let mut own_query_until = None;
    requests.iter().map(move |request| {
        let end = request.answered.unwrap_or(window);
        if request.ran_query {
            own_query_until = Some(end);
        }
        // Before the first answer all wait alike, also those whose client runs the query.
        let standing = if own_query_until.is_some_and(|until| request.due <= until) {
            Standing::OwnQuery
        } else if request.due < first {
            Standing::BeforeFirst
        } else {
            Standing::Other
        };
        Judged {
            due: request.due,
            latency: end.saturating_sub(request.due),
            call: request.asked.map(|asked| end.saturating_sub(asked)),
            woken_late: request
                .asked
                .filter(|_| request.slept)
                .map(|asked| asked.saturating_sub(request.due)),
            answered: request.answered.is_some(),
            age: request.age,
            standing,
        }
    })
}

/// Exact quantiles: every value is kept, none is rounded into a bucket.
#[derive(Clone, Debug, Default)]
pub(crate) struct Quantiles(Vec<Duration>);

impl Quantiles {
    pub(crate) fn of(values: impl Iterator<Item = Duration>) -> Self {
        let mut sorted: Vec<Duration> = values.collect();
        sorted.sort_unstable();
        Self(sorted)
    }

    /// The smallest value that at least `per_mille` of a thousand do not exceed (nearest rank).
    pub(crate) fn at(&self, per_mille: usize) -> Option<Duration> {
        let rank = (self.0.len() * per_mille).div_ceil(1000);
        self.0.get(rank.saturating_sub(1)).copied()
    }

    pub(crate) fn max(&self) -> Option<Duration> {
        self.0.last().copied()
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }
}

/// The table in Markdown, one column for each strategy.
pub(crate) fn table(summaries: &[Summary]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    table.set_header(std::iter::once("").chain(summaries.iter().map(|summary| summary.name)));
    let mut line = |label: &str, value: &dyn Fn(&Summary) -> Option<String>| {
        let values = summaries.iter().map(|summary| value(summary).unwrap_or_else(|| "–".into()));
        table.add_row(std::iter::once(label.to_owned()).chain(values));
    };
    let slowest = summaries.first().map_or(0.0, |summary| summary.per_second);

    line("requests due", &|s| Some(count(s.requests.len())));
    line("answered in time [1]", &|s| Some(count(s.answered)));
    line("requests/s [1]", &|s| Some(rate(s.per_second)));
    line("times the first column", &|s| (slowest > 0.0).then(|| rate(s.per_second / slowest)));
    line("query runs", &|s| Some(count(s.query_runs)));
    line("1 + expiries [2]", &|s| s.expected_runs().map(count));
    line("latency p50 [3]", &|s| s.latency.at(500).map(time));
    line("latency p99", &|s| s.latency.at(990).map(time));
    line("latency p99.9", &|s| s.latency.at(999).map(time));
    line("latency max", &|s| s.latency.max().map(time));
    line("longest wait [4]", &|s| Some(time(s.longest_call)));
    line("oldest answer [5]", &|s| s.expiries.as_ref().and(s.oldest).map(time));
    line("others: requests [6]", &|s| Some(s.others.latency.count()).filter(|number| *number > 0).map(count));
    line("others: latency p50", &|s| s.others.latency.at(500).map(time));
    line("others: latency p99", &|s| s.others.latency.at(990).map(time));
    line("others: latency p99.9", &|s| s.others.latency.at(999).map(time));
    line("others: latency max", &|s| s.others.latency.max().map(time));
    line("others: longest wait [4]", &|s| s.others.longest_call.map(time));
    line("others: woken late p99.9 [7]", &|s| s.others.woken_late.at(999).map(time));

    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// What the lines of the table mean.
pub(crate) fn footnotes(plan: Plan, ttl: Duration) -> String {
    format!(
        "[1] Open loop: {clients} clients, each with a request due every {interval}, for {window}; a client that is \
         late asks for what is overdue without a pause. In time: answered before the window closed.\n\
         [2] How often the query should have run: once at first, and once after each time that a value ran out \
         ({ttl} after its query had ended) and somebody asked.\n\
         [3] Of all requests that were due, from the moment when they were due (not from when the client came to \
         ask). One that had no answer when the window closed counts with what it had waited until then: the true \
         figure is higher.\n\
         [4] The longest that a client was inside one call, from asking to the answer (or to the end of the window); \
         running the query oneself counts too.\n\
         [5] When it was handed out, counted from the end of its query. The first column keeps no answers.\n\
         [6] Requests of clients that were not running the query themselves when the request was due, once there was \
         a first answer to be had. Left out are, therefore: the first build, those who ran the query, and what fell \
         due for them meanwhile.\n\
         [7] How long after the due time a sleeping client was running again, before it asked for anything: timer \
         and scheduler, not waiting. \"nothing shared\" is the same load with the query run as often, each time in \
         another client, and nothing to wait for: what this machine does by itself.\n",
        clients = plan.clients,
        interval = time(Duration::from_secs_f64(1.0 / plan.rate)),
        window = time(plan.window),
        ttl = time(ttl),
    )
}

/// One line that says whether the query ran as often as it should; for strategies that keep an answer.
pub(crate) fn verdict(summary: &Summary) -> Option<String> {
    let expiries = summary.expiries.as_ref()?;
    let mut line =
        format!("{}: {} query runs for 1 + {} expiries", summary.name, summary.query_runs, expiries.at.len());
    if expiries.needless > 0 {
        let _ = write!(line, ", {} of them needless", expiries.needless);
    }
    if Some(summary.query_runs) == summary.expected_runs() {
        line.push_str(": once per expiry");
    }
    Some(line)
}

/// A time with three digits, in the unit that suits it.
pub(crate) fn time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let (number, unit) = match seconds {
        s if s < 999.5e-6 => (s * 1e6, "µs"),
        s if s < 999.5e-3 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    format!("{} {unit}", three_digits(number))
}

fn three_digits(number: f64) -> String {
    let decimals = match number {
        n if n < 9.995 => 2,
        n if n < 99.95 => 1,
        _ => 0,
    };
    let text = format!("{number:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A rate with thousands separators, and decimals where it is small.
pub(crate) fn rate(rate: f64) -> String {
    if rate < 99.95 {
        three_digits(rate)
    } else {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "rounded, and not negative"
        )]
        HumanCount(rate.round() as u64).to_string()
    }
}

fn count(number: usize) -> String {
    HumanCount(number as u64).to_string()
}
