//! Layers: what wins over what, where paths are taken from, and what `explain` says of it.

use std::path::{Path, PathBuf};

use hymba_plus::{
    config::{LoadOptions, Recipe, RecipePath},
    serde_json::{Value, json},
};
use tempfile::TempDir;

use crate::support::{Network, Training};

/// A folder with these files in it.
pub fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder for files");
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    }
    folder
}

pub fn load(folder: &Path, name: &str, options: &LoadOptions) -> Recipe {
    Recipe::load(folder.join(name), options)
        .unwrap_or_else(|problems| panic!("{}", problems.render(false, 100)))
}

fn at<'a>(recipe: &'a Recipe, pointer: &str) -> &'a Value {
    recipe.values().pointer(pointer).unwrap_or(&Value::Null)
}

pub fn set(assignments: &[&str]) -> LoadOptions {
    LoadOptions { set: assignments.iter().map(ToString::to_string).collect(), ..LoadOptions::default() }
}

pub const BASE: &str = "schema: 1
name: base
seed: 3
network:
  d_model: 256
  norm: {kind: rms, eps: 1e-3}
  layers: [{kind: attention, n_heads: 4}, mamba]
training:
  steps: 100
  update: {kind: adamw, lr: 3e-4, betas: [0.8, 0.9]}
";

#[test]
fn a_file_lies_over_what_it_extends() {
    let folder = folder(&[
        ("base.yaml", BASE),
        ("more.yaml", "schema: 1\nseed: 4\ntraining: {steps: 200, device: cpu}\n"),
        (
            "run.yaml",
            "schema: 1\nextends: [base.yaml, more.yaml]\ntraining:\n  steps: 300\nnetwork:\n  layers: [mamba]\n",
        ),
    ]);
    let recipe = load(folder.path(), "run.yaml", &LoadOptions::default());
    assert_eq!(at(&recipe, "/training/steps"), &json!(300));
    assert_eq!(at(&recipe, "/training/device"), &json!("cpu"));
    assert_eq!(at(&recipe, "/training/update/lr"), &json!(3e-4));
    assert_eq!(recipe.seed(), 4);
    assert_eq!(recipe.name(), "run", "the name of a base is its own");
    assert_eq!(
        at(&recipe, "/network/layers").as_array().map(Vec::len),
        Some(1),
        "lists are replaced, not merged"
    );
}

#[test]
fn every_layer_wins_over_those_below_it() {
    let folder = folder(&[
        ("base.yaml", BASE),
        ("run.yaml", "schema: 1\nextends: base.yaml\ntraining: {steps: 200}\n"),
        (
            "configs/training/short.yaml",
            "schema: 1\ntraining: {steps: 400, update: {kind: muon, lr: 0.02}}\n",
        ),
    ]);
    let mut options = LoadOptions::default();
    let steps =
        |options: &LoadOptions| at(&load(folder.path(), "run.yaml", options), "/training/steps").clone();
    assert_eq!(steps(&options), json!(200));
    options.environment = vec![("HYMBA__TRAINING__STEPS".into(), "300".into()), ("HOME".into(), "x".into())];
    assert_eq!(steps(&options), json!(300));
    options.groups = vec![("training".into(), "short".into())];
    assert_eq!(steps(&options), json!(400));
    options.set = vec!["training.steps=500".into()];
    assert_eq!(steps(&options), json!(500));
}

#[test]
fn a_group_choice_replaces_the_whole_section() {
    let folder = folder(&[
        ("recipes/run.yaml", BASE),
        (
            "configs/trainings/parent.yaml",
            "schema: 1\ntraining: {steps: 7, update: {kind: muon, lr: 1}, clip: 2}\n",
        ),
        ("configs/trainings/short.yaml", "schema: 1\nextends: parent.yaml\ntraining: {steps: 8}\n"),
    ]);
    let options =
        LoadOptions { groups: vec![("training".into(), "short".into())], ..set(&["training.log_every=3"]) };
    let recipe = load(folder.path(), "recipes/run.yaml", &options);
    let training = at(&recipe, "/training");
    assert_eq!((&training["steps"], &training["update"]["kind"]), (&json!(8), &json!("muon")));
    assert_eq!((&training["clip"], &training["log_every"]), (&json!(2.0), &json!(3)));
    assert_eq!(training["update"].get("betas"), None);
}

