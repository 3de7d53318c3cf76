//! One evaluation: what is asked for, and what it is given.
//!
//! An evaluation takes each source's value once (it is *pinned*), whatever asks for it in which order, so nothing in it mixes two
//! values of one source. That a source gives no value is pinned too. A derived value that is asked for and cached is used if what
//! it was made from is what is pinned here, or is pinned with it; else it is made again, in this evaluation.

use std::fmt;

use crate::cell::Handle;
use crate::error::RefreshError;
use crate::sync::{Arc, Mutex};

use super::source::{Followed, Source, erase, id_of, state_of};
use super::stamp::{Gave, Pinned, Stamp};

#[cfg(feature = "async")]
use {
    super::evaluate::InTask,
    super::{Derived, Node},
    crate::time::Clock,
};

/// What the closure of a [`Derived`](crate::Derived) value asks for its sources.
///
/// In one evaluation each source has one value, or none: that is found out when it is asked for first.
///
/// # Examples
///
/// ```
/// use dogpile::{Derived, DogpileCell};
/// use std::time::Duration;
///
/// static HOST: DogpileCell<String> = DogpileCell::new(Duration::from_secs(60));
/// static PORT: DogpileCell<u16> = DogpileCell::new(Duration::from_secs(60));
///
/// let address = Derived::new(|cx| match cx.try_get(&PORT) {
///     Ok(port) => format!("{}:{port}", cx.get(&HOST)),
///     Err(_) => format!("{}:443", cx.get(&HOST)),
/// });
/// HOST.set("localhost".to_owned());
/// assert_eq!(*address.get(), "localhost:443");
/// PORT.set(8443);
/// assert_eq!(*address.get(), "localhost:8443");
/// ```
#[derive(Clone)]
pub struct Cx {
    /// What this evaluation has taken, each once.
    pins: Arc<Mutex<Vec<Pinned>>>,
    frame: Arc<Frame>,
}

/// The making of one derived value, in an evaluation.
struct Frame {
    /// Of the derived value.
    id: usize,
    /// What has asked for it.
    parent: Option<Arc<Frame>>,
    stamps: Mutex<Vec<Stamp>>,
}

impl Cx {
    /// An evaluation that begins with this derived value.
    pub(super) fn new(id: usize) -> Self {
        let frame = Frame { id, parent: None, stamps: Mutex::default() };
        Self { pins: Arc::default(), frame: Arc::new(frame) }
    }

    /// The making of another derived value, in the same evaluation.
    pub(super) fn inside(&self, id: usize) -> Self {
        let frame = Frame { id, parent: Some(Arc::clone(&self.frame)), stamps: Mutex::default() };
        Self { pins: Arc::clone(&self.pins), frame: Arc::new(frame) }
    }

    /// What has been taken so far.
    pub(super) fn stamps(&self) -> Vec<Stamp> {
        self.frame.stamps.lock().clone()
    }

    /// The source's value.
    ///
    /// A [`DogpileCell`](crate::DogpileCell) or [`SyncReaderCell`](crate::SyncReaderCell) gives what it may serve, fresh or stale. A
    /// [`LazyDogpile`](crate::LazyDogpile) is built if it is due, a [`Derived`](crate::Derived) value is made.
    ///
    /// # Blocking
    ///
    /// Waits for a build only as a caller of the source would: where a `LazyDogpile` has nothing to serve, and while a build has the write
    /// lock of a `SyncReaderCell`. It never waits for another evaluation.
    ///
    /// # Panics
    ///
    /// If there is nothing to serve, if the source's build fails or panics, or if a derived value asks for itself.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Derived, DogpileCell};
    /// use std::time::Duration;
    ///
    /// static NUMBER: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// NUMBER.set(1);
    /// let double = Derived::new(|cx| *cx.get(&NUMBER) * 2);
    /// let sum = Derived::new({
    ///     let double = double.clone();
    ///     move |cx| *cx.get(&double) + *cx.get(&NUMBER)
    /// });
    /// assert_eq!(*sum.get(), 3);
    /// ```
    #[track_caller]
    pub fn get<S: Source<FALLIBLE>, const FALLIBLE: bool>(
        &self,
        source: impl Into<Handle<'static, S>>,
    ) -> S::Shared {
        match self.try_get(source) {
            Ok(value) => value,
            Err(error) => cannot(&error),
        }
    }

