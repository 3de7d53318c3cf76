//! Where cells do not do what the words of the contract say.
//!
//! `true`: the model does as the cells do. `false`: as the contract says. Once a difference is mended, on either side,
//! its line goes, and with it what the model does for its sake.

/// `synchronize` waits "until everything that was retired before this call is finalised", and panics if "it would wait
/// for itself". Under the write lock it always says that it would if there was no old value, also if nothing is retired.
pub(crate) const A_SECTION_OVER_NOTHING_CANNOT_SYNCHRONIZE: bool = false;
