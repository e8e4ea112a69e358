//! `hymba profile`: what it prints and leaves, and what it does not touch.

#![allow(clippy::unwrap_used)] // what fails here should fail loudly

mod common;

use common::Project;
use serde_json::Value;

#[test]
fn steps_and_tokens_are_profiled_and_runs_are_left_alone() {
    let project = Project::new();
    let text =
        project.succeed(&["profile", "recipe.yaml", "--steps", "2", "--warm-up", "2", "--run-dir", "p"]);
    for part in ["operation", "ms/step", "hymba::", "ms per step of", "MFU ", "floor: ", "p/trace.json"] {
        assert!(text.contains(part), "`{part}` is missing in:\n{text}");
    }
    let table: Value =
        serde_json::from_str(&std::fs::read_to_string(project.path("p/profile.json")).unwrap()).unwrap();
    let rows = table["table"]["rows"].as_array().unwrap();
    assert!(rows.iter().any(|row| row["operation"] == "mm" && row["tflop_per_s"].as_f64().unwrap() > 0.0));
    assert!(table["tokens_per_second"].as_f64().unwrap() > 0.0 && table["device"] == "Cpu");

    // A second profile takes the place of the first; a run is no profile.
    let line = project.succeed(&[
        "profile",
        "recipe.yaml",
        "--decode",
        "--json",
        "--batch",
        "2",
        "--prompt-length",
        "5",
        "--new-tokens",
        "14",
        "--run-dir",
        "p",
    ]);
    let decoded: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((decoded["batch"].as_u64(), decoded["new_tokens"].as_u64()), (Some(2), Some(14)));
    assert!(decoded["step_ms"].as_f64().unwrap() > 0.0 && decoded["table"]["rows"].is_array());
    project.succeed(&["run", "recipe.yaml", "--run-dir", "run"]);
    let refused =
        project.output(&["profile", "recipe.yaml", "--steps", "1", "--warm-up", "1", "--run-dir", "run"]);
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && error.contains("holds a run that is no profile"), "{error}");
    let refused = project.output(&["profile", "recipe.yaml", "--steps", "100000", "--run-dir", "q"]);
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && error.contains("are to be made for a profile"), "{error}");
}
