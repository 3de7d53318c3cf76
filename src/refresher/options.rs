//! How a refresher is started, on a thread or as a task.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::cell::{BuildResult, Handle, Refreshable};
use crate::contain::contain;
use crate::own_thread;
use crate::sync::Arc;
use crate::time::{FOREVER, nanos};
use crate::wait::Entry;

use super::Refresher;
use super::attachment::Attachment;
use super::refresh_loop::{RefreshLoop, Step};
use super::status::{Ended, Status};

#[cfg(feature = "async")]
use {super::refresh_loop::contained, crate::cell::Task, std::pin::pin};

/// Options of a [`Refresher`]. Made by [`Refresher::options`].
///
/// # Examples
///
/// ```
/// use dogpile::{DogpileCell, Refresher};
/// use std::time::Duration;
///
/// static REPORT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
///
/// let refresher = Refresher::options()
///     .rest_when_unused()
///     .min_interval(Duration::from_secs(1))
///     .spawn(&REPORT, Duration::from_secs(5), |_previous| 7)?;
/// assert!(refresher.wait_ready(Duration::from_secs(10)));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "no refresher works until `spawn` is called"]
pub struct RefresherOptions {
    pub(super) min_interval: Duration,
    pub(super) rests: bool,
}

impl RefresherOptions {
    /// Sets the shortest interval between builds for a time to live that the *source* chose
    /// ([`Refreshed::NewFor`](crate::Refreshed::NewFor), [`Refreshed::Aged`](crate::Refreshed::Aged)). Default: 100 ms.
    ///
    /// It is also the shortest pause after a failure. It does not hold back the policy's own ttl, `invalidate` and
    /// [`refresh_now`](Refresher::refresh_now).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Refreshed, Refresher};
    /// use std::time::Duration;
    ///
    /// static TOKEN: DogpileCell<&str> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// // The source says "do not keep it", but is asked only once in five seconds.
    /// let build = |_previous| Refreshed::NewFor("token", Duration::ZERO);
    /// let refresher = Refresher::options().min_interval(Duration::from_secs(5)).spawn(&TOKEN, Duration::ZERO, build)?;
    /// assert!(refresher.wait_ready(Duration::from_secs(10)));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn min_interval(mut self, interval: Duration) -> Self {
        self.min_interval = interval;
        self
    }

    /// Does not rebuild a value that was not read since its publication.
    ///
    /// The next reader is served that value, fresh or stale, as far as the policy allows, and wakes the refresher. The
    /// first read after each publication is slightly slower, since it leaves a mark. Later reads are not.
    ///
    /// [`snapshot`](crate::DogpileCell::snapshot) is a read too; [`peek`](crate::DogpileCell::peek) is none.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Refresher};
    /// use std::time::Duration;
    ///
    /// static REPORT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// let options = Refresher::options().rest_when_unused();
    /// let refresher = options.spawn(&REPORT, Duration::from_secs(5), |_previous| 7)?;
    /// assert!(refresher.wait_ready(Duration::from_secs(10)));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn rest_when_unused(mut self) -> Self {
        self.rests = true;
        self
    }

    /// Starts a refresher with these options on a thread of its own. See [`Refresher::spawn`].
    ///
    /// # Errors
    ///
    /// * [`io::ErrorKind::InvalidInput`] if `ahead` is not shorter than the policy's ttl.
    /// * The system's error if the thread cannot be started.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Refresher};
    /// use std::io;
    /// use std::time::Duration;
    ///
    /// static LIMIT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// let too_long = Refresher::options().spawn(&LIMIT, Duration::from_secs(60), |_previous| 7);
    /// assert_eq!(too_long.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    /// ```
    pub fn spawn<K, R, F, const FALLIBLE: bool>(
        self,
        cell: impl Into<Handle<'static, K>>,
        ahead: Duration,
        mut build: F,
    ) -> io::Result<Refresher>
    where
        K: Refreshable<Clock: Clone>,
        R: BuildResult<K::Value, FALLIBLE>,
        F: FnMut(Option<K::Shared>) -> R + Send + 'static,
    {
        let (mut refresher, mut refresh_loop, end) = self.attach(&cell.into(), ahead)?;
        let work = move || {
            let attachment = Arc::clone(&refresh_loop.attachment);
            let status = &attachment.status;
            loop {
                match refresh_loop.step() {
                    Step::End => return,
                    Step::Sleep(until) => {
                        let is_over = |status: &Status| status.take_notified().then_some(());
                        Entry::new(&**status).wait((), &attachment.clock, until, is_over);
                    }
                    Step::Build(held) => {
                        let kept = held.previous().cloned();
                        let result = catch_unwind(AssertUnwindSafe(|| {
                            held.try_build_with(|previous| build(previous).into_result())
                        }));
                        refresh_loop.note(result);
                        // A panic of its drop is no failure of the build.
                        contain(|| drop(kept));
                    }
                }
            }
        };
        refresher.thread =
            Some(own_thread::spawn(own_thread::Role::Refresher, "dogpile-refresher", move || {
                // With all that it holds.
                if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
                    end.by(panic);
                }
            })?);
        Ok(refresher)
    }

    /// Starts a refresher with these options as a task. See [`Refresher::spawn_async`].
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] if `ahead` is not shorter than the policy's ttl.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Refresher};
    /// use std::time::Duration;
    ///
    /// static LIMIT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let options = Refresher::options().rest_when_unused();
    /// let refresher = options.spawn_async(&LIMIT, Duration::from_secs(5), tokio::spawn, |_previous| async { 7 })?;
    /// assert!(refresher.wait_ready_async(Duration::from_secs(10)).await);
    /// # Ok::<(), std::io::Error>(())
    /// # }).unwrap();
    /// ```
    #[cfg(feature = "async")]
    pub fn spawn_async<K, R, F, Fut, S, const FALLIBLE: bool>(
        self,
        cell: impl Into<Handle<'static, K>>,
        ahead: Duration,
        spawn: impl FnOnce(Task) -> S,
        mut build: F,
    ) -> io::Result<Refresher>
    where
        K: Refreshable<Clock: Clone>,
        R: BuildResult<K::Value, FALLIBLE> + Send,
        F: FnMut(Option<K::Shared>) -> Fut + Send + 'static,
        Fut: Future<Output = R> + Send,
    {
        let (refresher, mut refresh_loop, end) = self.attach(&cell.into(), ahead)?;
        let work = async move {
            loop {
                match refresh_loop.step() {
                    Step::End => return,
                    Step::Sleep(until) => refresh_loop.sleep(until).await,
                    Step::Build(held) => {
                        let kept = held.previous().cloned();
                        let build = held.try_build_with_async(|previous| {
                            let build = build(previous);
                            async { build.await.into_result() }
                        });
                        let Some(result) = refresh_loop.unless_stopped(build).await else { return };
                        refresh_loop.note(result);
                        contain(|| drop(kept));
                    }
                }
            }
        };
        drop(spawn(Box::pin(async move {
            let end = end;
            if let Err(panic) = contained(pin!(work)).await {
                end.by(panic);
            }
        })));
        Ok(refresher)
    }

    fn attach<K: Refreshable<Clock: Clone>>(
        self,
        cell: &Handle<'static, K>,
        ahead: Duration,
    ) -> io::Result<(Refresher, RefreshLoop<K>, Ended)> {
        let machine = cell.machine();
        let ahead = nanos(ahead);
        let ttl = machine.policy.default_ttl();
        if ttl != FOREVER && ahead >= ttl {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "Refresher: `ahead` must be shorter than the policy's ttl, or every value would be due as soon as it is \
                 published",
            ));
        }
        let status = Status::new(self.rests);
        let (clock, end) = (machine.clock.clone(), Ended(Arc::clone(&status)));
        let attachment = Arc::new(Attachment { cell: cell.downgrade(), clock, status: Arc::clone(&status) });
        let refresher = Refresher {
            status: Arc::clone(&status),
            cell: Arc::<Attachment<K>>::clone(&attachment),
            thread: None,
        };
        let min_interval = nanos(self.min_interval);
        let refresh_loop = RefreshLoop { attachment, ahead, min_interval, pause_end: 0 };
        // Last: from here on its drop detaches it, and the clone of the clock, which is user code, may have panicked.
        machine.attach(status);
        Ok((refresher, refresh_loop, end))
    }
}
