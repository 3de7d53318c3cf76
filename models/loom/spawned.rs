//! Builds that are handed to a spawner: G5, G7, G13.

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use dogpile_under_test::{Job, RefreshError, Task};

use crate::support::{Model, NoonCell, cell, fork, saw};
use crate::tasks::{block_on, poll_once};

pub(crate) const MODELS: &[Model] = &[
    Model {
        name: "g13_a_caller_that_gives_up_leaves_a_first_build_to_a_waiter",
        preemptions: Some(1),
        body: a_caller_that_gives_up_leaves_a_first_build_to_a_waiter,
        sees: &["handed over", "served"],
    },
    Model {
        name: "g13_a_caller_that_waits_for_nothing_gets_the_value_or_gives_up",
        preemptions: Some(3),
        body: a_caller_that_waits_for_nothing_gets_the_value_or_gives_up,
        sees: &["gave up", "in time"],
    },
    Model {
        name: "g5_a_job_that_is_dropped_is_taken_over_by_a_waiter",
        preemptions: Some(2),
        body: a_job_that_is_dropped_is_taken_over_by_a_waiter,
        sees: &["abandoned", "served by the waiter", "taken over after a wait"],
    },
    Model {
        name: "g5_the_caller_of_a_job_that_succeeds_is_woken",
        preemptions: Some(3),
        body: the_caller_of_a_job_that_succeeds_is_woken,
        sees: &["waited", "at once"],
    },
    Model {
        name: "g5_the_caller_of_a_job_that_fails_is_woken",
        preemptions: Some(3),
        body: the_caller_of_a_job_that_fails_is_woken,
        sees: &["waited", "at once"],
    },
    Model {
        name: "g5_the_caller_of_a_job_that_is_dropped_is_woken",
        preemptions: Some(3),
        body: the_caller_of_a_job_that_is_dropped_is_woken,
        sees: &["waited", "at once"],
    },
    Model {
        name: "g7_the_caller_and_the_waiters_of_a_job_share_its_error",
        preemptions: Some(2),
        body: the_caller_and_the_waiters_of_a_job_share_its_error,
        sees: &["shared", "built"],
    },
    Model {
        name: "g13_a_future_that_is_dropped_leaves_its_task_to_a_waiter",
        preemptions: Some(2),
        body: a_future_that_is_dropped_leaves_its_task_to_a_waiter,
        sees: &["dropped while it waited", "handed over"],
    },
];

/// A spawner that keeps the job for a thread of the model.
fn keep<W: Send + 'static>(kept: &Arc<Mutex<Option<W>>>) -> impl FnOnce(W) + use<W> {
    let kept = Arc::clone(kept);
    move |work| *kept.lock().unwrap() = Some(work)
}

fn take<W>(kept: &Mutex<Option<W>>) -> W {
    kept.lock().unwrap().take().expect("the first caller is elected")
}

/// A cell whose first build is in the hands of the model. Its caller has not waited.
fn started(error: Option<&'static str>) -> (Arc<NoonCell<u32>>, Job) {
    let (cell, kept) = (cell(), Arc::default());
    let request = cell.request_owned().wait_at_most(Duration::ZERO).spawn_with(keep(&kept));
    let given_up = request.try_get(move || error.map_or(Ok(1), Err));
    assert!(matches!(given_up, Err(RefreshError::WaitTimeout)));
    (cell, take(&kept))
}

fn a_caller_that_gives_up_leaves_a_first_build_to_a_waiter() {
    let (cell, job) = started(None);
    let waiters = [(); 2].map(|()| {
        fork(&cell, |cell| {
            let value = cell.get_or_refresh(|| unreachable!("the job builds"));
            assert_eq!(*value, 1);
        })
    });
    job();
    for waiter in waiters {
        waiter.join().unwrap();
    }
    // The caller that gave up did not wait.
    saw(if cell.stats().waits > 0 { "handed over" } else { "served" });
}

