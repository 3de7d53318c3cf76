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
    pub(crate) due_per_second: f64,
    /// Answered in time.
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
        let per_second = |number: usize| number as f64 / plan.window.as_secs_f64();
        Self {
            name,
            query_runs: runs.len(),
            expiries,
            due_per_second: per_second(requests.len()),
            per_second: per_second(answered.len()),
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
    line("times \"no protection\"", &|s| (slowest > 0.0).then(|| rate(s.per_second / slowest)));
    line("query runs [2]", &|s| Some(count(s.query_runs)));
    line("1 + expiries [3]", &|s| s.expected_runs().map(count));
    line("latency p50 [4]", &|s| s.latency.at(500).map(time));
    line("latency p99", &|s| s.latency.at(990).map(time));
    line("latency p99.9", &|s| s.latency.at(999).map(time));
    line("latency max", &|s| s.latency.max().map(time));
    line("longest wait [5]", &|s| Some(time(s.longest_call)));
    line("oldest answer [6]", &|s| s.expiries.as_ref().and(s.oldest).map(time));
    line("others: requests [7]", &|s| Some(s.others.latency.count()).filter(|number| *number > 0).map(count));
    line("others: latency p50", &|s| s.others.latency.at(500).map(time));
    line("others: latency p99", &|s| s.others.latency.at(990).map(time));
    line("others: latency p99.9", &|s| s.others.latency.at(999).map(time));
    line("others: latency max", &|s| s.others.latency.max().map(time));
    line("others: longest wait [5]", &|s| s.others.longest_call.map(time));
    line("others: woken late p99.9 [8]", &|s| s.others.woken_late.at(999).map(time));
    line("others: woken late max", &|s| s.others.woken_late.max().map(time));

    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// What the lines of the table mean, as a Markdown list.
pub(crate) fn footnotes(plan: Plan, ttl: Duration) -> String {
    format!(
        "\
- [1] Open loop: {clients} clients, each with a request due every {interval}, for {window}. A client that is late
  sends its overdue requests without a pause. In time: answered before the window closed.
- [2] Queries that were begun, including those that were cut off by the end of the window.
- [3] How often the query should have run: once at first, and once after each time that a value had expired ({ttl}
  after its query had ended) and was requested.
- [4] Of all requests that were due, from the time when they were due, not from the time when the client sent them. A
  request without an answer when the window closed counts with its wait until then; its true latency is higher.
- [5] The longest time that a client was inside one call, from the request to the answer or to the end of the window,
  including calls that ran the query.
- [6] The age of the answer when it was returned, counted from the end of its query. The first column keeps no answers.
- [7] Others: requests of clients that were not running the query themselves when the request was due, after the first
  answer was available. So the first build is left out, and clients that ran the query, with the requests that fell
  due for them meanwhile.
- [8] How long after the due time a sleeping client ran again, before it sent its request: this is the timer and the
  scheduler, not waiting. Requests that are overdue behind a late one add to the latency, not to this. \"nothing
  shared\" is the same load without any waiting, with the query run as often, each time in another client. It shows
  what this machine adds by itself.
",
        clients = plan.clients,
        interval = time(Duration::from_secs_f64(1.0 / plan.rate)),
        window = time(plan.window),
        ttl = time(ttl),
    )
}

/// One line that says whether the query ran as often as it should; for strategies that keep an answer.
pub(crate) fn verdict(summary: &Summary) -> Option<String> {
    let expiries = summary.expiries.as_ref()?;
    let mut line = format!(
        "- {}: {} query runs for 1 + {} expiries",
        summary.name,
        summary.query_runs,
        expiries.at.len()
    );
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

#[cfg(test)]
mod tests {
    use super::Standing::{BeforeFirst, Other, OwnQuery};
    use super::*;

    const PLAN: Plan = Plan { clients: 1, rate: 1000.0, window: Duration::from_millis(100) };

    const fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    fn run(began: u64, ended: Option<u64>) -> QueryRun {
        QueryRun { began: ms(began), ended: ended.map(ms), answered: ended.map(ms) }
    }

    fn request(due: u64, asked: Option<u64>, answered: Option<u64>) -> Request {
        let (asked, answered) = (asked.map(ms), answered.map(ms));
        Request { due: ms(due), asked, answered, age: ms(7), slept: asked > Some(ms(due)), ran_query: false }
    }

    #[test]
    fn quantiles_are_nearest_ranks() {
        let quantiles = Quantiles::of((1..=1000).rev().map(ms));
        assert_eq!(quantiles.at(500), Some(ms(500)));
        assert_eq!(quantiles.at(990), Some(ms(990)));
        assert_eq!(quantiles.at(999), Some(ms(999)));
        assert_eq!(quantiles.max(), Some(ms(1000)));
        let few = Quantiles::of([ms(3), ms(1), ms(2)].into_iter());
        assert_eq!((few.at(500), few.at(999)), (Some(ms(2)), Some(ms(3))));
        assert_eq!(Quantiles::default().at(999), None);
    }

    #[test]
    fn latency_counts_from_due_and_no_request_is_left_out() {
        let requests = vec![
            request(0, Some(1), Some(40)),
            request(10, Some(40), Some(41)),
            // Asked for, and not answered when the window closed; never asked for.
            request(20, Some(41), None),
            request(30, None, None),
        ];
        let traces = [Trace { requests, runs: vec![run(0, Some(0))] }];
        let summary = Summary::new("x", PLAN, None, &traces);
        let latencies: Vec<Duration> = summary.requests.iter().map(|request| request.latency).collect();
        assert_eq!(latencies, [ms(40), ms(31), ms(80), ms(70)]);
        assert_eq!((summary.answered, summary.longest_call), (2, ms(59)));
        assert!((summary.per_second - 20.0).abs() < 1e-9);
        assert_eq!(summary.others.woken_late.max(), Some(ms(30)));
        assert_eq!(summary.oldest, Some(ms(7)));
    }

    #[test]
    fn only_who_ran_no_query_and_came_after_the_first_answer_is_one_of_the_others() {
        let mut own = request(60, Some(60), Some(80));
        own.ran_query = true;
        let runner = Trace {
            requests: vec![
                request(50, Some(50), Some(51)),
                own,
                request(79, Some(80), Some(81)),
                request(81, None, None),
            ],
            runs: vec![run(60, Some(80))],
        };
        let waiter = Trace {
            requests: vec![
                request(5, Some(5), Some(10)),
                request(10, Some(10), Some(11)),
                request(70, Some(70), Some(80)),
            ],
            runs: vec![run(0, Some(10))],
        };
        let summary = Summary::new("x", PLAN, Some(ms(50)), &[runner, waiter]);
        let standings: Vec<Standing> = summary.requests.iter().map(|request| request.standing).collect();
        assert_eq!(standings, [Other, OwnQuery, OwnQuery, Other, BeforeFirst, Other, Other]);
        assert_eq!(summary.others.longest_call, Some(ms(10)));
        assert_eq!((summary.query_runs, summary.expected_runs()), (2, Some(2)));
    }

    #[test]
    fn a_query_that_is_cut_off_keeps_its_client_out_of_the_others() {
        let mut cut = request(60, Some(60), None);
        cut.ran_query = true;
        let requests = vec![cut, request(70, None, None)];
        let traces = [Trace { requests, runs: vec![run(0, Some(1)), run(60, None)] }];
        let summary = Summary::new("x", PLAN, None, &traces);
        assert!(summary.requests.iter().all(|request| request.standing == OwnQuery));
        assert_eq!(summary.others.latency.max(), None);
    }

    #[test]
    fn each_expiry_calls_for_one_run() {
        let find = |runs: &[QueryRun], last_asked| Expiries::find(runs, ms(20), ms(last_asked));
        let expiries = |at: &[u64], needless| Expiries { at: at.iter().copied().map(ms).collect(), needless };

        let good = [run(0, Some(10)), run(31, Some(40)), run(60, Some(70))];
        assert_eq!(find(&good, 85), expiries(&[30, 60], 0));
        // The last value ran out too, and nobody ran the query: one is missing.
        assert_eq!(find(&good, 95), expiries(&[30, 60, 90], 0));
        // A second run for the same expiry, and one for none.
        assert_eq!(find(&[run(0, Some(10)), run(31, Some(40)), run(32, Some(41))], 50), expiries(&[30], 1));
        assert_eq!(find(&[run(0, Some(10)), run(15, Some(25))], 30), expiries(&[], 1));
        // The end of the window cut the last one off.
        assert_eq!(find(&[run(0, Some(10)), run(31, None)], 95), expiries(&[30], 0));
        assert_eq!(find(&[], 95), expiries(&[], 0));
    }

    #[test]
    fn the_verdict_tells_too_many_runs_from_the_right_number() {
        let verdict_on = |runs| {
            let requests = vec![request(50, Some(50), Some(51))];
            verdict(&Summary::new("x", PLAN, Some(ms(20)), &[Trace { requests, runs }]))
        };
        let good = verdict_on(vec![run(0, Some(10)), run(31, Some(40))]);
        assert_eq!(good.as_deref(), Some("- x: 2 query runs for 1 + 1 expiries: once per expiry"));
        let bad = verdict_on(vec![run(0, Some(10)), run(31, Some(40)), run(32, Some(40))]);
        assert_eq!(bad.as_deref(), Some("- x: 3 query runs for 1 + 1 expiries, 1 of them needless"));
    }

    #[test]
    fn numbers_read_well() {
        let times = [0, 999, 72_345, 999_499, 999_600, 1_234_567, 334_000_000, 999_600_000, 14_960_000_000];
        let read: Vec<String> = times.into_iter().map(|nanos| time(Duration::from_nanos(nanos))).collect();
        assert_eq!(read, ["0 µs", "1 µs", "72.3 µs", "999 µs", "1 ms", "1.23 ms", "334 ms", "1 s", "15 s"]);
        assert_eq!([rate(4.6), rate(0.0), rate(100.0), rate(12_799.6)], ["4.6", "0", "100", "12,800"]);
    }

    #[test]
    fn the_table_is_one_of_markdown_also_where_there_is_nothing_to_say() {
        let requests = vec![request(0, Some(1), Some(2))];
        let traces = [Trace { requests, runs: vec![run(0, Some(0))] }];
        let summaries =
            [Summary::new("one", PLAN, None, &traces), Summary::new("other", PLAN, Some(ms(1)), &[])];
        for line in table(&summaries).lines() {
            assert_eq!(line.matches('|').count(), 4, "{line}");
        }
    }
}
