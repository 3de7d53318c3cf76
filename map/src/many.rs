//! Many keys with one call of a loader.
//!
//! A round enters the flight of each key that is missing or due and looks at its cell. The keys for which this call is elected
//! are loaded with one call; only then, when it holds no lease, the call waits for what others build. So two calls whose
//! keys overlap never wait for each other in a circle. A wait may end without a value; such keys are looked at in another
//! round.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use dogpile::{BoxError, Clock, Freshness, Lease, Lookup, Pending, RefreshError, SharedError, Waited};

use crate::DogpileMap;
use crate::clock::FlightClock;
use crate::error::LeftOut;
use crate::flight::{Cell, FlightRef, Made, Purpose};
use crate::inner::{Building, Inner, Look, is_within};
use crate::sync::thread_local;

#[cfg(feature = "async")]
use std::{
    pin::{Pin, pin},
    task::{Context, Poll},
};

type Joined<'m, K, T, C> = FlightRef<K, T, C, &'m Inner<K, T, C>>;

/// A key that this call builds. The lease is dropped before the use of the flight.
struct Elected<'m, K: Hash + Eq + Clone, T: 'static, C: Clock + Clone + 'static> {
    position: usize,
    lease: Lease<'static, Made<T>, FlightClock<C>>,
    flight: Joined<'m, K, T, C>,
}

/// A key that another caller builds.
struct Awaited<'m, K: Hash + Eq + Clone, T: 'static, C: Clock + Clone + 'static> {
    position: usize,
    pending: Pending<'static, Made<T>, FlightClock<C>>,
    flight: Joined<'m, K, T, C>,
}

/// What one look at all keys leads to.
struct Round<'m, K: Hash + Eq + Clone, T: 'static, C: Clock + Clone + 'static> {
    elected: Vec<Elected<'m, K, T, C>>,
    awaited: Vec<Awaited<'m, K, T, C>>,
}

/// What the call has found so far.
struct Found<T> {
    values: Vec<Option<Arc<T>>>,
    /// The first one.
    error: Option<RefreshError>,
    /// Positions to be looked at again.
    again: Vec<usize>,
    /// Positions of keys that stand twice, with the first position of each.
    copies: Vec<(usize, usize)>,
    /// What this call has declared stale, by position. See [`Inner::accepts`].
    lapsed: HashMap<usize, Arc<Made<T>>>,
}

impl<T> Found<T> {
    fn fail(&mut self, error: impl Into<RefreshError>) {
        self.error.get_or_insert(error.into());
    }

    fn accepts<K, C>(&mut self, position: usize, flight: &Joined<'_, K, T, C>, made: &Arc<Made<T>>) -> bool
    where
        K: Hash + Eq + Clone,
        C: Clock + Clone,
    {
        let mut lapsed = self.lapsed.remove(&position);
        let accepted = flight.accepts(made, &mut lapsed);
        self.lapsed.extend(lapsed.map(|lapsed| (position, lapsed)));
        accepted
    }

    /// What the call returns.
    fn finish(mut self) -> Result<Vec<Option<Arc<T>>>, RefreshError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        for (position, first) in self.copies {
            let value = self.values[first].clone();
            self.values[position] = value;
        }
        Ok(self.values)
    }
}

thread_local! {
    /// The addresses of the cells that loaders on this thread build: a loader that asks for one of its own keys must not wait.
    static LOADING: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

fn address<T, C>(cell: &Arc<Cell<T, C>>) -> usize
where
    C: Clock,
{
    Arc::as_ptr(cell).addr()
}

/// Whether a loader on this thread builds the cell's key.
pub(crate) fn is_loading<T, C: Clock>(cell: &Arc<Cell<T, C>>) -> bool {
    // In the destructor of a thread-local variable it may be gone; then no loader runs that began before.
    LOADING.try_with(|cells| cells.borrow().contains(&address(cell))).unwrap_or(false)
}

/// What has become of each key of a load: `Ok(None)`: the loader left it out.
fn concluded<K, T, C>(
    due: &[K],
    buildings: Vec<Building<'_, K, T, C>>,
    loaded: Result<HashMap<K, T>, SharedError>,
) -> Vec<Result<Option<Made<T>>, SharedError>>
where
    K: Hash + Eq + Clone,
    C: Clock + Clone,
{
    let mut loaded = loaded;
    due.iter()
        .zip(buildings)
        .map(|(key, building)| match loaded.as_mut().map(|values| values.remove(key)) {
            Ok(Some(value)) => Ok(Some(building.finish(Arc::new(value)))),
            Ok(None) => {
                building.end();
                Ok(None)
            }
            Err(error) => {
                building.fail();
                Err(error.clone())
            }
        })
        .collect()
}

/// Notes, while it lives, that this thread builds these cells.
struct Loading(usize);

impl Loading {
    fn of(cells: &[usize]) -> Self {
        let noted = LOADING.try_with(|all| {
            let mut all = all.borrow_mut();
            all.extend_from_slice(cells);
            all.len() - cells.len()
        });
        // In the destructor of a thread-local variable there may be no place for the note.
        Self(noted.unwrap_or(usize::MAX))
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        // An error: as above.
        let _ = LOADING.try_with(|all| all.borrow_mut().truncate(self.0));
    }
}

/// A loader that is a future. This thread builds the cells while it is polled, and while it is dropped, since what it holds may ask
/// for them.
#[cfg(feature = "async")]
struct Loader<'l, F> {
    future: Pin<&'l mut Option<F>>,
    cells: &'l [usize],
}

