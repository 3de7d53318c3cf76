//! Each setting is checked where it stands, all of them at once.

use dogpile::dogpile;

#[dogpile]
fn no_settings() -> u32 {
    7
}

#[dogpile()]
fn no_settings_in_brackets() -> u32 {
    7
}

#[dogpile(jitter = 10)]
fn no_ttl() -> u32 {
    7
}

#[dogpile(ttl = "60s", never_expires)]
fn both() -> u32 {
    7
}

#[dogpile(ttl = "60s", tll = "60s", type = 1, max_entries = 100)]
fn unknown() -> u32 {
    7
}

#[dogpile(ttl = "60s", ttl = "70s")]
fn twice() -> u32 {
    7
}

#[dogpile(ttl)]
fn without_a_value() -> u32 {
    7
}

#[dogpile(never_expires = true)]
fn with_a_value() -> u32 {
    7
}

#[dogpile(ttl = "60s", name = 7)]
fn no_name() -> u32 {
    7
}

#[dogpile(ttl = "60s", jitter = 101)]
fn too_much_jitter() -> u32 {
    7
}

#[dogpile(ttl = "60s", jitter = "10%")]
fn textual_jitter() -> u32 {
    7
}

#[dogpile("60s")]
fn only_a_value() -> u32 {
    7
}

#[dogpile(ttl: "60s")]
fn a_colon() -> u32 {
    7
}

fn main() {
    // They are there all the same: no error says that they are not.
    no_settings();
    unknown();
}
