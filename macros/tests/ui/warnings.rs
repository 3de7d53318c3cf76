//! What is written brings no warnings, whatever lints the user's crate has.
#![deny(
    warnings,
    missing_copy_implementations,
    missing_debug_implementations,
    missing_docs,
    unnameable_types,
    unreachable_pub,
    unused_qualifications
)]

/// Functions of a library.
pub mod library {
    /// One value.
    #[deprecated = "use another one"]
    #[dogpile::dogpile(ttl = "60s")]
    pub fn rates() -> u32 {
        7
    }

    /// One value, with a refresher.
    #[deprecated]
    #[dogpile::dogpile(ttl = "60s", ahead = "5s")]
    pub fn ahead() -> u32 {
        7
    }

    /// One value of a future.
    #[deprecated]
    #[dogpile::dogpile(ttl = "60s")]
    pub async fn rates_async() -> u32 {
        7
    }

    /// One value for each key.
    #[deprecated]
    #[dogpile_map::dogpile(ttl = "60s", max_entries = 9)]
    pub fn user(id: u64) -> u64 {
        id
    }

    /// One value for each key, of a future.
    #[deprecated]
    #[dogpile_map::dogpile(ttl = "60s", max_entries = 9)]
    pub async fn user_async(name: &str) -> usize {
        name.len()
    }

    /// A type.
    #[derive(Clone, Copy, Debug)]
    pub struct Users;

    impl Users {
        /// One value.
        #[deprecated]
        #[dogpile::dogpile(ttl = "60s", in_impl)]
        pub async fn count() -> u32 {
            7
        }

        /// One value for each key.
        #[deprecated]
        #[dogpile_map::dogpile(ttl = "60s", max_entries = 9, in_impl)]
        pub fn name(id: u64) -> String {
            id.to_string()
        }
    }
}

fn main() {}
