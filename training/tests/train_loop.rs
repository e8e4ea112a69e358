//! The loop in one process: what it learns, writes, keeps and refuses.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::{Bigram, Pipe, TRAINER, checkpoint_bytes, loop_config, metrics, options, recipe, run};
use proptest::prelude::*;
use serde_json::json;
use training::{prelude::*, telemetry::Console};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn double(weights: &[(String, Vec<u8>)]) -> Vec<f64> {
    weights
        .iter()
        .flat_map(|(_, bytes)| bytes.chunks(8).map(|chunk| f64::from_le_bytes(chunk.try_into().unwrap())))
        .collect()
}

#[test]
fn a_run_learns_and_leaves_what_it_should() {
    let folder = folder();
    let (outcome, _) =
        run(&recipe(TRAINER), options(folder.path(), false), &loop_config(&json!({ "steps": 60 })), |_| ())
            .unwrap();
    let lines = metrics(folder.path());
    let loss = |kind: &str, name: &str| -> Vec<f64> {
        lines.iter().filter(|line| line.kind == kind).map(|line| line.values[name].unwrap()).collect()
    };
    assert_eq!((loss("train", "loss").len(), loss("evaluation", "validation_loss").len()), (30, 12));
    // After each step the task is told; a number that it gave with the loss stands beside it.
    let before: Vec<f64> = (1..=30).map(|n| f64::from(2 * n - 1)).collect();
    assert_eq!(loss("train", "steps_before"), before);
    let validation = loss("evaluation", "validation_loss");
    assert!(validation[11] < 0.85 * validation[0], "{validation:?}");
    assert_eq!(outcome.evaluation[0], ("validation_loss".to_owned(), validation[11]));
    assert_eq!((outcome.steps, outcome.tokens), (60, 60 * 32));
    let (best, path) = outcome.best.unwrap();
    let lowest = validation.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(best.value.total_cmp(&lowest).is_eq());
    assert!(path.join("model.safetensors").exists() && outcome.last.ends_with("step-00000060"));
    for file in ["recipe.yaml", "run.json", "environment.json", "progress.json", "tensorboard/pretrain"] {
        assert!(folder.path().join(file).exists(), "{file}");
    }
    let environment: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("environment.json")).unwrap()).unwrap();
    assert_eq!((&environment["threads"], &environment["device"]), (&json!(1), &json!("cpu")));
}

#[test]
fn parts_of_a_batch_give_the_gradients_of_the_whole() {
    let recipe = recipe("precision: float64, log: {every_steps: 1}");
    let weights = |accumulation: usize| {
        let folder = folder();
        let config = loop_config(&json!({ "steps": 6, "batch_size": 8, "accumulation": accumulation }));
        let (_, weights) =
            run(&recipe, options(folder.path(), false), &config, |task| task.dropout = 0.0).unwrap();
        (double(&weights), metrics(folder.path()))
    };
    let (whole, whole_metrics) = weights(1);
    assert!(whole_metrics[0].values["mean_target"].is_some_and(|mean| mean > 1.0));
    for accumulation in [2, 4, 8] {
        let (parts, parts_metrics) = weights(accumulation);
        for (a, b) in whole.iter().zip(&parts) {
            assert!((a - b).abs() < 1e-12, "{accumulation} parts: {a} {b}");
        }
        for (a, b) in whole_metrics.iter().zip(&parts_metrics) {
            for (name, value) in &a.values {
                assert!((value.unwrap() - b.values[name].unwrap()).abs() < 1e-12, "{name}");
            }
        }
    }
}

#[test]
fn precisions_all_learn() {
    for precision in ["float32", "bfloat16", "float64"] {
        let folder = folder();
        let recipe = recipe(&format!("precision: {precision}"));
        let config = loop_config(&json!({ "steps": 40, "evaluate_at_start": true }));
        run(&recipe, options(folder.path(), false), &config, |_| ()).unwrap();
        let lines = metrics(folder.path());
        let validation: Vec<f64> =
            lines.iter().filter_map(|line| *line.values.get("validation_loss")?).collect();
        assert_eq!(validation.len(), 9, "{precision}");
        assert!(validation[8] < 0.9 * validation[0], "{precision}: {validation:?}");
    }
}

