//! Without `in_impl`: the compiler's own message, at the function's name. With it: what a `static` cannot depend on.

use dogpile::dogpile;

struct Source;

impl Source {
    #[dogpile(ttl = "60s")]
    fn rates() -> f64 {
        1.07
    }
}

struct Of<T>(T);

impl<T> Of<T> {
    #[dogpile(ttl = "60s", in_impl)]
    fn one_for_all_types() -> f64 {
        1.07
    }
}

impl Source {
    #[dogpile(ttl = "60s", in_impl)]
    fn of_self(&self) -> u32 {
        7
    }

    #[dogpile(ttl = "60s", in_impl)]
    fn returns_self() -> Self {
        Self
    }

    #[dogpile(ttl = "60s", in_impl = true)]
    fn with_a_value() -> u32 {
        7
    }
}

fn main() {}
