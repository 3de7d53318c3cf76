//! A `LazyDogpile` inside a library: its users call a function and never see that there is a cell.

/// The library.
mod rates {
    use std::ops::Deref;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use dogpile::{LazyDogpile, Policy};

    static DOWNLOADS: AtomicU32 = AtomicU32::new(0);

    static RATES: LazyDogpile<Rates> =
        LazyDogpile::with_name("rates", Policy::ttl(Duration::from_secs(60)).jitter(10), download);

    pub(crate) struct Rates {
        dollars_per_euro: f64,
    }

    impl Rates {
        pub(crate) fn in_dollars(&self, euros: f64) -> f64 {
            euros * self.dollars_per_euro
        }
    }

    fn download() -> Rates {
        DOWNLOADS.fetch_add(1, Ordering::Relaxed);
        Rates { dollars_per_euro: 1.07 }
    }

    /// Today's rates; downloads them if need be. No reference count is touched.
    pub(crate) fn today() -> impl Deref<Target = Rates> {
        RATES.load_or_refresh()
    }

    /// For a health check: whether there are rates, without downloading any.
    pub(crate) fn are_known() -> bool {
        RATES.get().is_some()
    }

    pub(crate) fn downloads() -> u32 {
        DOWNLOADS.load(Ordering::Relaxed)
    }
}

fn main() {
    println!("known before the first use: {}", rates::are_known());
    for _ in 0..1_000 {
        assert!(rates::today().in_dollars(100.0) > 100.0);
    }
    println!("known after 1000 uses: {}, downloads: {}", rates::are_known(), rates::downloads());
}