/// Runs to `at`, as a process that is stopped would, by a task that fails; gives its error.
fn stop_at(folder: &Path, at: u64, resume: bool, config: &LoopConfig) -> TrainError {
    run(&recipe(TRAINER), options(folder, resume), config, |task| task.poison = Some(at)).unwrap_err()
}

fn assert_equal_runs(a: &Path, b: &Path, step: u64) {
    for ((name, x), (_, y)) in checkpoint_bytes(a, step).into_iter().zip(checkpoint_bytes(b, step)) {
        assert!(x == y, "{name} of step {step} differs");
    }
    assert!(metrics(a) == metrics(b), "the metrics differ");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]

    /// Stopped at random steps, several times, a run ends as one that was not.
    #[test]
    fn a_resumed_run_is_the_same_run(stops in proptest::collection::vec(1_u64..20, 1..4), steps in 18_u64..26) {
        let config = loop_config(&json!({ "steps": steps, "accumulation": 2 }));
        let (whole, broken) = (folder(), folder());
        let (expected, _) = run(&recipe(TRAINER), options(whole.path(), false), &config, |_| ()).unwrap();
        for (index, stop) in stops.iter().enumerate() {
            // It may end before it comes to that batch; that is no harm.
            let poison = |task: &mut Bigram| task.poison = Some(*stop);
            let _ = run(&recipe(TRAINER), options(broken.path(), index > 0), &config, poison);
        }
        let (outcome, _) = run(&recipe(TRAINER), options(broken.path(), true), &config, |_| ()).unwrap();
        prop_assert_eq!(outcome.evaluation, expected.evaluation);
        prop_assert_eq!(outcome.best.map(|(best, _)| best), expected.best.map(|(best, _)| best));
        assert_equal_runs(whole.path(), broken.path(), steps);
    }
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_writes_nothing() {
    let folder = folder();
    let error = stop_at(folder.path(), 8, false, &loop_config(&json!({}))).to_string();
    for part in ["loss is NaN at step 8 of pretrain", "step-00000006", "gradient_clip"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let lines = metrics(folder.path());
    assert!(lines.iter().all(|line| line.step < 8 && line.values.values().all(Option::is_some)));
    let error = stop_at(folder.path(), 2, false, &loop_config(&json!({}))).to_string();
    assert!(error.contains("--resume"), "{error}");
}

#[test]
fn evaluating_more_often_changes_nothing_that_is_learnt() {
    let weights = |every: u64| {
        let folder = folder();
        let config = loop_config(&json!({ "evaluate_every": every }));
        run(&recipe(TRAINER), options(folder.path(), false), &config, |_| ()).unwrap().1
    };
    assert!(weights(1) == weights(7));
}

#[test]
fn resuming_says_what_it_does() {
    let (folder, pipe) = (folder(), Pipe::default());
    let speaking =
        |resume| RunOptions { console: Console::to(pipe.clone()), ..options(folder.path(), resume) };
    let config = loop_config(&json!({}));
    let go = |resume| run(&recipe(TRAINER), speaking(resume), &config, |_| ());
    go(true).unwrap();
    assert!(pipe.text().contains("nothing to continue in"), "{}", pipe.text());
    assert!(pipe.text().contains("pretrain step 2/20  loss "), "{}", pipe.text());

    // A finished stage is read again and not trained again.
    let before = metrics(folder.path());
    let (outcome, _) = go(true).unwrap();
    assert!(pipe.text().contains("going on after step 20 of 20"));
    assert!(outcome.steps == 20 && metrics(folder.path()) == before);

    let newest = folder.path().join("checkpoints/pretrain/step-00000020/model.safetensors");
    std::fs::write(&newest, "torn").unwrap();
    go(true).unwrap();
    assert_eq!(metrics(folder.path()), before);
    assert!(
        pipe.text().contains("model.safetensors: 4 bytes") && pipe.text().contains("going on after step 18")
    );
}

#[test]
fn a_finished_run_that_gets_more_steps_is_one_run() {
    let (long, grown) = (folder(), folder());
    let config =
        |steps| loop_config(&json!({ "steps": steps, "evaluate_every": null, "schedule": "constant" }));
    run(&recipe(TRAINER), options(long.path(), false), &config(26), |_| ()).unwrap();
    run(&recipe(TRAINER), options(grown.path(), false), &config(20), |_| ()).unwrap();
    // Stopped between two checkpoints: what was written after the last of them must go.
    stop_at(grown.path(), 3, true, &config(26));
    let progress = std::fs::read_to_string(grown.path().join("progress.json")).unwrap();
    assert!(progress.contains("\"finished\": false"), "{progress}");
    run(&recipe(TRAINER), options(grown.path(), true), &config(26), |_| ()).unwrap();
    let train = |path: &Path| -> Vec<MetricRecord> {
        metrics(path).into_iter().filter(|line| line.kind == "train").collect()
    };
    assert_eq!(train(long.path()), train(grown.path()));
}

#[test]
fn no_checkpoint_yet_starts_afresh_and_says_so() {
    let (folder, whole, pipe) = (folder(), folder(), Pipe::default());
    let config = loop_config(&json!({}));
    stop_at(folder.path(), 3, false, &config);
    let options_ = RunOptions { console: Console::to(pipe.clone()), ..options(folder.path(), true) };
    run(&recipe(TRAINER), options_, &config, |_| ()).unwrap();
    assert!(pipe.text().contains("no checkpoint yet in"), "{}", pipe.text());
    run(&recipe(TRAINER), options(whole.path(), false), &config, |_| ()).unwrap();
    assert_equal_runs(whole.path(), folder.path(), 20);
}

#[test]
fn what_would_not_go_on_bit_for_bit_is_refused() {
    let folder = folder();
    let config = loop_config(&json!({}));
    stop_at(folder.path(), 8, false, &config);
    let forced = || RunOptions { force: true, ..options(folder.path(), true) };

    let other = recipe(&format!("{TRAINER}, deterministic: false"));
    let error = run(&other, options(folder.path(), true), &config, |_| ()).unwrap_err().to_string();
    assert!(
        error.contains("trainer.deterministic: was true, is false") && error.contains("--force"),
        "{error}"
    );

    // With the same recipe but another number of threads, as on another machine.
    let state = folder.path().join("checkpoints/pretrain/step-00000006/state.json");
    let text = std::fs::read_to_string(&state).unwrap();
    rewrite(&state, &text.replace("\"threads\": 1", "\"threads\": 64"));
    let error = run(&recipe(TRAINER), options(folder.path(), true), &config, |_| ()).unwrap_err().to_string();
    assert!(error.contains("threads: was 64, is 1") && error.contains("--force"), "{error}");
    rewrite(&state, &text.replace("\"text\": \"bigram\"", "\"text\": \"other\""));
    let error = run(&recipe(TRAINER), forced(), &config, |_| ()).unwrap_err().to_string();
    assert!(error.contains("text: was other, is bigram"), "{error}");
    rewrite(&state, &text.replace("\"threads\": 1", "\"threads\": 64"));
    run(&recipe(TRAINER), forced(), &config, |_| ()).unwrap();
}

/// Changes a file of a checkpoint together with its checksum.
fn rewrite(path: &Path, text: &str) {
    use sha2::Digest;
    std::fs::write(path, text).unwrap();
    let hash =
        sha2::Sha256::digest(text).iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    let checksums = path.with_file_name("checksums.json");
    let mut value: serde_json::Value = serde_json::from_slice(&std::fs::read(&checksums).unwrap()).unwrap();
    value["state.json"] = json!({ "size": text.len(), "sha256": hash });
    std::fs::write(checksums, value.to_string()).unwrap();
}

#[test]
fn settings_that_contradict_are_refused_before_anything_is_trained() {
    for (changes, words) in [
        (json!({ "accumulation": 3 }), "nearest that can are 3 and 6"),
        (json!({ "schedule": { "kind": "cosine", "warmup_steps": 21 } }), "warmup_steps"),
        (json!({ "optimizer": { "kind": "adamw", "betas": [2.0, 0.9] } }), "betas[0]"),
        (json!({ "steps": 0 }), "steps must be at least 1"),
    ] {
        let folder = folder();
        let config = loop_config(&changes);
        let found = config.check("stages[0]");
        let early = config.steps > 0 && (words.contains("warmup") || words.contains("nearest"));
        assert_eq!(found.iter().any(|finding| finding.message.contains(words)), early, "{found:?}");
        let error = run(&recipe(TRAINER), options(folder.path(), false), &config, |_| ());
        let error = error.unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
}
