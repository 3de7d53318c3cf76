use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::time::{Duration, Instant};
pub(crate) enum RefreshError<E> {
    Build(Arc<E>),
    #[allow(dead_code)]
    Other,
}
impl<E> std::fmt::Display for RefreshError<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("x")
    }
}
pub(crate) struct DogpileCell<T> {
    ttl: Duration,
    v: RwLock<Option<(Instant, Arc<T>)>>,
    b: Mutex<bool>,
    c: Condvar,
}
impl<T> DogpileCell<T> {
    pub(crate) const fn new(ttl: Duration) -> Self {
        Self { ttl, v: RwLock::new(None), b: Mutex::new(false), c: Condvar::new() }
    }
    pub(crate) fn try_get_or_refresh<E>(
        &self,
        f: impl FnOnce() -> Result<T, E>,
    ) -> Result<Arc<T>, RefreshError<E>> {
        loop {
            let cur = self.v.read().unwrap().as_ref().map(|(a, b)| (*a, b.clone()));
            if let Some((at, v)) = &cur
                && at.elapsed() <= self.ttl
            {
                return Ok(v.clone());
            }
            let mut b = self.b.lock().unwrap();
            if *b {
                if let Some((_, v)) = cur {
                    return Ok(v);
                }
                drop(self.c.wait(b).unwrap());
                continue;
            }
            if let Some((at, v)) = self.v.read().unwrap().as_ref()
                && at.elapsed() <= self.ttl
            {
                return Ok(v.clone());
            }
            *b = true;
            drop(b);
            let r = f();
            let r = r.map(Arc::new);
            if let Ok(v) = &r {
                *self.v.write().unwrap() = Some((Instant::now(), v.clone()));
            }
            *self.b.lock().unwrap() = false;
            self.c.notify_all();
            return r.map_err(|e| RefreshError::Build(Arc::new(e)));
        }
    }
}
