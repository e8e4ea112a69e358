//! `docs/components.md` says what this binary has.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

use std::path::Path;

use components as _;
use evaluation as _;
use hymba_plus::{reference, registry::Registry};
use recipes as _;
use training as _;

#[test]
fn the_reference_page_is_current() {
    let page = reference::markdown(Registry::global().unwrap(), None);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/components.md");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    let line = page.lines().zip(kept.lines()).find(|(new, old)| new != old);
    let how = "write it anew: hymba components --markdown > docs/components.md";
    assert!(
        page == kept,
        "{} is not current ({how}); the first line that differs: {line:#?}",
        path.display()
    );
}

#[test]
fn every_mixer_names_its_source_and_shows_its_costs() {
    let registry = Registry::global().unwrap();
    let page = reference::markdown(registry, Some("sequence_mixer"));
    for section in page.split("\n### ").skip(1).filter(|section| !section.starts_with("sequence_mixer none"))
    {
        let name = section.lines().next().unwrap();
        let doc = section.split("\n| field").next().unwrap();
        let cites = ["et al. 20", "& Gu 20", "& Dao 20", "AI 20"].iter().any(|authors| doc.contains(authors));
        assert!(cites, "{name}: no paper in the doc comment: {doc}");
        assert!(section.contains("\nExample `") && section.contains("- operations: "), "{name}: no example");
    }
}
