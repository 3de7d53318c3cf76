//! The example of `docs/one_line.md` that needs the crate `dogpile-map`, and so cannot be compiled with the page.

#[allow(unreachable_pub, clippy::unnecessary_wraps)] // as on the page
mod example {
    include!("page/user.rs");

    #[test]
    fn it_runs() {
        main().unwrap();
        assert_eq!(user::map().stats().builds, 1);
    }
}

#[test]
fn the_page_shows_it_as_it_is_compiled() {
    let page = include_str!("../../docs/one_line.md");
    let example = include_str!("page/user.rs");
    assert!(
        page.contains(&format!("```text\n{example}```\n")),
        "docs/one_line.md does not show tests/page/user.rs"
    );
}
