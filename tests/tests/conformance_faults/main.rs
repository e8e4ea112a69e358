//! The conformance suite is itself proven: each law is broken once in a real mixer, and caught by name; the unbroken
//! twin passes.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

mod faulty;

use components as _;
use faulty::Fault;
use hymba_plus::{
    conformance::{Case, Outcome, Report, check},
    plan::Law,
};
use serde_json::{Map, Value};

const ATTENTION: &str = "{ kind: attention, n_heads: 4, n_kv_heads: 2, window: 5, position: rope }";
const NARROW: &str = "{ kind: attention, n_heads: 4, n_kv_heads: 2, window: 3, position: rope }";
const MAMBA: &str = "{ kind: mamba, d_inner: 12, d_state: 3 }";
const NONE: &str = "none";

fn config(of: &str, fault: Fault) -> String {
    let fault = serde_json::to_value(fault).unwrap();
    format!("{{ of: {of}, fault: {} }}", fault.as_str().unwrap())
}

fn proved(of: &str, fault: Fault) -> Report {
    let mut case = Case::mixer("faulty", &config(of, fault)).unwrap();
    case.settings.neutral = of == NONE;
    if of == ATTENTION {
        let consumer: Map<String, Value> = serde_yaml::from_str(&config(NARROW, fault)).unwrap();
        case.settings.consumer = Some(consumer);
    }
    check(&case)
}

/// Whether a fault breaks one law alone, or others as a consequence.
#[derive(Clone, Copy, PartialEq)]
enum Breaks {
    Only,
    AmongOthers,
}
use Breaks::{AmongOthers, Only};

fn caught(of: &str, fault: Fault, law: Law, breaks: Breaks) {
    let report = proved(of, fault);
    println!("{}", report.render(false));
    let broken: Vec<Law> = report.broken().collect();
    let names = |laws: &[Law]| laws.iter().map(|law| law.name()).collect::<Vec<_>>().join(", ");
    assert!(broken.contains(&law), "{fault:?} breaks {law}, found broken: {}", names(&broken));
    if breaks == Only {
        assert_eq!(broken, [law], "{fault:?} breaks {law} alone, found broken: {}", names(&broken));
    }
}

/// A test for each fault: the mixer, the law, and whether it is the only one.
macro_rules! faults {
    ($($name:ident: $of:ident, $fault:ident => $law:ident, $breaks:ident;)*) => {$(
        #[test]
        fn $name() {
            caught($of, Fault::$fault, Law::$law, $breaks);
        }
    )*};
}

faults! {
    window_off_by_one: ATTENTION, WindowOffByOne => Window, Only;
    ring_too_short: ATTENTION, RingTooShort => SplitInvariance, AmongOthers;
    positions_not_offset: ATTENTION, PositionsNotOffset => SplitInvariance, AmongOthers;
    ring_overwritten_before_a_consumer_reads_it: ATTENTION, RingOverwritten => SharedKeys, Only;
    consumer_forgets_its_window: ATTENTION, ConsumerForgetsWindow => SharedKeys, Only;
    reset_to_zero: MAMBA, ResetToZero => PackedDocuments, Only;
    reset_ignored: MAMBA, ResetIgnored => PackedDocuments, Only;
    initial_state_without_gradient: MAMBA, InitialDetached => PackedDocuments, AmongOthers;
    state_without_history: MAMBA, StateDetached => SplitInvariance, AmongOthers;
    padding_leaks_into_the_state: MAMBA, PaddingLeaks => Padding, Only;
    state_in_low_precision: MAMBA, StateInLowPrecision => StateAsPlanned, Only;
    state_rounded: MAMBA, StateRounded => Precision, Only;
    unplanned_state: MAMBA, UnplannedState => StateAsPlanned, Only;
    output_of_another_type: MAMBA, OutputKind => OutputAsPlanned, Only;
    future_leak: ATTENTION, FutureLeak => Causality, AmongOthers;
    future_leak_without_gradient: MAMBA, FutureLeakDetached => Causality, AmongOthers;
    rows_mixed: ATTENTION, RowsMixed => BatchInvariance, AmongOthers;
    unsteady: MAMBA, Unsteady => Determinism, Only;
    state_written_in_place: MAMBA, WrittenInPlace => StatesAreValues, AmongOthers;
    hidden_memory: MAMBA, HiddenMemory => StateSelection, AmongOthers;
    parameter_read_at_build: MAMBA, ReadAtBuild => SaveAndLoad, Only;
    idle_parameter: ATTENTION, IdleParameter => ParametersAsPlanned, Only;
    idle_input: MAMBA, IdleInput => ParametersAsPlanned, Only;
    empty_call_forgets: MAMBA, EmptyCallForgets => SplitInvariance, AmongOthers;
    meta_tokens_dropped: MAMBA, MetaDropped => MetaPrefix, Only;
    gradient_halved: MAMBA, HalfDetached => Gradients, Only;
    stub_that_is_not_neutral: NONE, NotNeutral => NeutralNone, Only;
}

#[test]
fn the_unbroken_twins_pass() {
    for of in [ATTENTION, MAMBA, NONE] {
        let report = proved(of, Fault::Nothing);
        assert!(report.passed(), "{}", report.render(true));
    }
}

/// Every law has a fault above, so that none can be broken unseen.
#[test]
fn every_law_has_a_fault() {
    let text = include_str!("main.rs");
    for law in Law::ALL {
        assert!(text.contains(&format!("=> {law:?}, ")), "no fault breaks {law}");
    }
}

/// What is reported is small: the split around an empty call and nothing else.
#[test]
fn the_example_is_the_smallest() {
    let report = proved(MAMBA, Fault::EmptyCallForgets);
    let Some(Outcome::Broken(found)) = report.outcome(Law::SplitInvariance) else { panic!("{report:?}") };
    assert_eq!(found.example.to_string(), "batch 1, meta tokens 0, calls of [1, 0, 1] tokens");
    assert_eq!((found.deviation.row, found.deviation.token), (Some(0), Some(1)));
}