fn a_caller_that_waits_for_nothing_gets_the_value_or_gives_up() {
    let cell = cell();
    let request = cell.request_owned().wait_at_most(Duration::ZERO);
    match request.spawn_with(|job: Job| fork(&(), move |()| job())).try_get(|| Ok::<u32, String>(1)) {
        Ok(value) => {
            assert_eq!(*value, 1);
            saw("in time");
        }
        Err(RefreshError::WaitTimeout) => saw("gave up"),
        Err(other) => panic!("{other}"),
    }
}

fn a_job_that_is_dropped_is_taken_over_by_a_waiter() {
    let cell = cell();
    let kept = Arc::default();
    // The spawner only gives the job away: the caller waits on its own thread.
    let caller = fork(&(Arc::clone(&cell), Arc::clone(&kept)), |(cell, kept)| {
        let request = cell.request_owned().spawn_with(|job: Job| {
            let dropper = fork(&kept, move |_: Arc<Mutex<Option<Job>>>| drop(job));
            // It ends by itself.
            drop(dropper);
        });
        match request.try_get(|| Ok::<u32, String>(1)) {
            Ok(value) => {
                assert_eq!(*value, 2, "the job never builds");
                saw("served by the waiter");
            }
            Err(RefreshError::Abandoned) => saw("abandoned"),
            Err(other) => panic!("{other}"),
        }
    });
    assert_eq!(*cell.get_or_refresh(|| 2), 2);
    if cell.stats().waits > 0 && cell.stats().abandoned > 0 {
        saw("taken over after a wait");
    }
    caller.join().unwrap();
    assert_eq!((cell.get().as_deref(), cell.stats().published), (Some(&2), 1));
    drop(kept);
}

/// The caller waits for its own job, which ends on another thread.
fn wait_for(end: fn(Job), error: Option<&'static str>) -> Result<u32, RefreshError> {
    let cell = cell();
    let request = cell.request_owned().spawn_with(move |job: Job| fork(&(), move |()| end(job)));
    let result = request.try_get(move || error.map_or(Ok(1), Err)).map(|value| *value);
    saw(if cell.stats().waits > 0 { "waited" } else { "at once" });
    assert!(!cell.is_refreshing() || result.is_ok(), "the lease comes back before the caller does");
    result
}

fn the_caller_of_a_job_that_succeeds_is_woken() {
    assert_eq!(wait_for(|job| job(), None).ok(), Some(1));
}

fn the_caller_of_a_job_that_fails_is_woken() {
    let result = wait_for(|job| job(), Some("no route to host"));
    assert!(matches!(result, Err(RefreshError::Build(error)) if error.to_string() == "no route to host"));
}

fn the_caller_of_a_job_that_is_dropped_is_woken() {
    assert!(matches!(wait_for(drop, None), Err(RefreshError::Abandoned)));
}

fn the_caller_and_the_waiters_of_a_job_share_its_error() {
    let (cell, job) = started(Some("no route to host"));
    let job = Mutex::new(Some(job));
    let waiters = [2, 3].map(|number| {
        fork(&cell, move |cell| cell.try_get_or_refresh(|| Ok::<u32, String>(number)).map(|value| *value))
    });
    take(&job)();
    let mut built = None;
    for waiter in waiters {
        match waiter.join().unwrap() {
            Ok(value) => {
                assert_eq!(value, *built.get_or_insert(value));
                saw("built");
            }
            Err(error) => {
                assert_eq!(error.to_string(), "no route to host");
                saw("shared");
            }
        }
    }
    assert_eq!(cell.stats().builds, if built.is_some() { 2 } else { 1 });
}

fn a_future_that_is_dropped_leaves_its_task_to_a_waiter() {
    let (cell, kept) = (cell(), Arc::<Mutex<Option<Task>>>::default());
    let request = cell.request_owned().spawn_with(keep(&kept));
    let future = request.get_async(|| async { 1 });
    {
        let mut future = pin!(future);
        assert!(matches!(poll_once(future.as_mut()), Poll::Pending), "the task has not begun");
        saw("dropped while it waited");
    }
    let task = fork(&kept, |kept| block_on(take(&kept)));
    let value = *cell.get_or_refresh(|| unreachable!("the task builds"));
    assert_eq!(value, 1);
    if cell.stats().waits > 1 {
        saw("handed over");
    }
    task.join().unwrap();
    assert!(!cell.is_refreshing());
}
