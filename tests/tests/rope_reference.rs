//! The rotary variants against transformers 5.23: frequencies, scale, and channels that it turned.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

use std::path::Path;

use components as _;
use hymba_plus::{
    model::{
        Parts,
        slot::{PositionModule, position},
    },
    registry::Component,
};
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

fn cases(file: &str) -> Map<String, Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(file);
    let Value::Object(cases) = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap() else {
        panic!("{file} is not a mapping of cases");
    };
    cases
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn tensor(value: &Value) -> Tensor {
    let shape: Vec<i64> = numbers(&value["shape"]).into_iter().map(|size| size as i64).collect();
    Tensor::from_slice(&numbers(&value["data"])).reshape(shape)
}

/// Our component with the parameters that transformers calls `rope_parameters`; `original` is the trained length.
fn rotary(parameters: &Value, original: i64, head_dim: i64) -> Box<dyn PositionModule> {
    let kind = parameters["rope_type"].as_str().unwrap();
    let (ours, keys): (_, &[&str]) = match kind {
        "default" => ("rope", &[]),
        "linear" => ("rope_linear", &["factor"]),
        "dynamic" => ("rope_dynamic_ntk", &["factor"]),
        "yarn" => ("rope_yarn", &["factor", "beta_fast", "beta_slow", "attention_factor"]),
        "llama3" => ("rope_llama3", &["factor", "low_freq_factor", "high_freq_factor"]),
        other => panic!("{other}"),
    };
    let mut config = Map::from_iter([("theta".to_owned(), parameters["rope_theta"].clone())]);
    for key in keys.iter().filter(|key| parameters.get(**key).is_some()) {
        config.insert((*key).to_owned(), parameters[*key].clone());
    }
    if ["dynamic", "yarn", "llama3"].contains(&kind) {
        config.insert("original_max_positions".to_owned(), json!(original));
    }
    config.insert("kind".to_owned(), json!(ours));
    let model = json!({
        "d_model": head_dim,
        "n_layers": 1,
        "vocab_size": 2,
        "embedding": "token",
        "norm": "none",
        "head": "language",
        "block_pattern": {
            "kind": "parallel",
            "layer": { "mixers": [{ "kind": "attention", "n_heads": 1, "position": config }] },
        },
    });
    let plan = hymba_tests::plan(&model.to_string());
    let child = &plan.layers[0].mixers[0].module.children["position"];
    let component = Component::<position>::new(&child.kind, child.config.clone()).make().unwrap();
    component.build(Parts {
        plan: child.plan.clone(),
        parameters: [].into(),
        norms: [].into(),
        positions: [].into(),
    })
}

/// What the component multiplies a pair of channels by: frequencies and scale, read off the vector `(1, 0)` of each
/// pair at position 1, in a call that reaches `length` positions.
fn measured(rotary: &dyn PositionModule, head_dim: i64, length: i64) -> (Vec<f64>, Vec<f64>) {
    let half = head_dim / 2;
    let pairs = Tensor::cat(
        &[
            Tensor::ones([half], (Kind::Double, tch::Device::Cpu)),
            Tensor::zeros([half], (Kind::Double, tch::Device::Cpu)),
        ],
        0,
    );
    let x = pairs.reshape([1, 1, 1, head_dim]).expand([1, 1, 2, head_dim], false);
    let turned = rotary.forward(&x, &Tensor::from_slice(&[1, length - 1]).reshape([1, 2])).unwrap();
    let values: Vec<f64> = Vec::try_from(turned.select(2, 0).reshape([-1])).unwrap();
    let (cos, sin) = values.split_at(half as usize);
    let angle = cos.iter().zip(sin).map(|(cos, sin)| sin.atan2(*cos)).collect();
    (angle, cos.iter().zip(sin).map(|(cos, sin)| cos.hypot(*sin)).collect())
}

/// Frequencies and scale of a case; transformers computes them in 32 bits.
fn frequencies(name: &str, rotary: &dyn PositionModule, out: &Value, length: i64) {
    let expected = numbers(&out["inv_freq"]["data"]);
    let (got, scales) = measured(rotary, 2 * expected.len() as i64, length);
    let worst =
        got.iter().zip(&expected).map(|(got, expected)| (got / expected - 1.0).abs()).fold(0.0, f64::max);
    println!("{name}: frequencies differ by {worst:.1e}");
    assert!(worst <= 1e-6, "{name}: frequencies {got:?}, expected {expected:?}");
    let scale = out["attention_factor"].as_f64().unwrap();
    assert!(
        scales.iter().all(|got| (got - scale).abs() < 1e-12),
        "{name}: scales {scales:?}, expected {scale}"
    );
}

#[test]
fn frequencies_of_the_reference() {
    let cases = cases("rope-reference.json");
    assert_eq!(cases.len(), 3);
    for (name, case) in &cases {
        let input = &case["in"];
        let mut parameters = input.clone();
        parameters["rope_type"] = json!(name.strip_prefix("rope/").unwrap());
        parameters["rope_theta"] = input["theta"].clone();
        let rotary = rotary(&parameters, 2048, input["head_dim"].as_i64().unwrap());
        frequencies(name, &*rotary, &case["out"], input["seq_len"].as_i64().unwrap());
    }
}

#[test]
fn every_variant_turns_as_transformers_does() {
    let cases = cases("transformers/rope.json");
    assert_eq!(cases.len(), 16);
    for (name, case) in &cases {
        let (input, out) = (&case["in"], &case["out"]);
        let x = tensor(&input["x"]);
        let rotary = rotary(&input["parameters"], input["original"].as_i64().unwrap(), x.size()[3]);
        let rows: Vec<_> = input["positions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| Tensor::from_slice(&numbers(row)))
            .collect();
        let positions = Tensor::stack(&rows, 0).to_kind(Kind::Int64);
        let length = i64::try_from(positions.max()).unwrap() + 1;
        frequencies(name, &*rotary, out, length);
        // 32 bits leave an angle of `position` radians no better than 2^-23 of itself, once in the frequency and once
        // in the product; with pairs of up to 4 in length that is this much of a channel.
        let bound = 4.0 * (2.0 * length as f64 * 2f64.powi(-23) + 1e-6);
        let turned = rotary.forward(&x, &positions).unwrap();
        let worst = hymba_tests::max_difference(&turned, &tensor(&out["turned"]));
        println!("{name}: channels differ by {worst:.1e}");
        assert!(worst <= bound, "{name}: channels differ by {worst:.1e} > {bound:.1e}");
    }
}
