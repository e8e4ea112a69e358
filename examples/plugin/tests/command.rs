//! The binary of this crate has the component, and the recipe beside it runs.

#![allow(clippy::unwrap_used)] // what fails here should fail loudly

use std::process::{Command, Output};

fn hymba(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hymba-decay"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output().unwrap()
}

/// Standard output of a command that must succeed.
fn succeed(arguments: &[&str]) -> String {
    let output = hymba(arguments);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

#[test]
fn it_is_listed_beside_the_stock_components() {
    let list = succeed(&["components", "sequence_mixer"]);
    for text in
        ["kind: decay_attention    [crate decay_attention]", "kind: mamba", "head_dim: integer, default 16"]
    {
        assert!(list.contains(text), "{text}\n{list}");
    }
}

#[test]
fn its_recipe_is_valid_and_runs_to_the_end() {
    assert!(succeed(&["validate", "recipe.yaml"]).contains("recipe.yaml: ok"));
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let out =
        succeed(&["run", "recipe.yaml", "--run-dir", run.to_str().unwrap(), "--set", "trainer.threads=1"]);
    for stage in ["== pretrain", "== evaluate", "== generate"] {
        assert!(out.contains(stage), "{stage}\n{out}");
    }
    assert!(run.join("stages/generate/samples.txt").is_file());
    // It learned: far below the 5.5 nats of a guess among 256 bytes.
    let report = std::fs::read_to_string(run.join("stages/evaluate/evaluation.json")).unwrap();
    let report: hymba_plus::serde_json::Value = hymba_plus::serde_json::from_str(&report).unwrap();
    let loss = report["results"][0]["loss"].as_f64().unwrap();
    assert!(loss < 3.5, "validation loss {loss}");
    // And what it wrote can be written on.
    succeed(&["generate", run.to_str().unwrap(), "--prompt", "use ", "--max-new-tokens", "5"]);
}