#[test]
fn a_new_kind_drops_the_keys_of_the_old_one() {
    let folder = folder(&[
        ("base.yaml", BASE),
        ("kind.yaml", "schema: 1\nextends: base.yaml\ntraining: {update: {kind: muon, lr: 0.02}}\n"),
        ("alias.yaml", "schema: 1\nextends: base.yaml\nnetwork: {norm: {eps: 1e-4}}\n"),
        ("short.yaml", "schema: 1\nextends: base.yaml\nnetwork: {norm: layer_norm}\n"),
        ("same.yaml", "schema: 1\nextends: base.yaml\nnetwork: {norm: rms}\n"),
    ]);
    let norm = |name| at(&load(folder.path(), name, &LoadOptions::default()), "/network/norm").clone();
    let update = at(&load(folder.path(), "kind.yaml", &LoadOptions::default()), "/training/update").clone();
    assert_eq!(update, json!({ "kind": "muon", "lr": 0.02, "momentum": 0.95 }));
    assert_eq!(norm("alias.yaml"), json!({ "kind": "rms", "eps": 1e-4 }));
    assert_eq!(norm("short.yaml"), json!({ "kind": "layer_norm", "eps": 1e-5, "bias": true }));
    assert_eq!(norm("same.yaml"), json!({ "kind": "rms", "eps": 1e-3 }), "the same kind keeps its keys");
}

#[test]
fn a_key_may_be_set_below_a_component_that_is_only_named() {
    let recipe = "schema: 1\nnetwork: {d_model: 8, norm: layer_norm, layers: [mamba]}\n";
    let options = set(&["network.norm.eps=0.5", "network.layers[0].d_state=4"]);
    let recipe = Recipe::from_yaml(recipe, &options).expect("a valid recipe");
    assert_eq!(at(&recipe, "/network/norm/eps"), &json!(0.5));
    assert_eq!(at(&recipe, "/network/layers/0/d_state"), &json!(4));
}

#[test]
fn items_of_lists_are_set_by_number() {
    let options =
        set(&["network.layers[0].n_heads=8", "network.layers.1=none", "training.update.betas.0=0.7"]);
    let recipe = Recipe::from_yaml(BASE, &options).expect("a valid recipe");
    assert_eq!(at(&recipe, "/network/layers/0/n_heads"), &json!(8));
    assert_eq!(at(&recipe, "/network/layers/1"), &json!({ "kind": "none" }));
    assert_eq!(at(&recipe, "/training/update/betas"), &json!([0.7, 0.9]));
    let environment = vec![("HYMBA__NETWORK__LAYERS__0__N_HEADS".to_owned(), "2".to_owned())];
    let recipe =
        Recipe::from_yaml(BASE, &LoadOptions { environment, ..LoadOptions::default() }).expect("valid");
    assert_eq!(at(&recipe, "/network/layers/0/n_heads"), &json!(2));
}

#[test]
fn a_value_may_be_taken_away_by_null() {
    let recipe =
        Recipe::from_yaml(BASE, &set(&["training.clip=1", "training.clip=null"])).expect("a valid recipe");
    assert_eq!(at(&recipe, "/training/clip"), &Value::Null);
}

