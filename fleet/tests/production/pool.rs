//! A pool, or a connection, of the program's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use deadpool_postgres::{Manager, Object, Pool};
use dogpile_fleet::{
    Invalidation, PostgresClient, PostgresPool, PostgresStore, RedisConnect, RedisConnection, RedisStore,
    RefreshStore, StoreError, conformance,
};
use redis::RedisFuture;
use redis::aio::{ConnectionManager, PubSub};
use tokio_postgres::{Config, NoTls};

use crate::servers::{Kind, address, number, server_or_skip};
use crate::toxic::Proxy;
use crate::{HANG, PATIENT, SECOND, at_once, cell, eventually, text};

/// As in the example of `PostgresPool`, and counts.
struct Counting {
    pool: Pool,
    lent: Arc<AtomicUsize>,
}

impl PostgresPool for Counting {
    async fn lend(&self) -> Result<PostgresClient, StoreError> {
        self.lent.fetch_add(1, Ordering::SeqCst);
        let object = self.pool.get().await.map_err(StoreError::new)?;
        Ok(PostgresClient::new(object, |object| object, |object| drop(Object::take(object))))
    }
}

fn with_pool(address: &str, size: usize) -> (PostgresStore, Pool, Arc<AtomicUsize>) {
    let config: Config = address.parse().unwrap();
    let pool = Pool::builder(Manager::new(config.clone(), NoTls)).max_size(size).build().unwrap();
    let lent = Arc::default();
    let counting = Counting { pool: pool.clone(), lent: Arc::clone(&lent) };
    (PostgresStore::with_tls(config, NoTls).pool(counting), pool, lent)
}

#[test]
fn postgres_with_a_pool_of_the_programs_own_keeps_the_rules_and_makes_no_other_connections() {
    let server = server_or_skip!(Kind::Postgres);
    let (store, pool, lent) = with_pool(&server.address(), 2);
    let store = Arc::new(store.timeout(HANG));
    conformance::check(&*store, std::thread::sleep);
    let page = cell(Arc::clone(&store), PATIENT);
    assert_eq!(*page.get_or_refresh(|| text("value")), "value");
    let threads: Vec<_> = (0..8)
        .map(|number| {
            let store = Arc::clone(&store);
            std::thread::spawn(move || store.invalidate(&format!("name {number}"), Invalidation::Soft))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap().unwrap();
    }
    assert!(lent.load(Ordering::SeqCst) > 8);
    assert!(pool.status().size <= 2, "{:?}", pool.status());
    let count = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    let connections = number(&server.address(), count).unwrap();
    assert!(connections <= 3, "{connections}: two of the pool, and one for hints");
    // The cell may be looking at this moment.
    eventually("all of them are back", || pool.status().available == pool.status().size);
}

#[test]
fn postgres_a_connection_that_answers_late_does_not_go_back_to_the_pool() {
    let server = server_or_skip!(Kind::Postgres);
    let proxy = Proxy::start(server.port);
    let (store, pool, _) = with_pool(&address(Kind::Postgres, proxy.port), 1);
    let store = Arc::new(store.timeout(SECOND));
    let invalidate = {
        let store = Arc::clone(&store);
        move || store.invalidate("name", Invalidation::Soft)
    };
    while invalidate().is_err() {
        // A host that is busy.
    }
    assert_eq!(pool.status().size, 1);
    proxy.hold();
    let error = at_once("an error", invalidate.clone()).unwrap_err();
    assert!(error.to_string().contains("timeout"), "{error}");
    assert_eq!(pool.status().size, 0, "it was taken out");
    proxy.release();
    at_once("it works again", move || while invalidate().is_err() {});
    assert_eq!((pool.status().size, pool.status().available), (1, 1));
}

#[test]
fn postgres_a_pool_that_lends_nothing_is_an_error_of_the_operation() {
    struct Exhausted;
    impl PostgresPool for Exhausted {
        async fn lend(&self) -> Result<PostgresClient, StoreError> {
            Err(StoreError::new("the pool is closed"))
        }
    }
    let store = PostgresStore::new("postgres://nobody@127.0.0.1:1/").unwrap().pool(Exhausted);
    let error = store.poll("name", None).unwrap_err();
    assert!(error.to_string().ends_with("the pool is closed"), "{error}");
}

/// As in the example of `RedisConnect`: the connection is the program's, and comes back with the server.
#[test]
fn redis_a_connection_that_is_lent_survives_a_restart() {
    struct Lent(ConnectionManager, redis::Client);
    impl RedisConnect for Lent {
        fn connect(&self) -> RedisFuture<'_, RedisConnection> {
            let connection = RedisConnection::new(self.0.clone());
            Box::pin(async { Ok(connection) })
        }
        fn listen(&self) -> RedisFuture<'_, PubSub> {
            Box::pin(self.1.get_async_pubsub())
        }
    }
    let mut server = server_or_skip!(Kind::Redis);
    let client = redis::Client::open(server.address()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let manager = runtime.block_on(ConnectionManager::new(client.clone())).unwrap();
    let store = RedisStore::with_connect(Lent(manager, client)).timeout(HANG);
    let node = cell(store, PATIENT);
    node.get_or_refresh(|| text("before"));
    assert_eq!((node.stats().published, node.stats().store_errors), (1, 0));
    server.kill();
    server.run().unwrap();
    // Its memory is gone, which counts as an invalidation.
    eventually("a build of the whole fleet", || {
        node.invalidate().is_ok()
            && *node.get_or_refresh(|| text("after")) == "after"
            && node.stats().published > 1
    });
}
