//! From a recipe's `data` and `tokenizer` to batches, and what of it a resumed run checks.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::{SEQUENCE_LENGTH, loop_config, options};
use hymba_plus::{
    config::{LoadOptions, Recipe},
    params::{Init, ParameterPlan, Parameters},
};
use serde_json::json;
use tch::{Kind, Tensor};
use training::prelude::*;

/// A table of logits for the next token: the smallest language model.
struct Table(Parameters);

impl Task for Table {
    type Batch = Batch;

    fn parameters(&self) -> &Parameters {
        &self.0
    }

    fn loss(&self, batch: &Batch) -> Result<Loss, TaskError> {
        let table = &self.0.get("table").ok_or("no table")?.tensor;
        let logits = Tensor::f_embedding(table, &batch.tokens, -1, false, false)?;
        Ok(Loss::of_sum(cross_entropy_sum(&logits, &batch.targets, 0.1)?))
    }

    fn evaluate(&mut self) -> Result<Vec<(String, f64)>, TaskError> {
        Ok(vec![])
    }
}

fn recipe(folder: &Path, tokenizer: &str) -> Recipe {
    let text = format!(
        "schema: 1\nname: text\nseed: 1\ntrainer: {{device: cpu, threads: 1, checkpoint: {{every_steps: 2}}}}\n\
         data: {{kind: text, paths: ['*.txt']}}\ntokenizer: {tokenizer}\n"
    );
    let options = LoadOptions { cwd: Some(folder.to_owned()), ..LoadOptions::default() };
    Recipe::from_yaml(&text, &options).unwrap()
}

fn train_on(recipe: &Recipe, run_dir: &Path, resume: bool, steps: u64) -> Result<TextData, TrainError> {
    let mut run = Run::open(recipe, options(run_dir, resume))?;
    let RunData::Text(text) = RunData::prepare(&run, recipe)? else { panic!("no text") };
    let vocab = text.tokenizer.planned_vocab_size() as i64;
    let plan = ParameterPlan {
        name: "table".to_owned(),
        shape: vec![vocab, vocab],
        init: Init::ZEROS,
        weight_decay: false,
        keep_float: false,
        trained: true,
    };
    let mut task = Table(Parameters::allocate(&[plan], run.device(), Kind::Float, run.seed()).unwrap());
    let config = loop_config(&json!({ "steps": steps, "schedule": "constant", "evaluate_every": null }));
    let mut blocks = text.training_blocks(SEQUENCE_LENGTH, &run)?;
    train(&mut run, "pretrain", &config, &mut task, &mut blocks)?;
    Ok(*text)
}

#[test]
fn text_is_prepared_once_and_a_change_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = folder.path().join("run");
    std::fs::write(folder.path().join("a.txt"), include_str!("text.rs")).unwrap();
    std::fs::write(folder.path().join("b.txt"), include_str!("kill.rs")).unwrap();
    let recipe = recipe(folder.path(), "{kind: byte_level_bpe, vocab_size: 400}");
    let first = train_on(&recipe, &run_dir, false, 4).unwrap();
    assert_eq!((first.train.documents(), first.validation.documents()), (2, 1));
    let read = |name: &str| std::fs::read_to_string(run_dir.join(name)).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&read("data.json")).unwrap();
    assert_eq!(manifest[0]["size"], json!(include_str!("text.rs").len()));
    assert_eq!(Tokenizer::load(&run_dir.join("tokenizer.json")).unwrap().hash(), first.tokenizer.hash());

    // The tokenizer is taken from the run, and the batches go on.
    let second = train_on(&recipe, &run_dir, true, 6).unwrap();
    assert_eq!((second.train, second.tokenizer.hash()), (first.train, first.tokenizer.hash()));

    std::fs::write(folder.path().join("b.txt"), include_str!("kill.rs").replace("killed", "filled")).unwrap();
    let error = train_on(&recipe, &run_dir, true, 8).unwrap_err().to_string();
    assert!(error.contains("file 2 (b.txt): was "), "{error}");
}

#[test]
fn another_tokenizer_is_refused_and_the_run_keeps_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = folder.path().join("run");
    std::fs::write(folder.path().join("a.txt"), include_str!("text.rs")).unwrap();
    let with =
        |special: &str| recipe(folder.path(), &format!("{{kind: bytes, special_tokens: [{special}]}}"));
    train_on(&with("'<|a|>'"), &run_dir, false, 2).unwrap();
    let before = std::fs::read(run_dir.join("tokenizer.json")).unwrap();
    let mut run = options(&run_dir, true);
    run.force = true;
    let changed = with("'<|b|>'");
    let error = RunData::prepare(&Run::open(&changed, run).unwrap(), &changed).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json, which the run began with"), "{error}");
    assert_eq!(std::fs::read(run_dir.join("tokenizer.json")).unwrap(), before);
}

#[test]
fn a_recipe_that_failed_at_its_data_can_be_put_right_and_run_again() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = folder.path().join("run");
    let error = train_on(&recipe(folder.path(), "bytes"), &run_dir, false, 2).unwrap_err().to_string();
    assert!(error.contains("*.txt` matches no file"), "{error}");
    std::fs::write(folder.path().join("a.txt"), include_str!("text.rs")).unwrap();
    train_on(&recipe(folder.path(), "{kind: bytes}"), &run_dir, false, 2).unwrap();
    let again = train_on(&recipe(folder.path(), "bytes"), &run_dir, false, 2).unwrap_err().to_string();
    assert!(again.contains("--overwrite"), "{again}");
}