#[cfg(feature = "async")]
impl<F: Future> Loader<'_, F> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<F::Output> {
        let _loading = Loading::of(self.cells);
        match self.future.as_mut().as_pin_mut() {
            Some(future) => future.poll(cx),
            None => unreachable!("it is there until it is dropped"),
        }
    }
}

#[cfg(feature = "async")]
impl<F> Drop for Loader<'_, F> {
    fn drop(&mut self) {
        let _loading = Loading::of(self.cells);
        self.future.set(None);
    }
}

impl<K, T, C> DogpileMap<K, T, C>
where
    K: Hash + Eq + Clone,
    T: 'static,
    C: Clock + Clone + 'static,
{
    /// The values of many keys. `load` is called once, with those that are missing, or stale and not being rebuilt; it
    /// returns pairs of key and value, in any order.
    ///
    /// Each key is still built once: by this call, or by another one, of this kind or of
    /// [`get_or_refresh`](Self::get_or_refresh), which this one then waits for. A key that `load` leaves out is `None` in the
    /// result, and its old value, if there is one, is taken away. What others publish for the key meanwhile stays. Pairs that
    /// were not asked for are ignored.
    ///
    /// If a key that another caller was building has to be built after all (that caller panicked, or the key was invalidated),
    /// `load` is called again, for those keys.
    ///
    /// # Blocking
    ///
    /// First for its own `load`, then for other callers' builds of keys with nothing to serve.
    ///
    /// # Errors
    ///
    /// That of `load`, or of another caller's build, or of a retry pause, if one of the keys can be served no value because of
    /// it. What was loaded is kept. [`RefreshError::Reentrant`] if this is called by a `load` for one of its own keys, with
    /// nothing to serve.
    ///
    /// # Panics
    ///
    /// If `load` panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Policy, RefreshError};
    /// use dogpile_map::DogpileMap;
    /// use std::time::Duration;
    ///
    /// let squares = DogpileMap::<u64, u64>::builder(Policy::ttl(Duration::from_secs(60))).build();
    /// squares.set(2, 4);
    /// let found = squares.get_many(&[1, 2, 3, 4], |due| {
    ///     assert_eq!(due, [1, 3, 4]);
    ///     Ok::<_, String>([(3, 9), (1, 1)]) // there is no 4
    /// })?;
    /// let found: Vec<_> = found.iter().map(|value| value.as_deref().copied()).collect();
    /// assert_eq!(found, [Some(1), Some(4), Some(9), None]);
    /// # Ok::<(), RefreshError>(())
    /// ```
    pub fn get_many<E, I, F>(&self, keys: &[K], mut load: F) -> Result<Vec<Option<Arc<T>>>, RefreshError>
    where
        E: Into<BoxError>,
        I: IntoIterator<Item = (K, T)>,
        F: FnMut(&[K]) -> Result<I, E>,
    {
        let mut found = self.begin_many(keys);
        while !found.again.is_empty() {
            let Round { elected, awaited } = self.look_at(keys, &mut found);
            if !elected.is_empty() {
                self.load(elected, &mut load, &mut found);
            }
            for Awaited { position, pending, flight } in awaited {
                self.settle(position, pending.wait(), &flight, &mut found);
            }
        }
        found.finish()
    }

    /// As [`get_many`](Self::get_many), with a loader that is a future.
    ///
    /// # Cancellation
    ///
    /// A future that is dropped gives its keys back: other callers build them.
    ///
    /// # Errors
    ///
    /// As [`get_many`](Self::get_many).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Policy, RefreshError};
    /// use dogpile_map::DogpileMap;
    /// use std::time::Duration;
    ///
    /// # futures_lite::future::block_on(async {
    /// let squares = DogpileMap::<u64, u64>::builder(Policy::ttl(Duration::from_secs(60))).build();
    /// let found = squares.get_many_async(&[1, 2], async |due: &[u64]| {
    ///     Ok::<_, String>(due.iter().map(|n| (*n, n * n)).collect::<Vec<_>>())
    /// });
    /// assert_eq!(found.await?.len(), 2);
    /// # Ok::<(), RefreshError>(())
    /// # }).unwrap();
    /// ```
    #[cfg(feature = "async")]
    pub async fn get_many_async<E, I, F>(
        &self,
        keys: &[K],
        mut load: F,
    ) -> Result<Vec<Option<Arc<T>>>, RefreshError>
    where
        E: Into<BoxError>,
        I: IntoIterator<Item = (K, T)>,
        F: AsyncFnMut(&[K]) -> Result<I, E>,
    {
        let mut found = self.begin_many(keys);
        while !found.again.is_empty() {
            let Round { elected, awaited } = self.look_at(keys, &mut found);
            if !elected.is_empty() {
                self.load_async(elected, &mut load, &mut found).await;
            }
            for Awaited { position, pending, flight } in awaited {
                let waited = pending.await;
                self.settle(position, waited, &flight, &mut found);
            }
        }
        found.finish()
    }

    /// What is fresh at rest, and what is to be looked at. A key that stands there twice is looked at once.
    fn begin_many(&self, keys: &[K]) -> Found<T> {
        let mut found = Found {
            values: Vec::with_capacity(keys.len()),
            error: None,
            again: Vec::new(),
            copies: Vec::new(),
            lapsed: HashMap::new(),
        };
        let mut firsts = HashMap::new();
        for (position, key) in keys.iter().enumerate() {
            let value = match self.inner.look(key) {
                Look::Fresh(value) => {
                    self.inner.stats.count_hit();
                    Some(value)
                }
                Look::Stale(_) | Look::Nothing => {
                    match *firsts.entry(key).or_insert(position) {
                        first if first < position => found.copies.push((position, first)),
                        _ => found.again.push(position),
                    }
                    None
                }
            };
            found.values.push(value);
        }
        found
    }

    fn look_at<'m>(&'m self, keys: &[K], found: &mut Found<T>) -> Round<'m, K, T, C> {
        let mut round = Round { elected: Vec::new(), awaited: Vec::new() };
        let mut due: Vec<usize> = std::mem::take(&mut found.again);
        due.reverse();
        while let Some(position) = due.pop() {
            let flight = match Inner::enter(&*self.inner, &keys[position], Purpose::Read).flight(|_| true) {
                Ok(flight) => flight,
                Err(Ok(value)) => {
                    found.values[position] = Some(value);
                    continue;
                }
                Err(Err(error)) => {
                    found.fail(error);
                    continue;
                }
            };
            let looked = flight.cell().lookup_owned();
            let is_fresh = matches!(looked, Lookup::Fresh(_));
            match looked {
                Lookup::Fresh(made) | Lookup::Stale(made) => {
                    if found.accepts(position, &flight, &made) {
                        flight.count(if is_fresh { Freshness::Fresh } else { Freshness::Stale });
                        found.values[position] = Some(Arc::clone(&made.value));
                    } else {
                        due.push(position);
                    }
                }
                Lookup::Elected(lease) => {
                    flight.count(Freshness::Empty);
                    round.elected.push(Elected { position, lease, flight });
                }
                Lookup::Pending(pending) => {
                    flight.count(Freshness::Empty);
                    round.awaited.push(Awaited { position, pending, flight });
                }
                Lookup::Failed(error) => {
                    flight.count(Freshness::Empty);
                    if !error.is::<LeftOut>() {
                        found.fail(error);
                    }
                }
            }
        }
        round
    }

    fn load<E, I>(
        &self,
        elected: Vec<Elected<'_, K, T, C>>,
        load: &mut impl FnMut(&[K]) -> Result<I, E>,
        found: &mut Found<T>,
    ) where
        E: Into<BoxError>,
        I: IntoIterator<Item = (K, T)>,
    {
        let due: Vec<K> = elected.iter().map(|key| key.flight.flight.key.clone()).collect();
        let cells: Vec<usize> = elected.iter().map(|key| address(key.flight.cell())).collect();
        let buildings: Vec<_> = elected.iter().map(|key| key.flight.begin()).collect();
        let loading = Loading::of(&cells);
        // The iterator and the conversion of the error are user code too.
        let loaded = match load(&due) {
            Ok(pairs) => Ok(pairs.into_iter().collect::<HashMap<K, T>>()),
            Err(error) => Err(SharedError::new(error)),
        };
        let made = concluded(&due, buildings, loaded);
        drop(loading);
        self.publish_many(elected, made, found);
    }

    #[cfg(feature = "async")]
    async fn load_async<E, I>(
        &self,
        elected: Vec<Elected<'_, K, T, C>>,
        load: &mut impl AsyncFnMut(&[K]) -> Result<I, E>,
        found: &mut Found<T>,
    ) where
        E: Into<BoxError>,
        I: IntoIterator<Item = (K, T)>,
    {
        let due: Vec<K> = elected.iter().map(|key| key.flight.flight.key.clone()).collect();
        let cells: Vec<usize> = elected.iter().map(|key| address(key.flight.cell())).collect();
        let buildings: Vec<_> = elected.iter().map(|key| key.flight.begin()).collect();
        let loaded = {
            let future = pin!(Some(async {
                match load(&due).await {
                    Ok(pairs) => Ok(pairs.into_iter().collect::<HashMap<K, T>>()),
                    Err(error) => Err(SharedError::new(error)),
                }
            }));
            let mut loader = Loader { future, cells: &cells };
            std::future::poll_fn(move |cx| loader.poll(cx)).await
        };
        let made = {
            let _loading = Loading::of(&cells);
            concluded(&due, buildings, loaded)
        };
        self.publish_many(elected, made, found);
    }

    /// Ends the builds of one load: `Ok(None)`: the loader left the key out.
    fn publish_many(
        &self,
        elected: Vec<Elected<'_, K, T, C>>,
        made: Vec<Result<Option<Made<T>>, SharedError>>,
        found: &mut Found<T>,
    ) {
        // Dropped when no lease is held any more: a destructor may ask for another one of these keys.
        let mut ended = Vec::with_capacity(elected.len());
        for (Elected { position, lease, flight }, made) in elected.into_iter().zip(made) {
            let previous = lease.previous().cloned();
            let mut built = None;
            match made {
                Ok(Some(made)) => {
                    built = Some(Arc::clone(&made.value));
                    let served = lease.publish(made);
                    found.values[position] = Some(Arc::clone(&served.value));
                }
                Ok(None) => {
                    lease.fail(LeftOut);
                    if let Some(previous) = &previous {
                        self.clear_if_current(&flight.flight.key, previous);
                    }
                }
                Err(error) => {
                    lease.fail(error.clone());
                    self.fail(position, &flight, error, found);
                }
            }
            ended.push((previous, built, flight));
        }
    }

    /// Takes a value away that is held by the flight of a key that is in flight. What was published meanwhile stays.
    fn clear_if_current(&self, key: &K, seen: &Arc<Made<T>>) {
        if let Ok(flight) = self.inner.change(key, |_| ()) {
            flight.cell().clear_if_current(seen);
        }
    }

    /// The build that this call ran, or waited for, has failed.
    fn fail(
        &self,
        position: usize,
        flight: &Joined<'_, K, T, C>,
        error: impl Into<RefreshError>,
        found: &mut Found<T>,
    ) {
        match self.instead_of_error(flight) {
            Some(value) => found.values[position] = Some(value),
            None => found.fail(error),
        }
    }

    /// What the policy's `stale_if_error` allows to serve to a caller whose build has failed.
    fn instead_of_error(&self, flight: &Joined<'_, K, T, C>) -> Option<Arc<T>> {
        let window = self.inner.policy.get_stale_if_error();
        let mut lapsed = None;
        loop {
            let seen = flight.cell().snapshot()?;
            if !is_within(&seen, window) {
                return None;
            }
            if self.inner.accepts(flight.cell(), &seen.value, &mut lapsed) {
                return Some(Arc::clone(&seen.value.value));
            }
        }
    }

    /// The end of a wait for another caller's build.
    fn settle(
        &self,
        position: usize,
        waited: Waited<Made<T>>,
        flight: &Joined<'_, K, T, C>,
        found: &mut Found<T>,
    ) {
        match waited {
            Waited::Published(made) if found.accepts(position, flight, &made) => {
                found.values[position] = Some(Arc::clone(&made.value));
            }
            Waited::Published(_) | Waited::Abandoned => found.again.push(position),
            Waited::Failed(error) if error.is::<LeftOut>() => {}
            Waited::Failed(error) => self.fail(position, flight, error, found),
            // `Reentrant`, the only other one.
            _ => found.fail(RefreshError::Reentrant),
        }
    }

    /// One load of those of the keys that are stale and may be built now.
    pub(crate) fn refresh_stale<E, I>(&self, keys: &[K], load: &mut impl FnMut(&[K]) -> Result<I, E>)
    where
        E: Into<BoxError>,
        I: IntoIterator<Item = (K, T)>,
    {
        let mut found = self.begin_many(keys);
        let Round { elected, .. } = self.look_at(keys, &mut found);
        if !elected.is_empty() {
            self.load(elected, load, &mut found);
        }
    }
}