    /// As [`get`](Cx::get), with an error instead of a panic.
    ///
    /// # Errors
    ///
    /// [`RefreshError::Empty`] if there is nothing to serve; [`RefreshError::Build`] with the error of the source's build, or of its
    /// latest one; [`RefreshError::Reentrant`] if a derived value asks for itself.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Derived, DogpileCell};
    /// use std::time::Duration;
    ///
    /// static NUMBER: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// let double = Derived::new(|cx| cx.try_get(&NUMBER).map_or(0, |number| *number * 2));
    /// assert_eq!(*double.get(), 0);
    /// NUMBER.set(1);
    /// assert_eq!(*double.get(), 2);
    /// ```
    pub fn try_get<S: Source<FALLIBLE>, const FALLIBLE: bool>(
        &self,
        source: impl Into<Handle<'static, S>>,
    ) -> Result<S::Shared, RefreshError> {
        let handle: Handle<'static, S> = source.into();
        let (before, _) = state_of::<S, FALLIBLE>(&handle);
        let taken = match self.pinned(id_of(&*handle)) {
            Some(pin) => Ok(pin),
            None => S::take(&handle, self),
        };
        self.give(&handle, before, taken)
    }

    /// What was taken from a source, pinned and noted. `before`: the source's generation before that. It is the stamp of what gives no
    /// value: a value that the source gets while it is asked has a later generation, so it is followed.
    fn give<S: Followed<FALLIBLE>, const FALLIBLE: bool>(
        &self,
        handle: &Handle<'static, S>,
        before: u64,
        taken: Result<Pinned, RefreshError>,
    ) -> Result<S::Shared, RefreshError> {
        let pin = match taken {
            Ok(pin) => self.pin(pin),
            // It asks for itself. It is no source of its own: a node with a link to itself would keep itself alive.
            Err(error) if self.is_inside(id_of(&**handle)) => return Err(error),
            Err(error) => {
                // What is made without its value is out of date when it has one.
                let stamp =
                    Stamp { source: erase::<S, FALLIBLE>(handle), generation: before, gave: Gave::Nothing };
                let stamps = Arc::new([stamp]);
                self.pin(Pinned { id: id_of(&**handle), generation: before, value: Err(error), stamps })
            }
        };
        self.note(&pin.stamps);
        let Ok(value) = pin.value?.downcast::<S::Stored>() else { unreachable!("one address, one source") };
        Ok(S::share(value))
    }

    /// As [`get`](Cx::get), of a derived value whose closure returns a future.
    ///
    /// # Panics
    ///
    /// As [`get`](Cx::get).
    ///
    /// # Examples
    ///
    /// ```
    /// # smol::block_on(async {
    /// use dogpile::{Derived, DogpileCell, RefreshError};
    /// use std::time::Duration;
    ///
    /// static NUMBER: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// NUMBER.set(1);
    /// let double = Derived::new_async(|cx| async move { Ok::<_, RefreshError>(*cx.get(&NUMBER) * 2) });
    /// let next = Derived::new_async({
    ///     let double = double.clone();
    ///     move |cx| {
    ///         let double = double.clone();
    ///         async move { Ok::<_, RefreshError>(*cx.get_async(&double).await + 1) }
    ///     }
    /// });
    /// assert_eq!(*next.get_async().await, 3);
    /// # });
    /// ```
    #[cfg(feature = "async")]
    pub async fn get_async<T, C>(&self, source: &Derived<T, C, InTask<T>>) -> Arc<T>
    where
        T: Send + Sync + 'static,
        C: Clock + Send + Sync + 'static,
    {
        self.try_get_async(source).await.unwrap_or_else(|error| cannot(&error))
    }

