//! Clients that a pool of the program's own lends.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use tokio_postgres::Client;

use crate::store::StoreError;

/// Where a [`PostgresStore`](crate::PostgresStore) gets its clients for operations, if the program has a pool. Given to
/// [`PostgresStore::pool`](crate::PostgresStore::pool).
///
/// # Examples
///
/// With `deadpool-postgres`:
///
/// ```
/// use deadpool_postgres::{Manager, Object, Pool};
/// use dogpile_fleet::{PostgresClient, PostgresPool, PostgresStore, StoreError};
/// use tokio_postgres::{Config, NoTls};
///
/// struct Shop(Pool);
///
/// impl PostgresPool for Shop {
///     async fn lend(&self) -> Result<PostgresClient, StoreError> {
///         let object = self.0.get().await.map_err(StoreError::new)?;
///         Ok(PostgresClient::new(object, |object| object, |object| drop(Object::take(object))))
///     }
/// }
///
/// let mut config = Config::new();
/// config.host("db.example").user("shop");
/// let pool = Pool::builder(Manager::new(config.clone(), NoTls)).max_size(8).build()?;
/// let store = PostgresStore::with_tls(config, NoTls).pool(Shop(pool));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait PostgresPool: Send + Sync + 'static {
    /// Lends a client that nobody else uses meanwhile. Called for each operation, on the thread `dogpile-fleet-io`, and given up
    /// when the store's timeout has passed.
    ///
    /// # Errors
    ///
    /// If there is none: the operation fails.
    fn lend(&self) -> impl Future<Output = Result<PostgresClient, StoreError>> + Send;
}

/// A client that a [`PostgresPool`] has lent. Dropped, it goes back to the pool.
pub struct PostgresClient(Box<dyn Lent>);

impl PostgresClient {
    /// Wraps what a pool lends. `client` finds the client in it.
    ///
    /// `discard` is called in place of the drop if the connection must not be used any more, because the answer to an operation, or
    /// the request to stop it, may still be under way. It has to take it out of the pool.
    pub fn new<L: Send + Sync + 'static>(lent: L, client: fn(&L) -> &Client, discard: fn(L)) -> Self {
        Self(Box::new(Wrapped { lent, client, discard }))
    }

    pub(super) fn client(&self) -> &Client {
        self.0.client()
    }

    pub(super) fn discard(self) {
        self.0.discard();
    }
}

impl fmt::Debug for PostgresClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresClient").finish_non_exhaustive()
    }
}

trait Lent: Send + Sync {
    fn client(&self) -> &Client;
    fn discard(self: Box<Self>);
}

struct Wrapped<L> {
    lent: L,
    client: fn(&L) -> &Client,
    discard: fn(L),
}

impl<L: Send + Sync> Lent for Wrapped<L> {
    fn client(&self) -> &Client {
        (self.client)(&self.lent)
    }

    fn discard(self: Box<Self>) {
        (self.discard)(self.lent);
    }
}

type Lending<'a> = Pin<Box<dyn Future<Output = Result<PostgresClient, StoreError>> + Send + 'a>>;

/// As [`PostgresPool`], for one that is boxed.
pub(super) trait AnyPool: Send + Sync {
    fn lend(&self) -> Lending<'_>;
}

impl<P: PostgresPool> AnyPool for P {
    fn lend(&self) -> Lending<'_> {
        Box::pin(PostgresPool::lend(self))
    }
}
