//! Stale keys that are rebuilt together, by a thread of their own.

use std::borrow::Borrow;
use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::hash::Hash;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use dogpile::{BoxError, Clock};
use parking_lot::Mutex;

use crate::DogpileMap;

/// Keys that wait to be rebuilt.
pub(crate) struct Queue<K> {
    state: Mutex<State<K>>,
    max: usize,
}

struct State<K> {
    /// In the order of their first request.
    keys: VecDeque<K>,
    /// The same.
    noted: HashSet<K>,
    is_stopped: bool,
    worker: Option<Thread>,
}

/// More than this many batches are not kept waiting: callers then build for themselves.
const BATCHES: usize = 64;

impl<K: Eq + Hash + Clone> Queue<K> {
    fn new(max: usize) -> Self {
        let state = State { keys: VecDeque::new(), noted: HashSet::new(), is_stopped: false, worker: None };
        Self { state: Mutex::new(state), max }
    }

    /// Notes a key. Returns false if there are too many.
    pub(crate) fn push<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let (owned, copy) = (key.to_owned(), key.to_owned());
        let mut state = self.state.lock();
        if state.is_stopped {
            return false;
        }
        if state.noted.contains(key) {
            return true;
        }
        if state.keys.len() >= self.max.saturating_mul(BATCHES) {
            return false;
        }
        state.noted.insert(copy);
        state.keys.push_back(owned);
        let worker =
            if state.keys.len() == 1 || state.keys.len() == self.max { state.worker.clone() } else { None };
        drop(state);
        if let Some(worker) = worker {
            worker.unpark();
        }
        true
    }

    /// Waits for a batch; `None`: it is to stop.
    fn next<C: Clock>(&self, clock: &C, window: Duration) -> Option<Vec<K>> {
        let mut deadline = None;
        loop {
            let now = clock.now();
            let mut state = self.state.lock();
            if state.is_stopped {
                return None;
            }
            if state.keys.is_empty() {
                drop(state);
                thread::park();
                continue;
            }
            let deadline = *deadline.get_or_insert_with(|| now.saturating_add(window));
            if state.keys.len() >= self.max || now >= deadline {
                let count = state.keys.len().min(self.max);
                let keys: Vec<K> = state.keys.drain(..count).collect();
                let copies: Vec<K> = keys.iter().filter_map(|key| state.noted.take(key)).collect();
                // Their destructors are user code.
                drop(state);
                drop(copies);
                return Some(keys);
            }
            drop(state);
            clock.park_until(deadline, now);
        }
    }

    /// No more keys are noted, and the thread ends.
    fn stop(&self) {
        let mut state = self.state.lock();
        state.is_stopped = true;
        let worker = state.worker.take();
        drop(state);
        if let Some(worker) = worker {
            worker.unpark();
        }
    }
}

/// The thread's place in the map, up to its end: also if the clock or a key's `Hash` or `Eq` panics, or else keys would be noted that
/// nothing rebuilds.
struct Attached<K: Eq + Hash + Clone, T, C: Clock + Clone> {
    map: DogpileMap<K, T, C>,
    queue: Arc<Queue<K>>,
}

impl<K: Eq + Hash + Clone, T, C: Clock + Clone> Attached<K, T, C> {
    /// `None`: it is taken.
    fn new(map: &DogpileMap<K, T, C>, max: usize) -> Option<Self> {
        let this = Self { map: map.clone(), queue: Arc::new(Queue::new(max)) };
        map.inner.attach(&this.queue).then_some(this)
    }
}

impl<K: Eq + Hash + Clone, T, C: Clock + Clone> Drop for Attached<K, T, C> {
    fn drop(&mut self) {
        self.map.inner.detach(&self.queue);
        self.queue.stop();
    }
}

/// Rebuilds stale keys in batches until it is dropped. See [`DogpileMap::refresh_in_batches`].
///
/// Its drop stops the thread and waits for it. Keys that were noted and not yet rebuilt are left to their callers.
#[must_use = "batches end when this is dropped"]
pub struct Batches {
    stop: Option<Box<dyn FnOnce() + Send + Sync>>,
    worker: Option<JoinHandle<()>>,
}

impl Drop for Batches {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            stop();
        }
        if let Some(worker) = self.worker.take()
            && worker.thread().id() != thread::current().id()
        {
            // The panic hook has reported how it ended, if by a panic.
            drop(worker.join());
        }
    }
}

impl fmt::Debug for Batches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batches").finish_non_exhaustive()
    }
}

impl<K, T, C> DogpileMap<K, T, C>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    /// From now on, stale keys are collected and rebuilt together, off the callers' path.
    ///
    /// A caller of [`get_or_refresh`](Self::get_or_refresh), [`try_get_or_refresh`](Self::try_get_or_refresh) or their async
    /// twins that finds a stale value notes the key and gets the value at once; it is never elected. A thread waits for `max`
    /// keys, or for `window` after the first one (on the map's clock), and calls `loader` once for them, as
    /// [`get_many`](Self::get_many) does. A key with nothing to serve is still built by its caller. So is a stale one if the
    /// loader falls far behind.
    ///
    /// If the loader fails or panics, the old values go on being served, as far as the policy allows, and each key is left
    /// alone for its retry pause. If the clock or a key's `Hash` or `Eq` panics in the thread, that ends, and callers rebuild
    /// stale keys again.
    ///
    /// # Errors
    ///
    /// If the map's stale keys are rebuilt in batches already ([`io::ErrorKind::AlreadyExists`]), or if the thread cannot be
    /// started.
    ///
    /// # Panics
    ///
    /// If `max` is zero.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Policy;
    /// use dogpile_map::DogpileMap;
    /// use std::time::Duration;
    ///
    /// let map = DogpileMap::<u64, u64>::builder(Policy::ttl(Duration::from_secs(60))).build();
    /// let batches = map.refresh_in_batches(100, Duration::from_millis(5), |stale: &[u64]| {
    ///     Ok::<_, String>(stale.iter().map(|key| (*key, key * key)).collect::<Vec<_>>())
    /// })?;
    /// map.set(7, 0);
    /// map.invalidate(&7);
    /// while *map.get_or_refresh(&7, |_| unreachable!("there is a value to serve")) != 49 {
    ///     std::thread::yield_now();
    /// }
    /// drop(batches);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn refresh_in_batches<E, I, F>(&self, max: usize, window: Duration, loader: F) -> io::Result<Batches>
    where
        E: Into<BoxError>,
        I: IntoIterator<Item = (K, T)>,
        F: FnMut(&[K]) -> Result<I, E> + Send + 'static,
    {
        assert!(max > 0, "refresh_in_batches: a batch has room for at least one key");
        let attached = Attached::new(self, max).ok_or(io::ErrorKind::AlreadyExists)?;
        let (queue, mut loader) = (Arc::clone(&attached.queue), loader);
        let run = move || {
            let Attached { map, queue } = &attached;
            while let Some(keys) = queue.next(&map.inner.clock, window) {
                // A panic has been reported by the panic hook, and the keys' retry pauses run.
                drop(catch_unwind(AssertUnwindSafe(|| map.refresh_stale(&keys, &mut loader))));
            }
        };
        let worker = thread::Builder::new().name(String::from("dogpile-map")).spawn(run)?;
        queue.state.lock().worker = Some(worker.thread().clone());
        // Keys that were noted before it was known.
        worker.thread().unpark();
        let map = self.clone();
        let stop = move || {
            map.inner.detach(&queue);
            queue.stop();
        };
        Ok(Batches { stop: Some(Box::new(stop)), worker: Some(worker) })
    }
}