    /// As [`try_get`](Cx::try_get), of a derived value whose closure returns a future.
    ///
    /// # Errors
    ///
    /// As [`try_get`](Cx::try_get).
    ///
    /// # Examples
    ///
    /// ```
    /// # smol::block_on(async {
    /// use dogpile::{Derived, DogpileCell, RefreshError};
    /// use std::time::Duration;
    ///
    /// static NUMBER: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// let double = Derived::new_async(|cx| async move { Ok::<_, RefreshError>(*cx.try_get(&NUMBER)? * 2) });
    /// let next = Derived::new_async({
    ///     let double = double.clone();
    ///     move |cx| {
    ///         let double = double.clone();
    ///         async move { Ok::<_, RefreshError>(*cx.try_get_async(&double).await? + 1) }
    ///     }
    /// });
    /// assert!(next.try_get_async().await.is_err());
    /// NUMBER.set(1);
    /// assert_eq!(*next.try_get_async().await.unwrap(), 3);
    /// # });
    /// ```
    #[cfg(feature = "async")]
    pub async fn try_get_async<T, C>(&self, source: &Derived<T, C, InTask<T>>) -> Result<Arc<T>, RefreshError>
    where
        T: Send + Sync + 'static,
        C: Clock + Send + Sync + 'static,
    {
        let handle: Handle<'static, Node<T, C, InTask<T>>> = source.into();
        let (before, _) = state_of::<_, false>(&*handle);
        let taken = match self.pinned(id_of(&*handle)) {
            Some(pin) => Ok(pin),
            // Boxed, as it may come to this again.
            None => Box::pin(Node::take(&handle, self)).await,
        };
        self.give(&handle, before, taken)
    }

    /// Whether the derived value is being made here, or by what asks for this one.
    pub(super) fn is_inside(&self, id: usize) -> bool {
        self.frames().any(|frame| frame.id == id)
    }

    pub(super) fn pinned(&self, id: usize) -> Option<Pinned> {
        self.pins.lock().iter().find(|pin| pin.id == id).cloned()
    }

    /// Pins a value, unless another one is pinned already: that one.
    pub(super) fn pin(&self, pin: Pinned) -> Pinned {
        let mut pins = self.pins.lock();
        match pins.iter().find(|other| other.id == pin.id).cloned() {
            // What is not used is dropped after unlocking.
            Some(other) => {
                drop(pins);
                drop(pin);
                other
            }
            None => {
                pins.push(pin.clone());
                pin
            }
        }
    }

    /// What is made here, and what asks for it, is made from these. At once, so that it is known also if the making fails.
    pub(super) fn note(&self, new: &[Stamp]) {
        for frame in self.frames() {
            let mut stamps = frame.stamps.lock();
            for stamp in new {
                if !stamps.iter().any(|other| other.source.id() == stamp.source.id()) {
                    stamps.push(stamp.clone());
                }
            }
        }
    }

    /// From this one outwards.
    fn frames(&self) -> impl Iterator<Item = &Arc<Frame>> {
        std::iter::successors(Some(&self.frame), |frame| frame.parent.as_ref())
    }

    /// Whether a value that was made from these fits into this evaluation. Pins what it was made from.
    pub(super) fn accepts(&self, stamps: &[Stamp]) -> bool {
        stamps.iter().all(|stamp| {
            let pinned = self.pinned(stamp.source.id()).or_else(|| {
                let may_be_pinned = stamp.gave != Gave::Unpublished && stamp.holds_after_refresh();
                if !may_be_pinned {
                    return None;
                }
                stamp.pin().map(|pin| self.pin(pin))
            });
            pinned.is_some_and(|pin| {
                let gave = if pin.value.is_ok() { Gave::Published } else { Gave::Nothing };
                (pin.generation, gave) == (stamp.generation, stamp.gave)
            })
        })
    }
}

#[cold]
#[track_caller]
fn cannot(error: &RefreshError) -> ! {
    match error {
        RefreshError::Reentrant => panic!(
            "a derived value asks for itself, directly or by way of others, or for a cell of which this thread holds a ReadGuard, \
             and whose build waits for the write lock"
        ),
        error => panic!("a source of a derived value: {error}; `try_get` returns this as an error"),
    }
}

impl fmt::Debug for Cx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cx").finish_non_exhaustive()
    }
}
