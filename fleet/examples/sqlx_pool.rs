//! A store by a pool of `sqlx`, on the program's own runtime.
//!
//! ```sh
//! cargo run --release -p dogpile-fleet --features postgres --example sqlx_pool -- postgres://user@127.0.0.1/database
//! ```

use std::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use dogpile_fleet::{FleetCell, FleetPolicy, Plain, Row, StoreError, SwapEntry, SwapStore, conformance};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

struct Pooled {
    pool: PgPool,
    runtime: tokio::runtime::Handle,
    timeout: Duration,
}

impl Pooled {
    /// Has the runtime run a query, and waits for the answer.
    fn run<R: Send + 'static>(
        &self,
        query: impl Future<Output = Result<R, sqlx::Error>> + Send + 'static,
    ) -> Result<R, StoreError> {
        let (done, is_done) = sync_channel(1);
        let timeout = self.timeout;
        self.runtime.spawn(async move { done.send(tokio::time::timeout(timeout, query).await) });
        is_done.recv().map_err(StoreError::new)?.map_err(StoreError::new)?.map_err(StoreError::new)
    }
}

impl SwapEntry for Pooled {
    fn read(&self, name: &str) -> Result<Row, StoreError> {
        const READ: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, revision, entry
            FROM (SELECT 1) AS one LEFT JOIN pooled_cache ON name = $1";
        let (pool, name) = (self.pool.clone(), name.to_owned());
        let (now, revision, entry): (i64, Option<i64>, Option<Vec<u8>>) =
            self.run(async move { sqlx::query_as(READ).bind(name).fetch_one(&pool).await })?;
        Ok(Row { now: now.cast_unsigned(), entry: revision.map(i64::cast_unsigned).zip(entry) })
    }

    fn swap(&self, name: &str, from: Option<u64>, to: u64, entry: &[u8]) -> Result<bool, StoreError> {
        const INSERT: &str = "INSERT INTO pooled_cache (name, revision, entry) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING";
        const UPDATE: &str =
            "UPDATE pooled_cache SET revision = $2, entry = $3 WHERE name = $1 AND revision = $4";
        let query = sqlx::query(if from.is_none() { INSERT } else { UPDATE });
        let query = query.bind(name.to_owned()).bind(to.cast_signed()).bind(entry.to_vec());
        let query = if let Some(from) = from { query.bind(from.cast_signed()) } else { query };
        let pool = self.pool.clone();
        Ok(self.run(async move { query.execute(&pool).await })?.rows_affected() == 1)
    }
}

const TABLE: &str = "CREATE TABLE IF NOT EXISTS pooled_cache (name text PRIMARY KEY, revision bigint NOT NULL, entry bytea NOT NULL)";

/// The whole program, so that a test can run it too.
pub(crate) fn run(address: &str) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Runtime::new()?;
    let pool = runtime.block_on(async {
        let pool = PgPoolOptions::new().max_connections(2).connect(address).await?;
        sqlx::query(TABLE).execute(&pool).await?;
        Ok::<_, sqlx::Error>(pool)
    })?;
    let pooled = Pooled { pool, runtime: runtime.handle().clone(), timeout: Duration::from_secs(30) };
    let store = Arc::new(SwapStore::new(pooled));
    conformance::check(&*store, std::thread::sleep);
    let page = FleetCell::new("page", store, Plain, FleetPolicy::ttl(Duration::from_secs(60)));
    println!("{}", page.get_or_refresh(|| String::from("built by one process, used by all")));
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let Some(address) = std::env::args().nth(1) else {
        println!("usage: sqlx_pool postgres://user@host/database");
        return Ok(());
    };
    run(&address)
}
