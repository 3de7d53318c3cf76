use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use dogpile::{ManualClock, SystemClock};

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const HANG: Duration = Duration::from_secs(60);

#[track_caller]
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let hang = Instant::now() + HANG;
    while !condition() {
        assert!(Instant::now() < hang, "never: {what}");
        std::thread::yield_now();
    }
}

/// An actor that runs a closure.
struct Acts<F> {
    store: usize,
    step: F,
}

impl<F: Fn() -> Next + Send + Sync> Actor for Acts<F> {
    fn step(&self) -> Next {
        (self.step)()
    }

    fn store(&self) -> usize {
        self.store
    }
}

fn attach<C: Clock + Clone + 'static>(
    scheduler: &Arc<Scheduler<C>>,
    store: usize,
    step: impl Fn() -> Next + Send + Sync + 'static,
) -> u64 {
    scheduler.attach(Arc::new(Acts { store, step }), store).expect("a thread")
}

/// A step that says that it has begun, waits until it may end, and is the last one.
fn held(store: usize, begun: &Sender<usize>) -> (impl Fn() -> Next + Send + Sync + 'static, Sender<()>) {
    let (end, may_end) = channel();
    let (begun, may_end): (_, Mutex<Receiver<()>>) = (begun.clone(), Mutex::new(may_end));
    let step = move || {
        begun.send(store).unwrap();
        may_end.lock().unwrap().recv().unwrap();
        Next::Over
    };
    (step, end)
}

#[test]
fn what_runs_next() {
    // The stores of what is ready, in order; those of what runs; which of the former is taken.
    let table: [(&[usize], &[usize], Option<usize>); 7] = [
        (&[], &[], None),
        (&[1, 2], &[], Some(0)),
        (&[1, 2], &[1], Some(1)),
        (&[1, 1, 2], &[1, 2], Some(0)),
        (&[1, 2, 3], &[1, 2, 2], Some(2)),
        (&[1, 1], &[1, 1], Some(0)),
        (&[1, 1], &[1, 1, 1], None),
    ];
    for (ready, running, taken) in table {
        let mut state = all_ready(ready);
        for store in running {
            state.stores.entry(*store).or_default().running += 1;
        }
        let number = state.take_ready(THREADS - 1).map(|(number, _)| usize::try_from(number).unwrap());
        assert_eq!(number, taken, "{ready:?} {running:?}");
        let runs: usize = state.stores.values().map(|queue| queue.running).sum();
        assert_eq!(runs, running.len() + usize::from(taken.is_some()));
    }
}

/// Actors that are ready in this order, of these stores.
fn all_ready(stores: &[usize]) -> State {
    let mut state = State::default();
    for (number, &store) in (0..).zip(stores) {
        let actor = Arc::new(Acts { store, step: || Next::Over });
        state.tasks.insert(number, Task { actor, store, phase: Phase::Ready });
        state.is_ready(number);
    }
    state
}

#[test]
fn no_actor_is_overtaken_by_one_of_an_equally_busy_store() {
    let mut state = all_ready(&[1, 1, 1, 2, 3, 1]);
    let mut take = |ends: Option<usize>| {
        if let Some(store) = ends {
            state.has_ended(store);
        }
        state.take_ready(THREADS - 1).map(|(number, _)| number)
    };
    // A store that has more to do takes no more turns.
    let taken = [None; 7].map(&mut take);
    assert_eq!(taken, [Some(0), Some(3), Some(4), Some(1), Some(2), None, None]);
    assert_eq!(take(Some(1)), Some(5));
    for store in [1, 1, 1, 2, 3] {
        assert_eq!(take(Some(store)), None);
    }
    assert!(state.stores.is_empty(), "nothing is kept of stores with nothing to do");

    // With one thread: in the order in which they have become ready, and again when they do so again.
    let mut state = all_ready(&[2, 1, 1, 2]);
    let mut taken = Vec::new();
    for _ in 0..8 {
        let (number, actor) = state.take_ready(1).unwrap();
        taken.push(number);
        state.is_ready(number);
        state.has_ended(actor.store());
    }
    assert_eq!(taken, [0, 1, 2, 3, 0, 1, 2, 3]);
}

#[test]
fn a_store_that_hangs_leaves_a_thread_to_the_others() {
    let scheduler = Scheduler::new(SystemClock, THREADS);
    let (begun, has_begun) = channel();
    let ends: Vec<Sender<()>> = (0..6)
        .map(|_| {
            let (step, end) = held(1, &begun);
            attach(&scheduler, 1, step);
            end
        })
        .collect();
    for _ in 0..3 {
        assert_eq!(has_begun.recv_timeout(HANG), Ok(1));
    }
    for _ in 0..10 {
        let (step, end) = held(2, &begun);
        end.send(()).unwrap();
        attach(&scheduler, 2, step);
        assert_eq!(has_begun.recv_timeout(HANG), Ok(2), "no more than three of the other store");
    }
    assert!(scheduler.lock().threads <= THREADS);
    for end in ends {
        end.send(()).unwrap();
    }
    for _ in 3..6 {
        assert_eq!(has_begun.recv_timeout(HANG), Ok(1));
    }
    eventually("the threads end with the last actor", || scheduler.lock().threads == 0);
    let (step, end) = held(3, &begun);
    attach(&scheduler, 3, step);
    assert_eq!(has_begun.recv_timeout(HANG), Ok(3), "others are started when there is another actor");
    end.send(()).unwrap();
    eventually("and end with that one", || scheduler.lock().threads == 0);
}

