//! Logits processors against transformers 5.23: the same scores in, the same scores out.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

use hymba_plus::generate::{
    GenerateOptions, History, LogitsProcessor, Sampling, Scores,
    processors::{RepetitionPenalty, TopK, TopP, processors},
};
use serde_json::Value;

fn fixture(name: &str) -> Value {
    let path = format!("{}/fixtures/generation/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Rows of numbers; what the fixture has as null is minus infinity.
fn rows(value: &Value) -> Vec<Vec<f32>> {
    let number = |value: &Value| value.as_f64().map_or(f32::NEG_INFINITY, |value| value as f32);
    let row = |value: &Value| value.as_array().unwrap().iter().map(number).collect();
    value.as_array().unwrap().iter().map(row).collect()
}

fn ids(value: &Value) -> Vec<Vec<i64>> {
    let row =
        |value: &Value| value.as_array().unwrap().iter().map(|id| id.as_f64().unwrap() as i64).collect();
    value.as_array().unwrap().iter().map(row).collect()
}

/// `{shape: [rows, columns], data}` as rows.
fn table(value: &Value) -> Value {
    let columns = value["shape"][1].as_u64().unwrap() as usize;
    let data = value["data"].as_array().unwrap();
    data.chunks(columns).map(<[Value]>::to_vec).collect()
}

#[allow(clippy::float_cmp)] // what is ruled out is minus infinity in both
fn compare(name: &str, ours: &[f32], theirs: &[f32]) {
    assert_eq!(ours.len(), theirs.len());
    for (token, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        let is_near = (ours - theirs).abs() <= 1e-6 * theirs.abs();
        assert!(ours == theirs || is_near, "{name}, token {token}: {ours} instead of {theirs}");
    }
}

#[test]
fn single_processors_give_the_reference_scores() {
    let reference = fixture("reference");
    let table_of: [(&str, Box<dyn LogitsProcessor>); 3] = [
        ("gen/repetition_penalty_1.3", Box::new(RepetitionPenalty(1.3))),
        ("gen/top_k_4", Box::new(TopK(4))),
        ("gen/top_p_0.8", Box::new(TopP(0.8))),
    ];
    for (name, processor) in table_of {
        let case = &reference[name];
        let (scores, out) = (rows(&table(&case["in"]["scores"])), rows(&table(&case["out"])));
        for ((scores, ids), expected) in scores.iter().zip(ids(&table(&case["in"]["input_ids"]))).zip(out) {
            let mut scores = Scores::new(scores);
            processor.process(&History::new(&ids), &mut scores);
            // The reference writes -1e30 for what is left out.
            let expected: Vec<f32> =
                expected.iter().map(|&score| if score < -1e29 { f32::NEG_INFINITY } else { score }).collect();
            compare(name, scores.values(), &expected);
        }
    }
}

/// The settings of a transformers configuration as ours; its `top_k` is 50 where it is not given.
fn options(settings: &Value, stop_tokens: &[i64]) -> GenerateOptions {
    let number = |name: &str| settings[name].as_f64();
    let count = |name: &str| settings[name].as_u64().map(|count| count as usize);
    let is_drawn = settings["do_sample"].as_bool().unwrap_or(false);
    let temperature = if is_drawn { number("temperature").unwrap_or(1.0) } else { 0.0 };
    let known = ["do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"];
    for key in settings.as_object().unwrap().keys() {
        assert!(
            known.contains(&key.as_str())
                || ["no_repeat_ngram_size", "min_new_tokens"].contains(&key.as_str())
        );
    }
    GenerateOptions {
        min_new_tokens: count("min_new_tokens").unwrap_or(0),
        stop_tokens: stop_tokens.to_vec(),
        sampling: Sampling {
            temperature,
            top_k: count("top_k").filter(|k| *k > 0),
            top_p: number("top_p"),
            min_p: number("min_p"),
            repetition_penalty: number("repetition_penalty").unwrap_or(1.0),
            no_repeat_ngram: count("no_repeat_ngram_size"),
            ..Sampling::default()
        },
        ..GenerateOptions::default()
    }
}

#[test]
fn whole_lists_of_processors_give_the_reference_scores() {
    let fixture = fixture("sampling");
    let (prompts, new, stop) =
        (ids(&fixture["prompts"]), ids(&fixture["new_tokens"]), &fixture["stop_tokens"]);
    let stop: Vec<i64> = stop.as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect();
    let cases = fixture["cases"].as_object().unwrap();
    assert!(cases.len() >= 18, "{}", cases.len());
    for (name, case) in cases {
        let list = processors(&options(&case["settings"], &stop));
        let expected = rows(&case["out"]);
        for (row, scores) in rows(&case["scores"]).iter().enumerate() {
            let mut history = History::new(&prompts[row]);
            for &token in &new[row] {
                history.push(token);
            }
            let mut scores = Scores::new(scores);
            for processor in &list {
                processor.process(&history, &mut scores);
            }
            compare(&format!("{name}, row {row}"), scores.values(), &expected[row]);
        }
    }
}

/// What a wrong order would give differs, so the order of the list is tested too.
#[test]
fn the_order_of_filters_matters() {
    let logits = [2.0, 1.5, 1.0, 0.0, -1.0];
    let options = GenerateOptions {
        sampling: Sampling { temperature: 3.0, top_p: Some(0.6), ..Sampling::default() },
        ..GenerateOptions::default()
    };
    let list = processors(&options);
    let left = |list: &mut dyn Iterator<Item = &Box<dyn LogitsProcessor>>| {
        let mut scores = Scores::new(&logits);
        list.for_each(|processor| processor.process(&History::new(&[0]), &mut scores));
        scores.values().iter().filter(|score| score.is_finite()).count()
    };
    assert_eq!((left(&mut list.iter()), left(&mut list.iter().rev())), (3, 2));
}