#[test]
fn paths_are_taken_from_the_file_that_names_them() {
    let folder = folder(&[
        ("shared/base.yaml", &format!("{BASE}  output: ../out/base\n")),
        ("shared/words.txt", "a\n"),
        ("shared/net.yaml", "schema: 1\nnetwork: {words: words.txt, d_model: 8, layers: [none]}\n"),
        ("recipes/run.yaml", "schema: 1\nextends: [../shared/base.yaml, ../shared/net.yaml]\n"),
        ("recipes/own.yaml", "schema: 1\nextends: run.yaml\ntraining: {output: here}\n"),
        ("recipes/absolute.yaml", "schema: 1\nextends: run.yaml\ntraining: {output: /data/out}\n"),
    ]);
    let options = LoadOptions { cwd: Some(folder.path().to_owned()), ..LoadOptions::default() };
    let run = load(folder.path(), "recipes/run.yaml", &options);
    assert_eq!(at(&run, "/training/output"), &json!("../out/base"));
    assert_eq!(at(&run, "/network/words"), &json!("../shared/words.txt"));
    let network: Network = run.require("to test").expect("a network");
    let words: RecipePath =
        hymba_plus::serde_json::from_value(at(&run, "/network/words").clone()).expect("a path");
    assert!(run.path(&words).is_file(), "{network:?}");
    let output =
        |name, options: &LoadOptions| at(&load(folder.path(), name, options), "/training/output").clone();
    assert_eq!(output("recipes/own.yaml", &options), json!("here"));
    assert_eq!(output("recipes/absolute.yaml", &options), json!("/data/out"));
    let line = LoadOptions { set: vec!["training.output=recipes/mine".into()], ..options.clone() };
    assert_eq!(
        output("recipes/run.yaml", &line),
        json!("mine"),
        "the command line takes them from the current folder"
    );
    let line = LoadOptions { set: vec!["training.output=mine".into()], ..options };
    assert_eq!(output("recipes/run.yaml", &line), json!(folder.path().join("mine")));
}

#[test]
fn a_missing_section_is_asked_for_by_name() {
    let recipe =
        Recipe::from_yaml("schema: 1\nseed: 3\n", &LoadOptions::default()).expect("a fragment is valid");
    assert_eq!(recipe.section::<Training>().expect("no mistake"), None);
    let problems = recipe.require::<Training>("to train a model").expect_err("it is missing");
    assert!(
        problems
            .render(false, 100)
            .contains("this recipe has no section `training`, which is needed to train a model")
    );
}

#[test]
fn every_key_can_say_where_it_is_from() {
    let folder = folder(&[
        ("base.yaml", BASE),
        ("run.yaml", "schema: 1\nextends: base.yaml\ntraining:\n  update:\n    lr: 1e-3\n"),
    ]);
    let recipe = load(folder.path(), "run.yaml", &set(&["training.update.lr=2e-3"]));
    let lr = recipe.explain("training.update.lr").expect("it exists");
    assert_eq!(lr.value, Some(json!(2e-3)));
    let layers: Vec<(String, usize, usize, &str)> = lr
        .layers
        .iter()
        .map(|one| {
            let file =
                Path::new(&one.location.file).file_name().unwrap_or_default().to_string_lossy().into_owned();
            (file, one.location.line, one.location.column, one.value.as_str())
        })
        .collect();
    let expected = [("base.yaml", 10, 25, "0.0003"), ("run.yaml", 5, 5, "0.001"), ("--set", 1, 17, "0.002")];
    assert_eq!(layers, expected.map(|(file, line, column, value)| (file.to_owned(), line, column, value)));
    assert_eq!(lr.doc.as_deref(), Some("Highest learning rate."));
    let clip = recipe.explain("training.clip").expect("it exists");
    assert!(clip.layers.is_empty() && clip.to_string().contains("its default; nothing sets it"), "{clip}");
    assert_eq!(recipe.explain("network.layers[0].head_dim").expect("it exists").default, Some(json!(64)));
    let problems = recipe.explain("training.update.lrr").expect_err("it does not exist");
    assert!(problems.render(false, 100).contains("did you mean `lr`?"));
    assert_eq!(recipe.locate("network.layers[1]").map(|place| place.line), Some(7));
    assert_eq!(recipe.locate("training.clip"), None);
}

#[test]
fn files_are_read_once_and_a_chain_has_an_end() {
    let mut files = vec![("base.yaml".to_owned(), BASE.to_owned())];
    for index in 0..40 {
        let below = if index == 0 { "base.yaml".to_owned() } else { format!("{}.yaml", index - 1) };
        files.push((format!("{index}.yaml"), format!("schema: 1\nextends: {below}\n")));
    }
    files.push(("both.yaml".into(), "schema: 1\nextends: [0.yaml, 1.yaml, base.yaml]\nseed: 9\n".into()));
    let named: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let folder = folder(&named);
    assert_eq!(load(folder.path(), "both.yaml", &LoadOptions::default()).seed(), 9);
    let path: PathBuf = folder.path().join("39.yaml");
    let problems = Recipe::load(path, &LoadOptions::default()).expect_err("too long a chain");
    assert!(problems.to_string().contains("extend each other in a row"), "{problems}");
}