#[test]
fn what_is_posted_during_a_step_leads_to_one_more() {
    let scheduler = Scheduler::new(SystemClock, THREADS);
    let (begun, has_begun) = channel();
    let (end, may_end) = channel::<Next>();
    let may_end = Mutex::new(may_end);
    let number = attach(&scheduler, 1, move || {
        begun.send(()).unwrap();
        // Held by the one step that runs: a second one at the same time would panic.
        may_end.try_lock().unwrap().recv().unwrap()
    });
    has_begun.recv_timeout(HANG).unwrap();
    assert!(scheduler.post(number) && scheduler.post(number));
    end.send(Next::At(None)).unwrap();
    has_begun.recv_timeout(HANG).unwrap();
    end.send(Next::At(None)).unwrap();
    eventually("it sleeps", || matches!(scheduler.lock().tasks[&number].phase, Phase::Sleeping(None)));
    assert!(has_begun.try_recv().is_err());
    assert!(scheduler.post(number));
    has_begun.recv_timeout(HANG).unwrap();
    // Not over, as there is something that the step may not have seen.
    assert!(scheduler.post(number));
    end.send(Next::Over).unwrap();
    has_begun.recv_timeout(HANG).unwrap();
    end.send(Next::Over).unwrap();
    eventually("it is gone", || scheduler.lock().tasks.is_empty());
    assert!(!scheduler.post(number));
}

#[test]
fn steps_are_due_by_the_clock() {
    let clock = ManualClock::new();
    let scheduler = Scheduler::new(clock.clone(), THREADS);
    let steps = [5, 10].map(|seconds| {
        let (clock, steps) = (clock.clone(), Arc::new(AtomicU32::new(0)));
        let counted = Arc::clone(&steps);
        attach(&scheduler, 1, move || {
            counted.fetch_add(1, Ordering::SeqCst);
            Next::At(Some(clock.now().saturating_add(seconds * SECOND)))
        });
        steps
    });
    let counts = || [0, 1].map(|index| steps[index].load(Ordering::SeqCst));
    let sleeping = || scheduler.lock().sleeping.len() == 2;
    eventually("the first steps", || counts() == [1, 1] && sleeping());
    clock.advance(5 * SECOND);
    eventually("one is due", || counts() == [2, 1] && sleeping());
    clock.advance(5 * SECOND);
    eventually("both are", || counts() == [3, 2] && sleeping());
}

#[test]
fn what_is_due_during_another_step_does_not_wait_for_it() {
    let clock = ManualClock::new();
    let scheduler = Scheduler::new(clock.clone(), THREADS);
    let (stepped, has_stepped) = channel();
    attach(&scheduler, 1, move || {
        stepped.send(()).unwrap();
        Next::At(Some(Tick::from_nanos(5)))
    });
    has_stepped.recv_timeout(HANG).unwrap();
    eventually("the one thread leads", || scheduler.lock().leader.is_some());
    let (begun, has_begun) = channel();
    let (step, end) = held(2, &begun);
    attach(&scheduler, 2, step);
    has_begun.recv_timeout(HANG).unwrap();
    clock.advance(Duration::from_nanos(5));
    has_stepped.recv_timeout(HANG).unwrap();
    end.send(()).unwrap();
}

#[test]
fn a_deadline_that_is_earlier_than_the_leaders_is_kept() {
    let scheduler = Scheduler::new(SystemClock, THREADS);
    attach(&scheduler, 1, || Next::At(Some(SystemClock.now().saturating_add(3600 * SECOND))));
    eventually("a thread sleeps for an hour", || {
        scheduler.lock().leader.as_ref().is_some_and(|(_, until)| until.is_some())
    });
    let (stepped, has_stepped) = channel();
    attach(&scheduler, 2, move || {
        let _ = stepped.send(());
        Next::At(Some(SystemClock.now().saturating_add(SECOND / 1000)))
    });
    for _ in 0..20 {
        has_stepped.recv_timeout(HANG).unwrap();
    }
}

#[test]
fn a_panic_ends_a_step_and_no_thread() {
    #[derive(Clone)]
    struct Panics(ManualClock, Arc<AtomicBool>);
    impl Clock for Panics {
        fn now(&self) -> Tick {
            assert!(!self.1.swap(false, Ordering::SeqCst), "as planned: the clock");
            self.0.now()
        }
    }
    let panics = Arc::new(AtomicBool::new(true));
    let scheduler = Scheduler::new(Panics(ManualClock::new(), Arc::clone(&panics)), 1);
    let (begun, has_begun) = channel();
    let number = attach(&scheduler, 1, move || {
        begun.send(()).unwrap();
        panic!("as planned: a step")
    });
    for _ in 0..3 {
        has_begun.recv_timeout(HANG).unwrap();
        panics.store(true, Ordering::SeqCst);
        assert!(scheduler.post(number));
    }
    assert_eq!(scheduler.lock().threads, 1);
}
