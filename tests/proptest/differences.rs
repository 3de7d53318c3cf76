//! Where cells do not do what the words of the contract say.
//!
//! `true`: the model does as the cells do. `false`: as the contract says. Once a difference is mended, on either
//! side, its line goes, and with it what the model does for its sake.

/// `Stats::last_build` is of "the latest build that ended with a value or an error". A value that is rejected
/// (because of `set`, `clear`, or a superseding election) does not count; an error in the same place does.
pub(crate) const A_REJECTED_VALUE_IS_NO_END: bool = true;

/// A build "older than" the lease timeout, that "has run for longer", may be superseded. So may one that is
/// exactly as old.
pub(crate) const A_LEASE_IS_OVERDUE_AT_ITS_TIMEOUT: bool = true;

/// `Waited::Abandoned` says that the build "has run for longer than the lease timeout". `wait` does, and
/// `wait_timeout`, but not with a timeout of zero.
pub(crate) const A_LOOK_DOES_NOT_SEE_AN_OVERDUE_LEASE: bool = true;

/// "While a retry pause runs", values are served for as long as `stale_if_error` too, and "nobody is elected". But
/// not while a lease is taken that was granted during the pause (by `refresh`, `get_fresh_or_refresh`, and where
/// there is nothing to serve or to report): then the pause is without effect, also on superseding that lease.
pub(crate) const A_LEASE_SUSPENDS_THE_PAUSE: bool = true;

/// A caller whose lease was superseded gets "what the cell may serve", as `get` does. But not what it may serve
/// only because a retry pause runs.
pub(crate) const A_LATE_CALLER_IS_NOT_SERVED_IN_A_PAUSE: bool = true;

/// `get_fresh_or_refresh` "never" returns "a stale value", and `refresh` only one "whose build began after this
/// call". But if their build was superseded, they return what the cell may serve, of whatever age.
pub(crate) const A_LATE_CALLER_IS_SERVED_WHAT_IT_REFUSED: bool = true;

/// A retry pause that begins while the value is fresh (a `refresh` failed) does not show in `get`, `load`,
/// `freshness`, `snapshot` and `Reader::get` once the value is stale, unless something else has changed or been
/// looked up since.
pub(crate) const A_PAUSE_MAY_GO_UNNOTICED: bool = true;

/// At the last tick that a clock can show nothing is fresh, not even what never expires, for some methods. The
/// clock stops before.
pub(crate) const THE_LAST_TICK_IS_LEFT_OUT: bool = true;
