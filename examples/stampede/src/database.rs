//! The expensive thing: an `SQLite` database with a table of orders, and a report query over it.
//!
//! The built-in database is made once and then only read; its content is the same on every machine, so that two
//! measurements are about the same work. Every client has a connection of its own: nothing of the database is
//! shared between clients but the file.

use crate::report;
use anyhow::{Context, bail, ensure};
use indicatif::ProgressBar;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// Raised when the content or the schema changes, so that no older file is taken for the new one.
const VERSION: u32 = 1;

const SCHEMA: &str = "
    CREATE TABLE orders (
        id       INTEGER PRIMARY KEY,
        placed   INTEGER NOT NULL,      -- seconds since 1970
        country  TEXT    NOT NULL,
        product  INTEGER NOT NULL,
        quantity INTEGER NOT NULL,
        price    INTEGER NOT NULL       -- cents
    )";

/// With this index the report reads every order but sorts none: concurrent runs of it meet at the processor, not at
/// the disk.
const INDEX: &str = "CREATE INDEX orders_by_country ON orders (country, placed, product, quantity, price)";

/// The report over the built-in table: one line for each country, the best one first.
const REPORT: &str = "
    SELECT country,
           count(*)                                                         AS orders,
           sum(quantity)                                                    AS pieces,
           count(DISTINCT product)                                          AS products,
           sum(quantity * price) / 100.0                                    AS revenue,
           avg(quantity * price) / 100.0                                    AS mean,
           max(quantity * price) / 100.0                                    AS largest,
           sum(quantity * price) FILTER (WHERE placed >= 1725000000) / 100.0 AS lately
      FROM orders
     GROUP BY country
     ORDER BY revenue DESC";

const COUNTRIES: [&str; 24] = [
    "AT", "BE", "BR", "CA", "CH", "CN", "CZ", "DE", "DK", "ES", "FI", "FR", "GB", "IN", "IT", "JP", "KR",
    "MX", "NL", "NO", "PL", "PT", "SE", "US",
];

/// What the query returned, and when: an answer's age counts from here.
#[derive(Debug)]
pub(crate) struct Report {
    /// The rows, every value as text.
    pub(crate) rows: Vec<Vec<String>>,
    /// When the query had returned its last row.
    pub(crate) made: Instant,
}

/// Why a query gave no report.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Failure {
    /// The run is over: the query was cut off, or not begun.
    Stopped,
    /// The database refused; what it said.
    Database(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => f.write_str("the run is over"),
            Self::Database(said) => f.write_str(said),
        }
    }
}

impl std::error::Error for Failure {}

/// One client's way to run the query, on a connection of its own.
pub(crate) type Query = Box<dyn FnMut() -> Result<Vec<Vec<String>>, Failure> + Send>;

/// Where the expensive thing is, and how to ask for it.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    file: PathBuf,
    sql: String,
}

impl Database {
    /// A database of the user's own.
    pub(crate) fn existing(file: &Path, sql: &str) -> anyhow::Result<Self> {
        // SQLite says the same about a missing file, a folder and a file that it may not read: ask the system first.
        let meta = std::fs::File::open(file)
            .and_then(|opened| opened.metadata())
            .with_context(|| format!("cannot read {}", file.display()))?;
        ensure!(meta.is_file(), "cannot read {}: not a file", file.display());
        Ok(Self { file: file.to_owned(), sql: sql.to_owned() })
    }

    /// The built-in table with that many orders, in `folder`: made now if it is not there yet.
    ///
    /// It gets its name only when it is complete: a file with that name is never a half-written one, also when two
    /// programs make it at the same time.
    pub(crate) fn built_in(
        folder: &Path,
        orders: u32,
        sql: Option<&str>,
        progress: &ProgressBar,
    ) -> anyhow::Result<Self> {
        let file = folder.join(format!("stampede-orders-{orders}-v{VERSION}.sqlite"));
        if !file.exists() {
            let unfinished = tempfile::Builder::new()
                .prefix("stampede-orders-")
                .tempfile_in(folder)
                .with_context(|| format!("cannot make the database in {}", folder.display()))?;
            fill(unfinished.path(), orders, progress).context("cannot make the database")?;
            unfinished.persist(&file).with_context(|| format!("cannot make {}", file.display()))?;
        }
        Ok(Self { file, sql: sql.unwrap_or(REPORT).to_owned() })
    }

    /// A query on a new connection, which ends early once `stop` is set.
    pub(crate) fn connect(&self, stop: &Arc<AtomicBool>) -> anyhow::Result<Query> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.file, flags)
            .with_context(|| format!("cannot open {}", self.file.display()))?;
        connection
            .pragma_query(None, "schema_version", |_| Ok(()))
            .with_context(|| format!("cannot read {}", self.file.display()))?;
        // A query of ten seconds must not keep the program when its time is up.
        let asked = Arc::clone(stop);
        connection.progress_handler(10_000, Some(move || asked.load(Ordering::Relaxed)))?;
        let (sql, stop) = (self.sql.clone(), Arc::clone(stop));
        Ok(Box::new(move || {
            // Relaxed, here and above: the flag only says "enough", nothing is read on the strength of it.
            if stop.load(Ordering::Relaxed) {
                return Err(Failure::Stopped);
            }
            rows(&connection, &sql).map_err(|error| match (&error, error.sqlite_error_code()) {
                (_, Some(ErrorCode::OperationInterrupted)) if stop.load(Ordering::Relaxed) => {
                    Failure::Stopped
                }
                (rusqlite::Error::InvalidQuery, _) => {
                    Failure::Database("it is not one that returns rows".into())
                }
                _ => Failure::Database(error.to_string()),
            })
        }))
    }

    /// Runs the query once, to know that it works and ends before anything is measured.
    pub(crate) fn check(&self, timeout: Duration) -> anyhow::Result<Report> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut query = self.connect(&stop)?;
        let (ended, wait) = mpsc::channel::<()>();
        let timer = thread::spawn(move || {
            if wait.recv_timeout(timeout) == Err(RecvTimeoutError::Timeout) {
                stop.store(true, Ordering::Relaxed);
            }
        });
        let outcome = query();
        drop(ended);
        timer.join().expect("it does not panic");
        match outcome {
            Ok(rows) => Ok(Report { rows, made: Instant::now() }),
            Err(Failure::Stopped) => bail!(
                "the query has not ended within {}: give it a limit, or raise --query-timeout",
                report::time(timeout)
            ),
            Err(failure) => bail!("the query failed: {failure}"),
        }
    }
}

