//! What the traces of a run come to: the numbers, the table and what each line of it means.

use crate::load::{Plan, Request, Trace};
use crate::strategies::{QueryRun, Strategy};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::HumanCount;
use std::fmt::Write as _;
use std::time::Duration;

/// What a request had to do with the queries that ran while it waited.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Standing {
    /// It ran the query itself, or fell due while its client was running it.
    OwnQuery,
    /// Whatever it waited for is due to the strategy or to the machine.
    Other,
}

/// One request, judged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Judged {
    pub(crate) due: Duration,
    /// From due to answered, or to the end of the run.
    pub(crate) latency: Duration,
    /// From asked to answered, or to the end of the run; `None` if its client never came to ask.
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
    /// When a value expired while it was the newest, and was requested after that.
    pub(crate) at: Vec<Duration>,
    /// Runs of the query that no expiry called for.
    pub(crate) needless: usize,
}

impl Expiries {
    /// One run after each expiry is what should be; this finds both what is missing and what is too much.
    ///
    /// A run is called for if it began when the value before it had run out: one ttl after that value's query had
    /// ended, or later. The value that the load begins with runs out at `first`. `last_asked` tells whether
    /// the last value was requested after it had run out.
    pub(crate) fn find(runs: &[QueryRun], first: Duration, ttl: Duration, last_asked: Duration) -> Self {
        let mut found = Self::default();
        let mut expiry = first;
        // Runs that overlap may end in another order than they began.
        let (mut newest, mut answered) = (None, None);
        for run in runs {
            if run.began >= expiry && found.at.last() != Some(&expiry) {
                found.at.push(expiry);
            } else {
                found.needless += 1;
            }
            newest = newest.max(run.ended);
            answered = answered.max(run.answered);
            expiry = newest.map_or(first, |ended| ended + ttl);
        }
        // If the last run was cut off, it was the one for the last expiry. Otherwise its value may have run out too:
        // it was published after its query had ended, and before it was handed out.
        if runs.last().is_none_or(|run| run.ended.is_some()) {
            let last = if runs.is_empty() { Some(first) } else { answered.map(|answered| answered + ttl) };
            found.at.extend(last.filter(|at| *at < last_asked));
        }
        found
    }
}

/// The numbers of one run.
#[derive(Clone, Debug)]
pub(crate) struct Summary {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// The head of its column in the table.
    pub(crate) short: &'static str,
    pub(crate) requests: Vec<Judged>,
    /// In the order in which they began.
    pub(crate) runs: Vec<QueryRun>,
    pub(crate) query_runs: usize,
    /// For strategies that keep an answer.
    pub(crate) expiries: Option<Expiries>,
    pub(crate) answered: usize,
    pub(crate) latency: Quantiles,
    /// The longest that any client was inside one call.
    pub(crate) longest_call: Duration,
    pub(crate) oldest: Option<Duration>,
    /// The same of clients that ran no query.
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
    /// Sums up what the clients noted. `expiry` is for a strategy that builds when its answer has expired: when the
    /// first answer expires, and the ttl of the others.
    pub(crate) fn new(
        strategy: &dyn Strategy,
        plan: Plan,
        expiry: Option<(Duration, Duration)>,
        traces: &[Trace],
    ) -> Self {
        let mut runs: Vec<QueryRun> = traces.iter().flat_map(|trace| trace.runs.iter().copied()).collect();
        runs.sort_by_key(|run| run.began);
        let asked = traces.iter().flat_map(|trace| &trace.requests).filter_map(|request| request.asked);
        let last_asked = asked.max().unwrap_or_default();
        let expiries = expiry.map(|(first, ttl)| Expiries::find(&runs, first, ttl, last_asked));

        let requests: Vec<Judged> =
            traces.iter().flat_map(|trace| judge(&trace.requests, plan.end())).collect();
        let answered: Vec<&Judged> = requests.iter().filter(|request| request.answered).collect();
        let others = || requests.iter().filter(|request| request.standing == Standing::Other);
        Self {
            name: strategy.name(),
            about: strategy.about(),
            short: strategy.short(),
            query_runs: runs.len(),
            expiries,
            answered: answered.len(),
            latency: Quantiles::of(requests.iter().map(|request| request.latency)),
            longest_call: requests.iter().filter_map(|request| request.call).max().unwrap_or_default(),
            oldest: answered.iter().map(|request| request.age).max().filter(|_| strategy.keeps_answers()),
            others: Others {
                latency: Quantiles::of(others().map(|request| request.latency)),
                longest_call: others().filter_map(|request| request.call).max(),
                woken_late: Quantiles::of(others().filter_map(|request| request.woken_late)),
            },
            requests,
            runs,
        }
    }
}

