//! The same recipe gives the same bytes and the same hash, wherever and however it is loaded.

use std::{fmt::Write as _, time::Instant};

use hymba_plus::{
    config::{LoadOptions, Recipe},
    serde_json::Value,
};

use crate::layers::{BASE, folder, load, set};

#[test]
fn the_same_inputs_give_the_same_bytes() {
    let variables =
        [("HYMBA__SEED", "5"), ("HYMBA__TRAINING__CLIP", "1.5"), ("HYMBA__TRAINING__UPDATE__LR", "1e-3")];
    let options = |order: &[usize]| LoadOptions {
        environment: order
            .iter()
            .map(|&index| (variables[index].0.into(), variables[index].1.into()))
            .collect(),
        ..LoadOptions::default()
    };
    let one = Recipe::from_yaml(BASE, &options(&[0, 1, 2])).expect("a valid recipe");
    let two = Recipe::from_yaml(BASE, &options(&[2, 0, 1])).expect("a valid recipe");
    assert_eq!(one.resolved_yaml(), two.resolved_yaml());
    assert_eq!(one.hash(), two.hash());
    assert_eq!(one.hash().len(), 64);
}

#[test]
fn what_means_the_same_hashes_the_same() {
    let one = "schema: 1\nname: a\nnetwork:\n  d_model: 8\n  layers: [mamba]\n";
    let other = "# a comment\nnetwork: {layers: [{expand: 2.0, kind: mamba1, norm: rms}], d_model: 0x8}\nseed: 0\nname: \"a\"\nschema: 1\n";
    let hash = |text| Recipe::from_yaml(text, &LoadOptions::default()).expect("a valid recipe").hash();
    assert_eq!(hash(one), hash(other));
    assert_ne!(hash(one), hash(&one.replace('8', "16")));
}

#[test]
fn a_moved_folder_changes_nothing() {
    let files = [
        ("configs/base.yaml", format!("{BASE}  output: ../out\n")),
        (
            "recipes/run.yaml",
            "schema: 1\nextends: ../configs/base.yaml\ncorpus: {parts: [{path: a.txt}]}\n".to_owned(),
        ),
    ];
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let (here, there) = (folder(&files), folder(&files));
    let absolute = |folder: &std::path::Path| set(&[&format!("training.output={}/out", folder.display())]);
    let hash =
        |folder: &std::path::Path, options: &LoadOptions| load(folder, "recipes/run.yaml", options).hash();
    assert_eq!(hash(here.path(), &LoadOptions::default()), hash(there.path(), &LoadOptions::default()));
    assert_eq!(hash(here.path(), &absolute(here.path())), hash(there.path(), &absolute(there.path())));
}

#[test]
fn the_resolved_recipe_is_a_recipe_that_means_the_same() {
    let folder = folder(&[
        (
            "a/run.yaml",
            &format!("{BASE}  output: ../out\n  tags: [\"1\", \"yes\", \"null\", \"1e3\", \"0x1\"]\n")
                .replace("  tags", "  tags"),
        ),
        ("b/unused.yaml", "schema: 1\n"),
    ]);
    let recipe = Recipe::load(folder.path().join("a/run.yaml"), &LoadOptions::default());
    assert!(recipe.is_err(), "five tags are too many");
    for tags in [
        "[\"1\", \"yes\", \"null\"]",
        "[\"1e3\", \"0x1\", \"007\"]",
        "[\"~\", \"1_0\", \" a\"]",
        "[\".inf\", \"1e999\", \"- a\"]",
        "[\"a: b\", \"#\", \"é\\n\"]",
        "[\"\\x07\\x1b\", \"\\ufeffa\\u200b\", \"\\U0001F980\\t\\\\ \"]",
        "[\" \\n a\\n\\n\", \"a\\r\\nb\", \"\\0\"]",
    ] {
        let text = format!("{BASE}  output: ../out\n  tags: {tags}\n");
        std::fs::write(folder.path().join("a/run.yaml"), text).expect("a file");
        let recipe = load(folder.path(), "a/run.yaml", &LoadOptions::default());
        std::fs::write(folder.path().join("b/resolved.yaml"), recipe.resolved_yaml()).expect("a file");
        let again = load(folder.path(), "b/resolved.yaml", &LoadOptions::default());
        assert_eq!(recipe.values(), again.values());
        assert_eq!(recipe.resolved_yaml(), again.resolved_yaml());
        assert_eq!(recipe.hash(), again.hash());
        assert_eq!(recipe.folder(), again.folder());
    }
}

#[test]
fn two_hundred_lines_are_checked_in_no_time() {
    let mut text = BASE.to_owned() + "corpus:\n  parts:\n";
    for index in 0..95 {
        let _ = writeln!(text, "    - path: texts/{index}.txt\n      weight: 0.{index}");
    }
    let _ = Recipe::from_yaml(&text, &LoadOptions::default()).expect("a valid recipe"); // schemas are made once
    let start = Instant::now();
    let recipe = Recipe::from_yaml(&text, &LoadOptions::default()).expect("a valid recipe");
    let took = start.elapsed();
    assert_eq!(recipe.values().pointer("/corpus/parts").and_then(Value::as_array).map(Vec::len), Some(95));
    println!("{} lines in {took:?}", text.lines().count());
    let most = if cfg!(debug_assertions) { 400 } else { 20 };
    assert!(took.as_millis() < most, "{took:?}");
}
