//! A store by a client of the program's own: here one of `tokio-postgres`, on the program's runtime. `sqlx_pool.rs` does the same with
//! a pool of `sqlx`.
//!
//! ```sh
//! cargo run --release -p dogpile-fleet --features postgres --example own_client -- postgres://user@127.0.0.1/database
//! ```

use std::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use dogpile_fleet::{
    Acquire, PostgresStore, Publication, RefreshStore, Request, Row, StoreError, SwapEntry, SwapStore,
    conformance,
};
use tokio_postgres::{Client, NoTls};

struct OwnClient {
    client: Arc<Client>,
    runtime: tokio::runtime::Handle,
    timeout: Duration,
}

impl OwnClient {
    /// Has the runtime run a query, and waits for the answer.
    fn run<R: Send + 'static>(
        &self,
        query: impl Future<Output = Result<R, tokio_postgres::Error>> + Send + 'static,
    ) -> Result<R, StoreError> {
        let (done, is_done) = sync_channel(1);
        let timeout = self.timeout;
        self.runtime.spawn(async move { done.send(tokio::time::timeout(timeout, query).await) });
        is_done.recv().map_err(StoreError::new)?.map_err(StoreError::new)?.map_err(StoreError::new)
    }
}

impl SwapEntry for OwnClient {
    fn read(&self, name: &str) -> Result<Row, StoreError> {
        const READ: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, revision, entry
            FROM (SELECT 1) AS one LEFT JOIN own_cache ON name = $1";
        let (client, name) = (Arc::clone(&self.client), name.to_owned());
        let row = self.run(async move { client.query_one(READ, &[&name]).await })?;
        let entry = row.get::<_, Option<i64>>(1).map(i64::cast_unsigned).zip(row.get(2));
        Ok(Row { now: row.get::<_, i64>(0).cast_unsigned(), entry })
    }

    fn swap(&self, name: &str, from: Option<u64>, to: u64, entry: &[u8]) -> Result<bool, StoreError> {
        const INSERT: &str =
            "INSERT INTO own_cache (name, revision, entry) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING";
        const UPDATE: &str =
            "UPDATE own_cache SET revision = $2, entry = $3 WHERE name = $1 AND revision = $4";
        let (client, name, to, entry) =
            (Arc::clone(&self.client), name.to_owned(), to.cast_signed(), entry.to_vec());
        let swapped = self.run(async move {
            match from.map(u64::cast_signed) {
                None => client.execute(INSERT, &[&name, &to, &entry]).await,
                Some(from) => client.execute(UPDATE, &[&name, &to, &entry, &from]).await,
            }
        })?;
        Ok(swapped == 1)
    }
}

const TABLE: &str = "CREATE TABLE IF NOT EXISTS own_cache (name text PRIMARY KEY, revision bigint NOT NULL, entry bytea NOT NULL)";

/// The whole program, so that a test can run it too.
pub(crate) fn run(address: &str) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Runtime::new()?;
    let client = runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(address, NoTls).await?;
        tokio::spawn(connection);
        client.batch_execute(TABLE).await?;
        Ok::<_, tokio_postgres::Error>(client)
    })?;
    let timeout = Duration::from_secs(30);
    let own = OwnClient { client: Arc::new(client), runtime: runtime.handle().clone(), timeout };
    let own = SwapStore::new(own);
    conformance::check(&own, std::thread::sleep);
    println!(
        "the store keeps all rules\n\nmicroseconds per operation, with a value of 100 kB (median of 50):"
    );

    let built_in = PostgresStore::new(address)?.timeout(timeout);
    for (what, store) in [("PostgresStore", &built_in as &dyn RefreshStore), ("SwapStore", &own)] {
        let [poll, acquire, renew, publish] = measure(store)?;
        println!("{what:14} poll {poll:>6}   acquire {acquire:>6}   renew {renew:>6}   publish {publish:>6}");
    }
    Ok(())
}

fn measure(store: &dyn RefreshStore) -> Result<[u128; 4], StoreError> {
    let payload = vec![b'x'; 100_000];
    let mut times: [Vec<u128>; 4] = Default::default();
    let mut known = None;
    for _ in 0..50 {
        let start = Instant::now();
        store.poll("measured", known)?;
        times[0].push(start.elapsed().as_micros());

        let request =
            Request { known, ahead: dogpile_fleet::LONGEST, ..Request::new(Duration::from_secs(60)) };
        let start = Instant::now();
        let Acquire::Won { token, .. } = store.acquire("measured", &request)? else {
            return Err(StoreError::new("somebody else uses the name `measured`"));
        };
        times[1].push(start.elapsed().as_micros());

        let start = Instant::now();
        store.renew("measured", &token, Duration::from_secs(60))?;
        times[2].push(start.elapsed().as_micros());

        let (soft, hard) = (Duration::from_secs(1), Duration::from_secs(60));
        let publication = Publication { payload: &payload, tag: None, soft, hard };
        let start = Instant::now();
        if let dogpile_fleet::Publish::Stored(version) = store.publish("measured", &token, &publication)? {
            known = Some(version);
        }
        times[3].push(start.elapsed().as_micros());
    }
    Ok(times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2]
    }))
}

fn main() -> Result<(), Box<dyn Error>> {
    let Some(address) = std::env::args().nth(1) else {
        println!("usage: own_client postgres://user@host/database");
        return Ok(());
    };
    run(&address)
}
