//! What the futures demand of those who send them to another thread: no more than what is in them.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use dogpile::{DogpileCell, LazyDogpile, OwnedPending, Pending, ReaderArc, SyncReaderCell};

fn is_send<T: Send>(_: &T) {}
fn is_unpin<T: Unpin>() {}
fn is_sync<T: Sync>() {}
fn is_send_type<T: Send>() {}

/// `Send` but not `Sync`: what a build may hold across an await point.
type Unshared = std::cell::Cell<u32>;

async fn build(held: Unshared) -> u32 {
    futures_lite::future::yield_now().await;
    held.get()
}

async fn try_build(held: Unshared) -> Result<u32, String> {
    futures_lite::future::yield_now().await;
    Ok(held.get())
}

#[test]
fn futures_are_send_where_the_build_and_the_value_are() {
    let cell: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    let held = || Unshared::new(1);
    is_send(&cell.get_or_refresh_async(|| build(held())));
    is_send(&cell.try_get_or_refresh_async(|| try_build(held())));
    is_send(&cell.get_fresh_or_refresh_async(|| build(held())));

    let cell: SyncReaderCell<u32> = SyncReaderCell::new(Duration::from_secs(60), drop);
    is_send(&cell.get_or_refresh_async(|| build(held())));
    is_send(&cell.try_get_or_refresh_async(|| try_build(held())));
    is_send(&cell.get_fresh_or_refresh_async(|| build(held())));
    is_send(&cell.synchronize_async());

    let lazy = LazyDogpile::<u32, _>::new(Duration::from_secs(60), || build(Unshared::new(1)));
    is_send(&lazy.get_async());
}

#[test]
fn places_are_send_and_unpin() {
    is_send_type::<Pending<'_, u32>>();
    is_send_type::<OwnedPending<u32>>();
    is_sync::<OwnedPending<u32>>();
    is_unpin::<Pending<'_, std::marker::PhantomPinned>>();
    is_unpin::<OwnedPending<std::marker::PhantomPinned>>();
}

/// The future holds the cell and the build, and nothing of the caller's besides.
#[test]
fn a_future_can_be_returned_by_who_owns_neither_closure_nor_value() {
    fn read(cell: &DogpileCell<String>) -> impl Future<Output = Arc<String>> + Send + use<'_> {
        cell.get_or_refresh_async(|| async { String::from("built") })
    }
    fn read_tracked(
        cell: &SyncReaderCell<String>,
    ) -> impl Future<Output = ReaderArc<String>> + Send + use<'_> {
        cell.get_or_refresh_async(|| async { String::from("built") })
    }
    let cell = DogpileCell::new(Duration::from_secs(60));
    assert_eq!(*futures_lite::future::block_on(read(&cell)), "built");
    let cell = SyncReaderCell::new(Duration::from_secs(60), drop);
    assert_eq!(*futures_lite::future::block_on(read_tracked(&cell)), "built");
}
