//! Proves a sequence mixer right from its specification alone, ours or a plugin's: the laws that let training, prefill,
//! decoding, packing, padding and beam search be one call.
//!
//! A component registers small configurations with [`conformance!`](crate::conformance!); `hymba conformance` and
//! [`conformance_test!`](crate::conformance_test!) run them. Each law tries examples from small to large; one that breaks
//! it is shrunk until nothing smaller does. No other component takes part: slices of the in-projection are random
//! numbers.

mod case;
mod harness;
mod judge;
mod laws;
mod layout;
mod noise;
mod report;
mod run;
mod search;

pub use case::{Case, CaseEntry, CaseError, Settings, cases, uncovered};
pub use judge::Deviation;
pub use layout::Layout;
pub use report::{Counterexample, LawReport, Outcome, Report};
pub use search::check;

/// Proves every case that a crate registered, and that each of its sequence mixers has one.
///
/// # Panics
/// With the report of each case in which a law is broken.
pub fn assert_crate(crate_name: &str) {
    let all = cases().unwrap_or_else(|error| panic!("{error}"));
    let of_crate = |case: &&Case| case.origin.as_ref().is_some_and(|(owner, _)| owner == crate_name);
    let reports: Vec<Report> = all.iter().filter(of_crate).map(check).collect();
    let broken: Vec<String> =
        reports.iter().filter(|report| !report.passed()).map(|report| report.render(false)).collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    let missing: Vec<&str> = uncovered(&all)
        .into_iter()
        .filter(|kind| {
            let registry = crate::registry::Registry::global().ok();
            let entry = registry.and_then(|registry| registry.get("sequence_mixer", kind));
            entry.is_some_and(|entry| entry.crate_name == crate_name)
        })
        .collect();
    assert!(missing.is_empty(), "no `conformance!` line for: {}", missing.join(", "));
    for report in &reports {
        print!("{}", report.render(false));
    }
}
