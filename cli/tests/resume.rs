//! A run that is killed and resumed ends equal, bit for bit, to one that is not; so do two fresh runs.
#![allow(clippy::unwrap_used)] // what fails here should fail loudly

mod common;

use std::{
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

use common::{Project, final_bytes};

/// A uniform number from a counter, so that a failure can be repeated.
fn fraction(i: u64) -> f64 {
    let mut z = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (z >> 11) as f64 / (1_u64 << 53) as f64
}

/// The fields of `metrics.jsonl` that do not depend on the clock.
fn metrics(project: &Project, run: &str) -> Vec<String> {
    let text = std::fs::read_to_string(project.path(run).join("metrics.jsonl")).expect("the run has metrics");
    let timeless = |line: &str| {
        let mut record: serde_json::Value = serde_json::from_str(line).expect("a line is JSON");
        let fields = record.as_object_mut().expect("a line is an object");
        fields.retain(|key, _| !key.contains("seconds") && !key.contains("per_second"));
        record.to_string()
    };
    text.lines().map(timeless).collect()
}

#[test]
fn killed_twenty_times_and_resumed() {
    let killed = kill_and_resume(&Project::new(), "pretrain", 20);
    assert!(killed >= 10, "only {killed} tries were killed while they ran");
}

/// Images and series with everything that a checkpoint must keep: samples by index, dropout, the best weights.
#[test]
fn images_and_series_killed_and_resumed() {
    let common = "\
schema: 1
name: tiny
seed: 5
trainer: { device: cpu, threads: 2, checkpoint: { every_steps: 3, keep_last: 2, keep_best: 1 }, log: { every_steps: 1 } }
";
    let pattern = "block_pattern: { kind: parallel, layer: { mixers: [{ kind: mamba, d_inner: 16, d_state: 4 }], dropout: 0.1 } }";
    let stage =
        "steps: 12, batch_size: 4, accumulation: 2, optimizer: { kind: adamw, lr: 0.01 }, evaluate_every: 4";
    let images = format!(
        "{common}model:
  {{ d_model: 16, n_layers: 2, embedding: {{ kind: patch, image_size: 32, patch_size: 4, channels: 1 }}, norm: rms_norm, \
  head: {{ kind: classifier, classes: 6, dropout: 0.1 }}, {pattern} }}
data: {{ kind: shapes, train: 30, validation: 8, test: 8 }}
stages: [{{ kind: classify, {stage} }}, {{ kind: evaluate_classifier, linear_epochs: 1 }}]
"
    );
    let series = format!(
        "{common}model:
  {{ d_model: 16, n_layers: 2, embedding: {{ kind: series_patch, input_length: 24, channels: 2, patch_length: 4 }}, \
  norm: rms_norm, head: {{ kind: forecaster, horizon: 6, dropout: 0.1 }}, {pattern} }}
data: {{ kind: waves, channels: 2, train_rows: 60, validation_rows: 12, test_rows: 12 }}
stages: [{{ kind: forecast, {stage} }}, {{ kind: evaluate_forecaster }}]
"
    );
    let killed: usize = [(images, "classify"), (series, "forecast")]
        .iter()
        .map(|(recipe, stage)| kill_and_resume(&Project::of(recipe), stage, 5))
        .sum();
    assert!(killed >= 4, "only {killed} tries were killed while they ran");
}

/// Two fresh runs, and `tries` that are killed at some time and resumed, end with the same bits; how many of them were
/// killed while they ran.
fn kill_and_resume(project: &Project, stage: &str, tries: u64) -> usize {
    let started = Instant::now();
    project.succeed(&["run", "recipe.yaml", "--run-dir", "whole"]);
    let duration = started.elapsed();
    project.succeed(&["run", "recipe.yaml", "--run-dir", "again"]);
    let expected = final_bytes(&project.path("whole"), stage);
    assert!(final_bytes(&project.path("again"), stage) == expected, "two fresh runs differ");
    assert_eq!(metrics(project, "again"), metrics(project, "whole"));

    let (mut killed, mut fresh) = (0, 0);
    for try_number in 0..tries {
        let run = format!("run-{try_number}");
        let mut child = project.command(&["run", "recipe.yaml", "--run-dir", &run, "--resume"]);
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        sleep(Duration::from_secs_f64(duration.as_secs_f64() * fraction(try_number)));
        if child.try_wait().unwrap().is_none() {
            killed += 1;
        }
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        let out = project.succeed(&["run", "recipe.yaml", "--run-dir", &run, "--resume"]);
        fresh += usize::from(out.contains("afresh"));
        assert!(
            final_bytes(&project.path(&run), stage) == expected,
            "try {try_number} ends with other bits:\n{out}"
        );
        assert_eq!(metrics(project, &run), metrics(project, "whole"), "try {try_number}");
    }
    println!("killed {killed} of {tries} while running, {fresh} of them before the first checkpoint");
    killed
}

#[test]
fn ctrl_c_writes_a_checkpoint_and_says_how_to_go_on() {
    let project = Project::new();
    project.succeed(&["run", "recipe.yaml", "--run-dir", "whole", "--set", "stages[0].steps=150"]);
    let arguments = ["run", "recipe.yaml", "--run-dir", "stopped", "--set", "stages[0].steps=150"];
    let child = project.command(&arguments).stdout(Stdio::piped()).spawn().unwrap();
    let begun = project.path("stopped").join("checkpoints/pretrain/step-00000003");
    while !begun.exists() {
        sleep(Duration::from_millis(5));
    }
    let interrupted =
        std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    let output = child.wait_with_output().unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(130), "{out}");
    assert!(out.contains("--run-dir stopped --resume"), "{out}");
    project.succeed(&[&arguments[..], &["--resume"]].concat());
    let last = "checkpoints/pretrain/step-00000150/model.safetensors";
    let read = |run: &str| std::fs::read(project.path(run).join(last)).unwrap();
    assert!(read("stopped") == read("whole"), "an interrupted and resumed run ends with other bits");
}
