//! What the repository ships is valid: every recipe, every fragment, alone and chosen from the command line.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

use std::path::{Path, PathBuf};

// Components, tokenizers, data sets, optimizers and stages register themselves; naming the crates links them.
use components as _;
use evaluation as _;
use hymba_plus::{
    config::{LoadOptions, Recipe},
    testing,
};
use recipes as _;
use training as _;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

#[test]
fn every_recipe_and_fragment_is_valid() {
    for pattern in ["recipes/*.yaml", "configs/*/*.yaml"] {
        testing::assert_valid(&root().join(pattern).display().to_string());
    }
}

#[test]
fn fragments_are_chosen_by_name() {
    let chosen = [("model", "hymba-1.5b"), ("data", "wikitext2_valid"), ("trainer", "gpu")];
    let options = LoadOptions {
        groups: chosen.map(|(group, name)| (group.to_owned(), name.to_owned())).into(),
        ..LoadOptions::default()
    };
    let recipe = Recipe::load(root().join("recipes/tiny_shakespeare_cpu.yaml"), &options).unwrap();
    assert_eq!(recipe.values()["model"]["d_model"], 1600);
    assert_eq!(recipe.values()["data"]["name"], "wikitext2_valid");
    assert_eq!(recipe.values()["trainer"]["precision"], "bfloat16");
    // The plan is the released model's, whatever the tokenizer.
    let plan = recipes::plan_model(&recipe).unwrap().unwrap();
    assert_eq!(plan.parameter_count(), 1_522_797_824);
}
