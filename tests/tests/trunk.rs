//! Several heads on one trunk, and heads that use the embedding's matrix.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

use hymba_plus::state::SpanInput;
use tch::{Kind, Tensor};

fn section(rest: &str) -> String {
    format!(
        "
d_model: 8
n_layers: 1
vocab_size: 11
embedding: token
norm: rms_norm
head: language
block_pattern:
  kind: parallel
  layer: {{ mixers: [none], channel_mixer: {{ kind: relu2, d_hidden: 16 }} }}
{rest}"
    )
}

#[test]
fn heads_share_a_trunk_and_a_matrix() {
    let model =
        hymba_tests::model(&section("heads: { later: { kind: language, soft_cap: 3.0 } }"), Kind::Double, 1);
    let ids = Tensor::from_slice(&[1_i64, 5, 9]).view([1, 3]);
    let initial = model.initial_state(false).unwrap();
    let (hidden, _) = model.forward(&ids, &initial, &initial, SpanInput::default()).unwrap();
    let (main, later) = (model.head(&hidden).unwrap(), model.head_named("later", &hidden).unwrap());
    let capped = (&main / 3.0).tanh() * 3.0;
    assert!(hymba_tests::max_difference(&later, &capped) < 1e-12);
    assert!(model.parameters().get("heads.later.weight").is_none(), "tied");
    let error = model.head_named("letter", &hidden).unwrap_err().to_string();
    assert!(error.contains("no head `letter`; it has: later"), "{error}");
}

#[test]
fn heads_that_are_not_tied_have_matrices() {
    let model =
        hymba_tests::model(&section("tie_embeddings: false\nheads: { later: language }"), Kind::Double, 1);
    let shape = |name: &str| model.parameters().get(name).unwrap().plan.shape.clone();
    assert_eq!((shape("head.weight"), shape("heads.later.weight")), (vec![11, 8], vec![11, 8]));
}