fn rows(connection: &Connection, sql: &str) -> rusqlite::Result<Vec<Vec<String>>> {
    let mut statement = connection.prepare_cached(sql)?;
    let columns = statement.column_count();
    if columns == 0 {
        return Err(rusqlite::Error::InvalidQuery);
    }
    statement
        .query_map([], |row| (0..columns).map(|column| Ok(text(row.get_ref(column)?))).collect())?
        .collect()
}

fn text(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => String::new(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => number.to_string(),
        ValueRef::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        ValueRef::Blob(bytes) => format!("({} bytes)", bytes.len()),
    }
}

fn fill(file: &Path, orders: u32, progress: &ProgressBar) -> rusqlite::Result<()> {
    let mut connection = Connection::open(file)?;
    // Nobody reads the file before it is complete, and one that is not is never used: no journal, no syncing.
    connection.pragma_update(None, "journal_mode", "OFF")?;
    connection.pragma_update(None, "synchronous", "OFF")?;
    progress.set_length(orders.into());
    let writing = connection.transaction()?;
    writing.execute(SCHEMA, [])?;
    {
        let mut insert = writing.prepare("INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?)")?;
        for id in 0..orders {
            let (dice, more) = (dice(2 * u64::from(id)), dice(2 * u64::from(id) + 1));
            let country = COUNTRIES[usize::try_from(dice % 24).expect("less than 24")];
            let placed = 1_700_000_000 + i64::from(id) * 31;
            // Each from bits of its own, so that they are independent.
            let product = (dice >> 32) % 500;
            let quantity = 1 + (more & 0xffff) % 9;
            let price = 100 + (more >> 32) % 20_000;
            insert.execute((
                id,
                placed,
                country,
                product.cast_signed(),
                quantity.cast_signed(),
                price.cast_signed(),
            ))?;
            if id % 4096 == 0 {
                progress.set_position(id.into());
            }
        }
    }
    writing.execute(INDEX, [])?;
    writing.commit()?;
    connection.close().map_err(|(_, error)| error)
}

/// `SplitMix64`: numbers that look random and are the same on every machine.
fn dice(throw: u64) -> u64 {
    let mut z = throw.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hang guard.
    const HOUR: Duration = Duration::from_secs(3600);

    const ENDLESS: &str =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";

    fn made(orders: u32, sql: Option<&str>) -> (tempfile::TempDir, Database) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let database =
            Database::built_in(folder.path(), orders, sql, &ProgressBar::hidden()).expect("a database");
        (folder, database)
    }

    #[test]
    fn the_content_is_the_same_every_time() {
        let sql = "SELECT count(*), sum(quantity * price), min(country), max(placed) FROM orders";
        let (_first, one) = made(1000, Some(sql));
        let (_second, other) = made(1000, Some(sql));
        let rows = one.check(HOUR).expect("a report").rows;
        assert_eq!(rows, other.check(HOUR).expect("a report").rows);
        assert_eq!(rows, [["1000", "50148481", "AT", "1700030969"]]);
    }

    #[test]
    fn the_report_counts_every_order_once() {
        let (_folder, database) = made(5000, None);
        let rows = database.check(HOUR).expect("a report").rows;
        assert_eq!(rows.len(), COUNTRIES.len());
        let orders: u32 = rows.iter().map(|row| row[1].parse::<u32>().expect("a number")).sum();
        assert_eq!(orders, 5000);
    }

    #[test]
    fn a_second_program_takes_what_the_first_one_made() {
        let (folder, database) = made(10, None);
        let before = std::fs::metadata(&database.file).and_then(|meta| meta.modified()).expect("a file");
        Database::built_in(folder.path(), 10, None, &ProgressBar::hidden()).expect("the same database");
        let after = std::fs::metadata(&database.file).and_then(|meta| meta.modified()).expect("a file");
        assert_eq!(before, after);
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1, "no left-overs");
    }

    #[test]
    fn nothing_can_be_written() {
        let (_folder, database) = made(10, Some("DELETE FROM orders RETURNING id"));
        let error = database.check(HOUR).expect_err("the database is read-only");
        assert!(error.to_string().contains("readonly"), "{error}");
    }

    #[test]
    fn a_query_is_cut_off_when_the_run_is_over() {
        let (_folder, database) = made(10, Some(ENDLESS));
        let stop = Arc::new(AtomicBool::new(false));
        let mut query = database.connect(&stop).expect("a connection");
        let running = thread::spawn(move || (query(), query()));
        stop.store(true, Ordering::Relaxed);
        let outcome = running.join().expect("no panic");
        assert_eq!(outcome, (Err(Failure::Stopped), Err(Failure::Stopped)));
    }

    #[test]
    fn a_query_that_does_not_end_is_given_up() {
        let (_folder, database) = made(10, Some(ENDLESS));
        let error = database.check(Duration::from_millis(20)).expect_err("it never ends").to_string();
        assert!(error.contains("within 20 ms") && error.contains("--query-timeout"), "{error}");
    }
}
