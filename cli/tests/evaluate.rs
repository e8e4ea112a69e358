//! `hymba evaluate`: a saved run measured again, in calls of any length and with other settings of its parameters.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

mod common;

use common::Project;

/// Loss per token, bytes of a state and bytes planned, from the table's last line.
fn numbers(printed: &str) -> (f64, u64, u64) {
    let line = printed.lines().last().unwrap();
    let bytes = |text: &str| text.trim_matches(['(', ')']).replace(',', "").parse::<u64>().unwrap();
    let cells: Vec<&str> = line.split_whitespace().collect();
    (cells[0].parse().unwrap(), bytes(cells[3]), bytes(cells[5]))
}

#[test]
fn a_run_is_measured_again_in_calls_and_with_other_caches() {
    let project = Project::new();
    project.succeed(&["run", "recipe.yaml"]);
    let evaluate = |more: &[&str]| {
        let arguments = [&["evaluate", "runs/tiny", "--device", "cpu"], more].concat();
        project.succeed(&arguments)
    };
    let stage = std::fs::read(project.path("runs/tiny/stages/evaluate/evaluation.json")).unwrap();
    let stage: serde_json::Value = serde_json::from_slice(&stage).unwrap();
    let (loss, state, planned) = numbers(&evaluate(&[]));
    let of_stage = stage["results"][0]["loss"].as_f64().unwrap();
    assert!((loss - of_stage).abs() < 1e-4, "{loss} now, {of_stage} by the stage");
    assert_eq!(state, planned);
    for length in ["1", "5", "1000"] {
        let (in_calls, state, planned) = numbers(&evaluate(&["--call-length", length]));
        assert!((in_calls - loss).abs() < 2e-4, "{in_calls} in calls of {length}, {loss} at once");
        assert_eq!(state, planned);
    }
    let (some, ..) = numbers(&evaluate(&["--tokens", "40", "--batch-size", "1"]));
    assert!((some - loss).abs() < 1.0 && (some - loss).abs() > 1e-6, "{some} of a part, {loss} of all");

    // Rounded keys are smaller than plain ones once there are more of them than stay unrounded.
    let window = "model.block_pattern.layer.mixers[0].window=192";
    let int8 = "model.block_pattern.layer.mixers[0].cache=int8";
    let plain = ["--call-length", "8", "--sequence-length", "192", "--set", window];
    let (loss, state, _) = numbers(&evaluate(&plain));
    let (rounded, smaller, planned) = numbers(&evaluate(&[&plain[..], &["--set", int8]].concat()));
    assert_eq!(smaller, planned);
    assert!(smaller < state, "{smaller} bytes with int8, {state} without");
    assert!((rounded - loss).abs() < 0.05, "{rounded} with int8, {loss} without");
}

#[test]
fn what_would_change_parameters_or_more_than_the_model_is_refused() {
    let project = Project::new();
    project.succeed(&["run", "recipe.yaml"]);
    let refused = |set: &str| {
        let output = project.output(&["evaluate", "runs/tiny", "--device", "cpu", "--set", set]);
        assert_eq!(output.status.code(), Some(1), "{set}");
        String::from_utf8(output.stderr).unwrap()
    };
    let error = refused("model.block_pattern.layer.channel_mixer.d_hidden=32");
    assert!(error.contains("the changed model has other parameters"), "{error}");
    assert!(error.contains("[16, 32] instead of [16, 24]"), "{error}");
    let error = refused("seed=9");
    assert!(error.contains("more than the section `model`"), "{error}");
    let error = refused("model.norm.epsilon=1");
    assert!(error.contains("epsilon"), "{error}");
    let output = project.output(&["evaluate", "runs/nothing"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("runs/nothing"), "{error}");
}
