//! Our Hymba against the official code: numbers that it produced on a CPU in 32 bits.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

use hymba_plus::{
    model::{BuildOptions, Model, Observers, Taps},
    state::SpanInput,
    weights::Foreign,
};
use hymba_tests::{official, read_safetensors, relative_rms};
use tch::{Kind, Tensor};

fn model(foreign: &Foreign, kind: Kind) -> Model {
    foreign.model(BuildOptions { kind, ..BuildOptions::default() }).unwrap()
}

fn parity(name: &str, kind: Kind, forward: f64, backward: f64) {
    let folder = official::folder();
    let io = read_safetensors(&folder.join(format!("{name}.io.safetensors")));
    let gradients = read_safetensors(&folder.join(format!("{name}.grads.safetensors")));
    let foreign = official::foreign(name, "prefill");
    let model = model(&foreign, kind);
    let (before, after) = (Taps::default(), Taps::default());
    let ids = &io["input_ids"];
    let initial = model.initial_state_observed(false, Observers::taps(&before)).unwrap();
    let input = SpanInput::default();
    let (hidden, _) =
        model.forward_observed(ids, &initial, &initial, input, Observers::taps(&after)).unwrap();
    let logits = model.head(&hidden).unwrap();
    let mut worst = (0.0, String::new());
    let mut compare = |what: &str, ours: &Tensor, theirs: &Tensor, bound: f64| {
        let error = relative_rms(ours, theirs);
        assert!(error <= bound, "{name} {kind:?} {what}: relative RMS {error:.2e} > {bound:.0e}");
        if error > worst.0 {
            worst = (error, what.to_owned());
        }
    };
    for layer in 0..6 {
        let taps = [
            ("in_proj", "in_proj"),
            ("attn_branch", "branch.attention"),
            ("ssm_branch", "branch.mamba"),
            ("attn_normed", "fusion.norm_0"),
            ("ssm_normed", "fusion.norm_1"),
            ("mixer", "mixer"),
            ("out", "out"),
        ];
        for (theirs, ours) in taps {
            let tap = format!("layers.{layer}.{ours}");
            let meta = before.get(&tap).expect("the prefix has the tap").expand([2, -1, -1], false);
            let whole = Tensor::cat(&[meta, after.get(&tap).expect("the text has the tap")], 1);
            compare(&tap, &whole, &io[&format!("layer{layer}.{theirs}")], forward);
        }
    }
    compare("logits_full", &logits, &io["logits_full"], forward);
    let loss = logits
        .slice(1, 0, -1, 1)
        .reshape([-1, 97])
        .cross_entropy_for_logits(&ids.slice(1, 1, 24, 1).reshape([-1]));
    compare("loss", &loss.reshape([1]), &io["loss"], forward);
    println!("{name} {kind:?}: forward worst {:.2e} at {}", worst.0, worst.1);
    loss.backward();
    let mut worst = (0.0, String::new());
    let gradients = foreign.mapping().translate(&gradients).unwrap();
    assert_eq!(gradients.len(), model.parameters().len(), "every parameter has a gradient to compare with");
    for (ours, theirs) in &gradients {
        let error = relative_rms(&model.parameters().get(ours).unwrap().tensor.grad(), theirs);
        assert!(
            error <= backward,
            "{name} {kind:?} gradient of {ours}: relative RMS {error:.2e} > {backward:.0e}"
        );
        if error > worst.0 {
            worst = (error, ours.clone());
        }
    }
    println!("{name} {kind:?}: {} gradients, worst {:.2e} at {}", gradients.len(), worst.0, worst.1);
}

#[test]
fn base_in_64_bits() {
    parity("base", Kind::Double, 5e-5, 5e-4);
}

#[test]
fn base_in_32_bits() {
    parity("base", Kind::Float, 3e-4, 3e-3);
}

#[test]
fn kqnorm_in_64_bits() {
    parity("kqnorm", Kind::Double, 5e-5, 5e-4);
}

#[test]
fn kqnorm_in_32_bits() {
    parity("kqnorm", Kind::Float, 3e-4, 3e-3);
}

/// The official decoding keeps W text keys: with our window W, one call and decoding token by token both give it.
#[test]
fn window_w_is_the_official_decoding() {
    for name in ["base", "kqnorm"] {
        let io = read_safetensors(&official::folder().join(format!("{name}.io.safetensors")));
        let model = model(&official::foreign(name, "cache"), Kind::Double);
        let _guard = torch_bridge::guards::NoGrad::new();
        let ids = &io["input_ids"];
        let initial = model.initial_state(false).unwrap();
        let (hidden, _) = model.forward(ids, &initial, &initial, SpanInput::default()).unwrap();
        let full = model.head(&hidden).unwrap();
        let expected = &io["logits_decode_prefill6"];
        // The prefill of 6 tokens is shorter than the window, so both of the official readings agree on it.
        let error = relative_rms(&full, expected);
        assert!(error <= 5e-5, "{name} in one call: {error:.2e}");
        let (mut state, mut logits) = (initial.share(), Vec::new());
        for (start, length) in std::iter::once((0, 6)).chain((6..24).map(|t| (t, 1))) {
            let chunk = ids.narrow(1, start, length);
            let (hidden, next) = model.forward(&chunk, &state, &initial, SpanInput::default()).unwrap();
            logits.push(model.head(&hidden).unwrap());
            state = next;
        }
        let error = relative_rms(&Tensor::cat(&logits, 1), expected);
        assert!(error <= 5e-5, "{name} token by token: {error:.2e}");
        println!("{name}: decoding {error:.2e}");
    }
}
