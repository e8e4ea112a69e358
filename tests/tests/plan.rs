//! The plan against what is known of a model, and against the model it becomes.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

use hymba_plus::plan::{Growth, StateKind};
use hymba_tests::{model, official, plan};
use tch::Kind;

#[test]
fn the_released_model_has_its_parameters_and_its_state() {
    let plan = plan(&official::model_section("Hymba-1.5B-Base").to_string());
    assert_eq!(plan.parameter_count(), 1_522_797_824);
    // The official accounting: everything in two bytes, four columns of convolution, no positions.
    let (mut official, mut ours) = (0, 0);
    for (_, _, state) in plan.states() {
        let elements = state.elements(plan.meta_tokens, 8192);
        ours += elements
            * if state.kind == StateKind::Compute {
                2
            } else if state.kind == StateKind::Float {
                4
            } else {
                8
            };
        official += match (state.name.as_str(), state.growth) {
            ("position", _) => 0,
            ("conv_tail", Growth::Fixed) => elements / 3 * 4 * 2,
            _ => elements * 2,
        };
    }
    let mib = |bytes: i64| bytes as f64 / f64::from(1 << 20);
    println!("official accounting {:.2} MiB, ours with fp32 SSM states {:.2} MiB", mib(official), mib(ours));
    assert!((mib(official) - 79.14).abs() < 0.01, "{}", mib(official));
    assert_eq!(plan.totals(8192).state_bytes as i64, ours);
}

#[test]
fn a_model_has_exactly_the_parameters_of_its_plan() {
    let model = model(&official::model_section("kqnorm").to_string(), Kind::Float, 0);
    let planned: Vec<_> = model.plan().parameters.iter().map(|p| (p.name.clone(), p.shape.clone())).collect();
    let built: Vec<_> = model.parameters().iter().map(|p| (p.plan.name.clone(), p.tensor.size())).collect();
    assert_eq!(planned, built);
    let mut names: Vec<_> = planned.iter().map(|(name, _)| name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), planned.len(), "a name stands twice");
}

/// Forward operations per token by hand, for a layer of the plan that has everything.
#[test]
fn flops_by_hand() {
    let plan = plan(
        "
d_model: 8
n_layers: 1
vocab_size: 10
meta_tokens: 2
embedding: token
norm: rms_norm
head: language
block_pattern:
  kind: parallel
  layer:
    mixers: [{ kind: attention, n_heads: 2, window: 3, position: none }]
    channel_mixer: { kind: swiglu, d_hidden: 16 }
",
    );
    // q, k, v, out: 4 of 8 x 8; gate, up, down: 3 of 8 x 16; head 10 x 8. Keys of 5 tokens: 1, 2, 3, 3, 3, and 2 meta.
    let keys = (1.0 + 2.0 + 3.0 + 3.0 + 3.0) / 5.0 + 2.0;
    let expected = 2.0 * (4.0 * 64.0 + 3.0 * 128.0 + 80.0) + 2.0 * keys * 16.0;
    assert!((plan.totals(5).flops_per_token - expected).abs() < 1e-9);
}

#[test]
fn the_picture_shows_every_layer_and_every_kind_of_layer() {
    let plan = plan(&official::model_section("Hymba-1.5B-Base").to_string());
    let svg = plan.svg("a < b", 2048);
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && svg.contains("<title>a &lt; b</title>"));
    assert_eq!(svg.matches("<title>layer ").count(), 64, "two mixers for each of 32 layers");
    for heading in ["layers 0, 15, 31<", "layers 1, 3, 5, 7, 9, 11, 13, 16, 19, 21, 23, 25, 27, 29<", "17-18"]
    {
        assert!(svg.contains(heading), "{heading}");
    }
    assert_eq!(svg.matches("class=\"share\"").count(), 15 + 1, "15 consumers and the legend");
}
