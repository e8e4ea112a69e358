//! Runs on images and series, from a recipe to a table: what they measure, leave behind and repeat.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

use std::{
    io::Write,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use components as _;
use evaluation as _;
use hymba_plus::config::{LoadOptions, Recipe};
use serde_json::Value;
use training::{
    run::RunOptions,
    telemetry::{Console, MetricRecord, MetricsFile},
};

const IMAGES: &str = "\
schema: 1
name: tiny_images
seed: 3
model:
  d_model: 8
  n_layers: 1
  embedding: { kind: patch, image_size: 16, patch_size: 4, channels: 1 }
  norm: rms_norm
  head: { kind: classifier, classes: 2, pooling: attention, dropout: 0.1 }
  block_pattern:
    kind: parallel
    layer:
      mixers: [{ kind: mamba, d_inner: 8, d_state: 2 }]
      fusion: none
      channel_mixer: none
      dropout: 0.1
data: { kind: shapes, size: 16, classes: [disc, ring], train: 40, validation: 12, test: 20 }
trainer: { device: cpu, threads: 1, checkpoint: { every_steps: 3 }, log: { every_steps: 1, tensorboard: false } }
stages:
  - { kind: classify, steps: 8, batch_size: 6, accumulation: 2, schedule: constant, optimizer: { kind: adamw, lr: 0.05 }, evaluate_every: 1 }
  - { kind: evaluate_classifier, linear_epochs: 2 }
";

const SERIES: &str = "\
schema: 1
name: tiny_series
seed: 3
model:
  d_model: 8
  n_layers: 1
  embedding: { kind: series_patch, input_length: 12, channels: 2, patch_length: 4, affine: true }
  norm: rms_norm
  head: { kind: forecaster, horizon: 3, quantiles: [0.2, 0.5, 0.8] }
  block_pattern:
    kind: parallel
    layer:
      mixers: [{ kind: attention, n_heads: 2, position: rope, dropout: 0.1 }]
      fusion: none
      channel_mixer: none
data: { kind: waves, channels: 2, periods: [6], train_rows: 60, validation_rows: 10, test_rows: 9 }
trainer: { device: cpu, threads: 1, checkpoint: { every_steps: 3 }, log: { every_steps: 1, tensorboard: false } }
stages:
  - { kind: forecast, steps: 8, batch_size: 6, accumulation: 2, schedule: constant, optimizer: { kind: adamw, lr: 0.05 }, evaluate_every: 1 }
  - { kind: evaluate_forecaster }
";

/// One run at a time: libtorch's random numbers are the process'.
static ALONE: Mutex<()> = Mutex::new(());

struct Project(tempfile::TempDir);

impl Project {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs a recipe with changed words in the folder `run`, going on where it stopped if it is there; what it said.
    fn run(&self, run: &str, recipe: &str, changes: &[(&str, &str)]) -> String {
        let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let text = changes.iter().fold(recipe.to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        });
        let recipe = Recipe::from_yaml(&text, &LoadOptions::default());
        let recipe = recipe.unwrap_or_else(|problems| panic!("{}", problems.render(false, 100)));
        let pipe = Pipe::default();
        let mut options = RunOptions::new(self.path(run), "hymba run recipe.yaml");
        options.console = Console::to(pipe.clone());
        (options.resume, options.force) = (true, true);
        recipes::run(&recipe, options).unwrap();
        let said = pipe.0.lock().unwrap().clone();
        String::from_utf8(said).unwrap()
    }

    fn read(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn json(&self, path: &str) -> Value {
        serde_json::from_slice(&self.read(path)).unwrap()
    }

    fn metrics(&self, run: &str) -> Vec<MetricRecord> {
        let records = MetricsFile::read(&self.path(&format!("{run}/metrics.jsonl"))).unwrap();
        records.into_iter().map(MetricRecord::deterministic).collect()
    }
}

#[derive(Clone, Default)]
struct Pipe(Arc<Mutex<Vec<u8>>>);

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn value(record: &MetricRecord, name: &str) -> Option<f64> {
    serde_json::to_value(record).unwrap().get(name)?.as_f64()
}

const BOTH: [(&str, &str, &str); 2] =
    [(IMAGES, "classify", "evaluate_classifier"), (SERIES, "forecast", "evaluate_forecaster")];

#[test]
fn a_run_that_stopped_goes_on_to_the_same_bits() {
    for (recipe, stage, measure) in BOTH {
        let project = Project::new();
        project.run("whole", recipe, &[]);
        project.run("again", recipe, &[]);
        // Stops in the middle of an epoch, after a checkpoint that is not the last.
        project.run("parts", recipe, &[("steps: 8", "steps: 4")]);
        let said = project.run("parts", recipe, &[]);
        assert!(said.contains("going on after step 4 of 8"), "{said}");
        for run in ["again", "parts"] {
            for file in ["model.safetensors", "optimizer.safetensors", "rng.safetensors"] {
                let path = |run: &str| format!("{run}/checkpoints/{stage}/step-00000008/{file}");
                assert!(project.read(&path(run)) == project.read(&path("whole")), "{run}: {file} differs");
            }
            let table = |run: &str| project.json(&format!("{run}/stages/{measure}/evaluation.json"));
            assert_eq!(table(run), table("whole"));
            assert_eq!(project.metrics(run), project.metrics("whole"));
        }
        let changed = [("seed: 3", "seed: 4")];
        project.run("other", recipe, &changed);
        let path = |run: &str| format!("{run}/checkpoints/{stage}/step-00000008/model.safetensors");
        assert!(project.read(&path("other")) != project.read(&path("whole")), "the seed changes nothing");
    }
}

#[test]
fn the_best_weights_are_those_that_are_measured_and_brought_back() {
    // Rates so high that the last step is much worse than the one before.
    for ((recipe, stage, measure), lr, steps) in
        BOTH.into_iter().zip([("lr: 0.4", 2), ("lr: 3.0", 4)]).map(|(a, (b, c))| (a, b, c))
    {
        let project = Project::new();
        let steps_of_stage = format!("steps: {steps}");
        let worse = [("lr: 0.05", lr), ("steps: 8", &*steps_of_stage)];
        let said = project.run("run", recipe, &worse);
        let evaluations = project.metrics("run");
        let losses = evaluations.iter().filter(|record| record.kind == "evaluation" && record.step > 0);
        let best = losses
            .map(|record| (value(record, "validation_loss").unwrap(), record.step))
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .unwrap();
        assert_ne!(best.1, steps, "the last step is the best: the test shows nothing");
        assert!(said.contains(&format!("goes on with step {}, the best", best.1)), "{said}");
        let table = |run: &str| project.json(&format!("{run}/stages/{measure}/evaluation.json"));
        let of_best = table("run");
        // Measured again, by a model that was brought back.
        let (old, new) = (format!("kind: {measure}"), format!("kind: {measure}, batch_size: 5"));
        let said = project.run("run", recipe, &[&worse[..], &[(&*old, &*new)]].concat());
        assert!(said.contains(&format!("going on after step {steps} of {steps}")), "{said}");
        assert!(!said.contains("finished before"), "{said}");
        let key = if stage == "classify" { "loss" } else { "mse" };
        let ours = |table: &Value| table["results"][0][key].as_f64().unwrap();
        assert!((ours(&table("run")) - ours(&of_best)).abs() < 1e-6 * ours(&of_best));
        let last = [&worse[..], &[("evaluate_every: 1", "evaluate_every: 1, weights: last")]].concat();
        project.run("last", recipe, &last);
        assert!((ours(&table("last")) - ours(&of_best)).abs() > 1e-3);
    }
}

#[test]
fn a_table_of_images_has_a_linear_map_beside_the_model() {
    let project = Project::new();
    let said = project.run("run", IMAGES, &[]);
    assert!(
        said.contains("test: 20 images of 2 classes") && said.contains("softmax regression on pixels"),
        "{said}"
    );
    let table = project.json("run/stages/evaluate_classifier/evaluation.json");
    let rows = table["results"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names[..2], ["tiny_images", "softmax regression on pixels"]);
    assert_eq!(rows[1]["parameters"], 2 * 16 * 16 + 2);
    for row in rows {
        let right = row["accuracy"].as_f64().unwrap() * 20.0;
        assert!((right - right.round()).abs() < 1e-9 && (0.0..=20.0).contains(&right));
    }
    // Always saying the most frequent class is right at least half the time.
    assert!(names[2].starts_with("always `") && rows[2]["accuracy"].as_f64().unwrap() >= 0.5);
    let record = project.metrics("run").into_iter().find(|record| record.kind == "result").unwrap();
    assert_eq!(value(&record, "test_accuracy"), rows[0]["accuracy"].as_f64());
}

#[test]
fn a_table_of_forecasts_is_over_every_test_window() {
    let project = Project::new();
    let said = project.run("run", SERIES, &[]);
    // 9 rows, 3 steps ahead: 7 windows, whose inputs reach back into the validation rows.
    assert!(said.contains("test: 7 windows of 12 steps, 3 steps ahead, 2 channels"), "{said}");
    let table = project.json("run/stages/evaluate_forecaster/evaluation.json");
    let rows = table["results"].as_array().unwrap();
    assert_eq!((rows.len(), &table["windows"]), (3, &7.into()));
    let mse = |row: usize| rows[row]["mse"].as_f64().unwrap();
    // A sine wave is a linear recurrence: the linear map finds it but for the noise, of variance 0.01.
    assert!(mse(1) < 0.1 && mse(2) > 0.2, "{rows:?}");
    assert_eq!(rows[1]["parameters"], 13 * 3);
}

#[test]
fn a_classifier_learns_what_a_linear_map_of_pixels_cannot() {
    let project = Project::new();
    let changes = [
        ("d_model: 8", "d_model: 16"),
        ("d_inner: 8, d_state: 2", "d_inner: 32"),
        ("channel_mixer: none", "channel_mixer: { kind: swiglu, d_hidden: 32 }"),
        ("      dropout: 0.1\n", ""),
        (", dropout: 0.1 }", " }"),
        ("train: 40, validation: 12, test: 20", "noise: 0.05, train: 2048, validation: 128, test: 256"),
        ("steps: 8, batch_size: 6, accumulation: 2", "steps: 250, batch_size: 32"),
        ("lr: 0.05", "lr: 0.01"),
        ("evaluate_every: 1", "evaluate_every: 50"),
        ("linear_epochs: 2", "linear_epochs: 5"),
    ];
    project.run("run", IMAGES, &changes);
    let table = project.json("run/stages/evaluate_classifier/evaluation.json");
    let accuracy = |row: usize| table["results"][row]["accuracy"].as_f64().unwrap();
    assert!(accuracy(0) > 0.85 && accuracy(1) < 0.7, "{table}");
}
