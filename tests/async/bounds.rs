//! The futures are `Send` where what is in them is.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use dogpile::{
    DogpileCell, LazyDogpile, Lease, Lookup, Pending, ReaderArc, Refreshed, Refresher, SyncReaderCell,
};

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
    is_send(&cell.request().no_cache().get_async(|| build(held())));
    is_send(&cell.request().try_get_async(|| try_build(held())));
    is_send(&cell.request().try_get_with_async(|_| async { try_build(held()).await.map(Refreshed::New) }));

    let cell: SyncReaderCell<u32> = SyncReaderCell::new(Duration::from_secs(60), drop);
    is_send(&cell.get_or_refresh_async(|| build(held())));
    is_send(&cell.try_get_or_refresh_async(|| try_build(held())));
    is_send(&cell.request().no_cache().get_async(|| build(held())));
    is_send(&cell.request().try_get_with_async(|_| async { try_build(held()).await.map(Refreshed::New) }));
    is_send(&cell.synchronize_async());

    let lazy = LazyDogpile::<u32, _>::new(Duration::from_secs(60), || build(Unshared::new(1)));
    is_send(&lazy.get_or_refresh_async());
    is_send(&lazy.request().no_cache().get_async());
    let lazy = LazyDogpile::<u32, _>::new(Duration::from_secs(60), || try_build(Unshared::new(1)));
    is_send(&lazy.try_get_or_refresh_async());
    is_send(&lazy.request().no_cache().try_get_async());
}

/// The spawner is not held while the caller waits, so it need not be `Sync`; nor what it returns `Send`.
#[test]
fn futures_of_a_caller_that_spawns_its_build_are_send_where_the_spawner_is() {
    static CELL: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    let held = || Unshared::new(1);
    let unshared = Unshared::new(1);
    let spawn = move |task| {
        unshared.set(2);
        smol::spawn(task).detach();
        std::rc::Rc::new(1)
    };
    let request = CELL.request().spawn_with(spawn.clone());
    is_send(&request.get_async(move || build(held())));
    is_send(&CELL.request().spawn_with(spawn.clone()).try_get_async(move || try_build(held())));
    let conditional = move |_| async move { try_build(held()).await.map(Refreshed::New) };
    is_send(&CELL.request().spawn_with(spawn).try_get_with_async(conditional));
}

#[test]
fn the_twins_of_a_refresher_are_send() {
    static CELL: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    let refresher = Refresher::spawn_async(&CELL, Duration::from_secs(1), drop, |_| build(Unshared::new(1)));
    let refresher = refresher.unwrap();
    is_send(&refresher.wait_ready_async(Duration::ZERO));
    is_send(&refresher.stop_timeout_async(Duration::ZERO));
}

#[test]
fn places_are_send_and_unpin() {
    is_send_type::<Pending<'_, u32>>();
    is_send_type::<Lease<'static, u32>>();
    is_send_type::<Lookup<'static, u32>>();
    is_sync::<Pending<'_, u32>>();
    is_unpin::<Pending<'_, std::marker::PhantomPinned>>();
}

/// The future borrows the cell only.
#[test]
fn a_future_can_be_returned_by_a_function_that_borrows_the_cell() {
    fn read(cell: &DogpileCell<String>) -> impl Future<Output = Arc<String>> + Send + use<'_> {
        cell.get_or_refresh_async(|| async { String::from("built") })
    }
    fn read_tracked(
        cell: &SyncReaderCell<String>,
    ) -> impl Future<Output = ReaderArc<String>> + Send + use<'_> {
        cell.get_or_refresh_async(|| async { String::from("built") })
    }
    fn read_on_conditions(cell: &DogpileCell<String>) -> impl Future<Output = Arc<String>> + Send + use<'_> {
        cell.request().no_cache().get_async(|| async { String::from("built") })
    }
    let cell = DogpileCell::new(Duration::from_secs(60));
    assert_eq!(*futures_lite::future::block_on(read(&cell)), "built");
    assert_eq!(*futures_lite::future::block_on(read_on_conditions(&cell)), "built");
    let cell = SyncReaderCell::new(Duration::from_secs(60), drop);
    assert_eq!(*futures_lite::future::block_on(read_tracked(&cell)), "built");
}
