//! Users in a database, a cache of them, and a server.

mod server;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dogpile::{Policy, RefreshError};
use dogpile_map::DogpileMap;
use rusqlite::{Connection, params_from_iter};

pub use server::{Server, routes};

/// A row.
#[derive(Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct User {
    /// Its key.
    pub id: i64,
    /// What to call them.
    pub name: String,
}

/// A table of users, behind one connection, and how much it was asked.
pub struct Database {
    connection: Mutex<Connection>,
    queries: AtomicU64,
    rows: AtomicU64,
}

impl Database {
    /// With users 0 to `users`, but no user whose id ends in 9.
    pub fn in_memory(users: i64) -> rusqlite::Result<Self> {
        let mut connection = Connection::open_in_memory()?;
        connection.execute_batch("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL)")?;
        let transaction = connection.transaction()?;
        for id in (0..users).filter(|id| id % 10 != 9) {
            transaction.execute("INSERT INTO users VALUES (?1, ?2)", (id, format!("user {id}")))?;
        }
        transaction.commit()?;
        Ok(Self { connection: Mutex::new(connection), queries: AtomicU64::new(0), rows: AtomicU64::new(0) })
    }

    /// The users with these ids, as far as there are any: one query.
    pub fn select(&self, ids: &[i64]) -> rusqlite::Result<Vec<(i64, User)>> {
        self.queries.fetch_add(1, Ordering::Relaxed);
        self.rows.fetch_add(ids.len() as u64, Ordering::Relaxed);
        let marks = vec!["?"; ids.len()].join(", ");
        // A panic of another thread leaves the connection as it is.
        let connection = self.connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut statement =
            connection.prepare_cached(&format!("SELECT id, name FROM users WHERE id IN ({marks})"))?;
        let rows = statement.query_map(params_from_iter(ids), |row| {
            let (id, name) = (row.get(0)?, row.get(1)?);
            Ok((id, User { id, name }))
        })?;
        rows.collect()
    }

    /// Renames a user.
    pub fn rename(&self, id: i64, name: &str) -> rusqlite::Result<()> {
        let connection = self.connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        connection.execute("UPDATE users SET name = ?2 WHERE id = ?1", (id, name)).map(drop)
    }

    /// Queries so far, and ids that they asked for.
    pub fn asked(&self) -> (u64, u64) {
        (self.queries.load(Ordering::Relaxed), self.rows.load(Ordering::Relaxed))
    }
}

/// Users, from the cache or from the database.
pub struct Users {
    database: Arc<Database>,
    /// Also of ids without a user, so that they are not asked for again and again.
    cache: DogpileMap<i64, Option<Arc<User>>>,
}

impl Users {
    /// With a cache of so many users, each fresh for `ttl`.
    pub fn new(database: Database, capacity: usize, ttl: Duration) -> Self {
        // Spread, so that what is read together is not always rebuilt together.
        let policy = Policy::ttl(ttl).jitter(20);
        let cache = DogpileMap::builder(policy).max_entries(capacity).name("users").build();
        Self { database: Arc::new(database), cache }
    }

    /// One of them; `None`: there is no such user.
    pub fn get(&self, id: i64) -> Result<Option<Arc<User>>, RefreshError> {
        let found = self.get_many(&[id])?;
        Ok(found.into_iter().next().flatten())
    }

    /// Many of them, with at most one query.
    pub fn get_many(&self, ids: &[i64]) -> Result<Vec<Option<Arc<User>>>, RefreshError> {
        let found =
            self.cache.get_many(ids, |due| self.database.select(due).map(|rows| with_absent(due, rows)))?;
        Ok(found.into_iter().map(|user| user.and_then(|user| (*user).clone())).collect())
    }

    /// As [`get_many`](Self::get_many), for a task. Only a query takes a thread that may block; hits do not.
    pub async fn get_many_async(&self, ids: &[i64]) -> Result<Vec<Option<Arc<User>>>, RefreshError> {
        let database = Arc::clone(&self.database);
        // It owns what it uses: with a borrow of `self`, the compiler would not see that the future is `Send`.
        let query = async move |due: &[i64]| {
            let (database, ids) = (Arc::clone(&database), due.to_vec());
            let rows = tokio::task::spawn_blocking(move || database.select(&ids)).await;
            let rows = rows.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
            Ok::<_, rusqlite::Error>(with_absent(due, rows))
        };
        let found = self.cache.get_many_async(ids, query).await?;
        Ok(found.into_iter().map(|user| user.and_then(|user| (*user).clone())).collect())
    }

    /// Renames a user. Later calls get the new name, or the old one while one of them reads the new one.
    pub fn rename(&self, id: i64, name: &str) -> rusqlite::Result<()> {
        self.database.rename(id, name)?;
        self.cache.invalidate(&id);
        Ok(())
    }

    /// The database, to look at its figures.
    #[must_use]
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// The cache, to look at its figures.
    #[must_use]
    pub fn cache(&self) -> &DogpileMap<i64, Option<Arc<User>>> {
        &self.cache
    }
}

/// The rows of these ids, and `None` for those that have none.
fn with_absent(ids: &[i64], rows: Vec<(i64, User)>) -> Vec<(i64, Option<Arc<User>>)> {
    let mut rows: HashMap<i64, User> = rows.into_iter().collect();
    ids.iter().map(|id| (*id, rows.remove(id).map(Arc::new))).collect()
}