/// Judges the requests of one client, which are in the order in which they fell due.
fn judge(requests: &[Request], end: Duration) -> impl Iterator<Item = Judged> {
    let mut own_query_until = None;
    requests.iter().map(move |request| {
        let end = request.answered.unwrap_or(end);
        if request.ran_query {
            own_query_until = Some(end);
        }
        let standing = if own_query_until.is_some_and(|until| request.due <= until) {
            Standing::OwnQuery
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

/// The quantile of the latency, as text: with ">" if requests without an answer are among those that it covers.
pub(crate) fn bounded(summary: &Summary, per_mille: usize) -> String {
    let Some(latency) = summary.latency.at(per_mille) else { return "–".into() };
    let requests = summary.requests.len();
    let unanswered = requests - summary.answered;
    // Those without an answer are taken for the slowest, which they are but for the last ones.
    if unanswered * 1000 > requests * (1000 - per_mille) {
        format!("> {}", time(latency))
    } else {
        time(latency)
    }
}

/// What came of it, in three sentences: the first lines on the terminal, and the caption of the picture.
pub(crate) fn results(
    nothing: &Summary,
    mutex: &Summary,
    cell: &Summary,
    refresher: &Summary,
) -> [String; 3] {
    [
        format!(
            "{} requests: the query runs {} with a DogpileCell instead of {}.",
            count(cell.requests.len()),
            times(cell.query_runs),
            count(nothing.query_runs),
        ),
        format!(
            "99 of 100 wait at most {} instead of {} (with a mutex: {}).",
            bounded(cell, 990),
            bounded(nothing, 990),
            bounded(mutex, 990),
        ),
        format!(
            "With a Refresher too, the slowest one waits {} instead of {}.",
            bounded(refresher, 1000),
            bounded(nothing, 1000)
        ),
    ]
}

fn times(number: usize) -> String {
    match number {
        1 => "once".into(),
        number => format!("{} times", count(number)),
    }
}

/// The table in Markdown, one column for each strategy.
pub(crate) fn table(summaries: &[Summary]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    table.set_header(std::iter::once("").chain(summaries.iter().map(|summary| summary.short)));
    let mut line = |label: &str, value: &dyn Fn(&Summary) -> Option<String>| {
        let values = summaries.iter().map(|summary| value(summary).unwrap_or_else(|| "–".into()));
        table.add_row(std::iter::once(label.to_owned()).chain(values));
    };

    line("requests due [1]", &|s| Some(count(s.requests.len())));
    line("answered", &|s| Some(count(s.answered)));
    line("query runs [2]", &|s| Some(count(s.query_runs)));
    line("expiries [3]", &|s| s.expiries.as_ref().map(|expiries| count(expiries.at.len())));
    line("latency p50 [4]", &|s| s.latency.at(500).map(time));
    line("latency p99", &|s| s.latency.at(990).map(time));
    line("latency p99.9", &|s| s.latency.at(999).map(time));
    line("latency max", &|s| s.latency.max().map(time));
    line("longest call [5]", &|s| Some(time(s.longest_call)));
    line("oldest answer [6]", &|s| s.oldest.map(time));
    line("others: requests [7]", &|s| Some(s.others.latency.count()).filter(|number| *number > 0).map(count));
    line("others: p50", &|s| s.others.latency.at(500).map(time));
    line("others: p99", &|s| s.others.latency.at(990).map(time));
    line("others: p99.9", &|s| s.others.latency.at(999).map(time));
    line("others: max", &|s| s.others.latency.max().map(time));
    line("others: longest call", &|s| s.others.longest_call.map(time));
    line("woken late p99.9 [8]", &|s| s.others.woken_late.at(999).map(time));
    line("woken late max", &|s| s.others.woken_late.max().map(time));

    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// A paragraph, or with a prefix an item of a Markdown list, in lines for a terminal.
pub(crate) fn wrapped(text: &str, prefix: &str) -> String {
    let indent = " ".repeat(prefix.len());
    textwrap::fill(text, textwrap::Options::new(80).initial_indent(prefix).subsequent_indent(&indent))
}

/// What the columns and the lines of the table mean, as a Markdown list.
pub(crate) fn footnotes(plan: Plan, ttl: Duration) -> String {
    let notes = [
        "nothing: a timed cache, and each caller that finds it expired runs the query. mutex: the same with cache and \
         query under a mutex. cell: a DogpileCell. refresher: a DogpileCell with a Refresher, which rebuilds the \
         report when half of its time is over. baseline: the same \
         load without any waiting, with the query run as often, each time in another client. It shows what this \
         machine adds by itself."
            .to_owned(),
        "Each run begins with a report that was made before the first request. Without any value, the callers of a \
         DogpileCell would wait for the first build too, as those of a mutex do."
            .to_owned(),
        format!(
            "[1] Open loop: {} clients, each with a request due every {}, for {}. A client that is late sends its \
             overdue requests without a pause. The run goes on until all are answered, for at most {} more.",
            plan.clients,
            time(Duration::from_secs_f64(1.0 / plan.rate)),
            time(plan.window),
            time(plan.grace),
        ),
        "[2] Queries that were begun, including those that were cut off by the end of the run.".to_owned(),
        format!(
            "[3] How often the query should have run: once after each time that a report had expired ({} after its \
             query had ended) and was requested. A Refresher lets no report expire.",
            time(ttl)
        ),
        "[4] Of all requests that were due, from the time when they were due, not from the time when the client sent \
         them. A request without an answer when the run ended counts with its wait until then; its true latency is \
         higher."
            .to_owned(),
        "[5] The longest time that a client was inside one call, from the request to the answer or to the end of the \
         run, including calls that ran the query."
            .to_owned(),
        "[6] The age of the answer when it was returned, counted from the end of its query.".to_owned(),
        "[7] Others: requests of clients that were not running the query themselves when the request was due."
            .to_owned(),
        "[8] How long after the due time a sleeping client ran again, before it sent its request: this is the timer \
         and the scheduler, not waiting. Requests that are overdue behind a late one add to the latency, not to this."
            .to_owned(),
    ];
    notes.map(|note| wrapped(&note, "- ") + "\n").concat()
}

/// One line that says whether the query ran as often as it should; for strategies that keep an answer.
pub(crate) fn verdict(summary: &Summary) -> Option<String> {
    let expiries = summary.expiries.as_ref()?;
    let mut line = format!(
        "- {}: {} for {}",
        summary.short,
        number_of(summary.query_runs, "query run", "query runs"),
        number_of(expiries.at.len(), "expiry", "expiries")
    );
    if expiries.needless > 0 {
        let _ = write!(line, ", {} of them needless", count(expiries.needless));
    }
    if summary.query_runs == expiries.at.len() {
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

/// "1 row", "24 rows".
pub(crate) fn number_of(number: usize, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

pub(crate) fn count(number: usize) -> String {
    HumanCount(number as u64).to_string()
}

#[cfg(test)]
mod tests {
    use super::Standing::{Other, OwnQuery};
    use super::*;
    use crate::strategies::{Dogpile, MutexedCache, NothingShared, TimedCache};
    use dogpile::Policy;

    /// It ends 100 ms after its start.
    const PLAN: Plan = Plan { clients: 1, rate: 1000.0, window: ms(80), grace: ms(20) };

    const fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    fn cache() -> TimedCache {
        TimedCache::new(ms(20))
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
            // Asked for, and not answered when the run ended; never asked for.
            request(20, Some(41), None),
            request(30, None, None),
        ];
        let traces = [Trace { requests, runs: vec![run(0, Some(0))] }];
        let summary = Summary::new(&cache(), PLAN, None, &traces);
        let latencies: Vec<Duration> = summary.requests.iter().map(|request| request.latency).collect();
        assert_eq!(latencies, [ms(40), ms(31), ms(80), ms(70)]);
        assert_eq!((summary.answered, summary.longest_call), (2, ms(59)));
        assert_eq!(summary.others.woken_late.max(), Some(ms(30)));
        assert_eq!(summary.oldest, Some(ms(7)));
    }

    #[test]
    fn only_who_ran_no_query_is_one_of_the_others() {
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
        let summary = Summary::new(&cache(), PLAN, Some((ms(0), ms(50))), &[runner, waiter]);
        let standings: Vec<Standing> = summary.requests.iter().map(|request| request.standing).collect();
        assert_eq!(standings, [Other, OwnQuery, OwnQuery, Other, Other, Other, Other]);
        assert_eq!(summary.others.longest_call, Some(ms(10)));
        assert_eq!(
            (summary.query_runs, summary.expiries),
            (2, Some(Expiries { at: vec![ms(0), ms(60)], needless: 0 }))
        );
    }

    #[test]
    fn a_query_that_is_cut_off_keeps_its_client_out_of_the_others() {
        let mut cut = request(60, Some(60), None);
        cut.ran_query = true;
        let requests = vec![cut, request(70, None, None)];
        let traces = [Trace { requests, runs: vec![run(0, Some(1)), run(60, None)] }];
        let summary = Summary::new(&cache(), PLAN, None, &traces);
        assert!(summary.requests.iter().all(|request| request.standing == OwnQuery));
        assert_eq!(summary.others.latency.max(), None);
    }

    #[test]
    fn each_expiry_calls_for_one_run() {
        let find = |runs: &[QueryRun], last_asked| Expiries::find(runs, ms(5), ms(20), ms(last_asked));
        let expiries = |at: &[u64], needless| Expiries { at: at.iter().copied().map(ms).collect(), needless };

        let good = [run(6, Some(10)), run(31, Some(40)), run(60, Some(70))];
        assert_eq!(find(&good, 85), expiries(&[5, 30, 60], 0));
        // The last value ran out too, and nobody ran the query: one is missing.
        assert_eq!(find(&good, 95), expiries(&[5, 30, 60, 90], 0));
        assert_eq!(find(&[], 95), expiries(&[5], 0));
        assert_eq!(find(&[], 4), expiries(&[], 0));
        // A second run for the same expiry, and one for none.
        assert_eq!(
            find(&[run(6, Some(10)), run(31, Some(40)), run(32, Some(41))], 50),
            expiries(&[5, 30], 1)
        );
        assert_eq!(find(&[run(6, Some(10)), run(15, Some(25))], 30), expiries(&[5], 1));
        assert_eq!(find(&[run(4, Some(8))], 20), expiries(&[], 1));
        // The end of the run cut the last one off, or the last ones.
        assert_eq!(find(&[run(6, Some(10)), run(31, None)], 95), expiries(&[5, 30], 0));
        assert_eq!(find(&[run(6, Some(10)), run(31, None), run(32, None)], 95), expiries(&[5, 30], 1));
        // Those that began together end in any order: the value of the last one counts.
        let together = [run(6, Some(15)), run(7, Some(10)), run(36, Some(40)), run(37, Some(39))];
        assert_eq!(find(&together, 61), expiries(&[5, 35, 60], 2));
    }

    #[test]
    fn the_verdict_tells_too_many_runs_from_the_right_number() {
        let verdict_on = |runs| {
            let requests = vec![request(50, Some(50), Some(51))];
            verdict(&Summary::new(&cache(), PLAN, Some((ms(30), ms(20))), &[Trace { requests, runs }]))
        };
        let good = verdict_on(vec![run(30, Some(40)), run(61, Some(70))]);
        assert_eq!(good.as_deref(), Some("- nothing: 2 query runs for 2 expiries: once per expiry"));
        let bad = verdict_on(vec![run(30, Some(40)), run(61, Some(70)), run(62, Some(70))]);
        assert_eq!(bad.as_deref(), Some("- nothing: 3 query runs for 2 expiries, 1 of them needless"));
    }

    #[test]
    fn numbers_read_well() {
        let times = [0, 999, 72_345, 999_499, 999_600, 1_234_567, 334_000_000, 999_600_000, 14_960_000_000];
        let read: Vec<String> = times.into_iter().map(|nanos| time(Duration::from_nanos(nanos))).collect();
        assert_eq!(read, ["0 µs", "1 µs", "72.3 µs", "999 µs", "1 ms", "1.23 ms", "334 ms", "1 s", "15 s"]);
        assert_eq!(
            [0, 1, 2000].map(|number| number_of(number, "row", "rows")),
            ["0 rows", "1 row", "2,000 rows"]
        );
        assert_eq!([rate(4.6), rate(0.0), rate(100.0), rate(12_799.6)], ["4.6", "0", "100", "12,800"]);
    }

    #[test]
    fn the_table_is_one_of_markdown_also_where_there_is_nothing_to_say() {
        let requests = vec![request(0, Some(1), Some(2))];
        let traces = [Trace { requests, runs: vec![run(0, Some(0))] }];
        let summaries = [
            Summary::new(&cache(), PLAN, None, &traces),
            Summary::new(&cache(), PLAN, Some((ms(0), ms(1))), &[]),
        ];
        for line in table(&summaries).lines() {
            assert_eq!(line.matches('|').count(), 4, "{line}");
        }
    }

    /// Three million requests, the most that are accepted, in calls of a minute: no wider than a terminal.
    #[test]
    fn what_is_printed_fits_a_terminal() {
        let traces =
            [Trace { requests: vec![request(0, Some(1), None); 100], runs: vec![run(0, Some(99)); 100] }];
        let cell = Dogpile::new(Policy::ttl(ms(20)));
        let of = |strategy: &dyn Strategy| {
            Summary::new(strategy, PLAN, strategy.ttl().map(|ttl| (ms(0), ttl)), &traces)
        };
        let summaries = [
            of(&cache()),
            of(&MutexedCache::new(ms(20))),
            of(&cell),
            of(&NothingShared::new(ms(20), 1)),
            of(&NothingShared::new(ms(20), 1)),
        ];
        let [nothing, mutex, cell, refresher, _] = &summaries;
        let lines = results(nothing, mutex, cell, refresher).join("\n") + "\n" + &table(&summaries);
        let lines = lines + "\n" + &footnotes(PLAN, ms(20));
        for line in lines.lines() {
            assert!(line.chars().count() <= 80, "{}: {line}", line.chars().count());
        }
    }

    #[test]
    fn a_run_that_answers_nobody_has_results_too() {
        let traces =
            [Trace { requests: vec![request(0, Some(0), None), request(1, None, None)], runs: vec![] }];
        let nobody = Summary::new(&cache(), PLAN, Some((ms(30), ms(20))), &traces);
        let nothing = Summary::new(&cache(), PLAN, Some((ms(30), ms(20))), &[]);
        assert_eq!(bounded(&nobody, 1000), "> 100 ms");
        assert_eq!(bounded(&nothing, 1000), "–");
        let lines = results(&nobody, &nobody, &nothing, &nothing);
        assert_eq!(lines[0], "0 requests: the query runs 0 times with a DogpileCell instead of 0.");
        assert_eq!(lines[2], "With a Refresher too, the slowest one waits – instead of > 100 ms.");
    }

    #[test]
    fn a_quantile_is_a_bound_if_it_covers_requests_without_an_answer() {
        let mut requests = vec![request(0, Some(0), Some(1)); 99];
        requests.push(request(50, Some(50), None));
        let summary = Summary::new(&cache(), PLAN, None, &[Trace { requests, runs: vec![] }]);
        assert_eq!(
            [500, 990, 999, 1000].map(|at| bounded(&summary, at)),
            ["1 ms", "1 ms", "> 50 ms", "> 50 ms"]
        );
    }
}
