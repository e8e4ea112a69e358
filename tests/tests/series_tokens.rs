//! A language model that learns numbers as tokens of its vocabulary, and forecasts by going on.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

use components as _;
use evaluation as _;
use hymba_plus::{
    config::{LoadOptions, Recipe},
    generate::Sampling,
};
use recipes::{SavedRun, Which, sample_forecast};
use tch::Device;
use training::{
    data::{Dataset, Series},
    run::RunOptions,
    slot::dataset,
    telemetry::Console,
};

const RECIPE: &str = "\
schema: 1
name: waves_as_tokens
seed: 2
model:
  d_model: 32
  n_layers: 2
  embedding: token
  norm: rms_norm
  head: language
  block_pattern:
    kind: parallel
    layer:
      mixers:
        - { kind: attention, n_heads: 2, position: rope }
        - { kind: mamba, d_inner: 32, d_state: 4 }
      fusion: { kind: mean, norm: rms_norm }
      channel_mixer: { kind: swiglu, d_hidden: 64 }
tokenizer: { kind: with_series, text: bytes, bins: 64, limit: 3.0 }
data:
  kind: series_documents
  series: { kind: waves, channels: 4, periods: [8], noise: 0.03, train_rows: 600, validation_rows: 64 }
  length: 32
  known: 16
  stride: 5
trainer: { device: cpu, threads: 2, log: { tensorboard: false } }
stages:
  - { kind: pretrain, steps: 200, batch_size: 16, sequence_length: 66, optimizer: { kind: adamw, lr: 0.01 }, schedule: { kind: cosine, warmup_steps: 10 } }
";

fn waves(rows: usize) -> Series {
    let config = serde_json::json!({
        "kind": "waves", "channels": 4, "periods": [8], "noise": 0.03, "train_rows": rows,
    });
    let component: hymba_plus::registry::Component<dataset> = serde_json::from_value(config).unwrap();
    match component.make().unwrap().load(&|path| path.as_str().into()).unwrap() {
        Dataset::Series(series) => series,
        other => panic!("{other:?}"),
    }
}

#[test]
fn medians_of_sampled_continuations_follow_the_wave() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = Recipe::from_yaml(RECIPE, &LoadOptions::default()).unwrap();
    let mut options = RunOptions::new(folder.path().join("run"), "hymba run recipe.yaml");
    options.console = Console::silent();
    recipes::run(&recipe, options).unwrap();
    let saved = SavedRun::open(&folder.path().join("run"), Which::Last, Device::Cpu).unwrap();
    // Rows that follow those of the run: the same waves, later, with noise of their own.
    let series = waves(800);
    let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
    let (mut error, mut repeated, mut count) = (0.0, 0.0, 0);
    for channel in 0..4 {
        let values: Vec<f64> = (700..732).map(|row| series.rows(row..row + 1)[channel]).collect();
        let (known, future) = values.split_at(16);
        let samples =
            sample_forecast(&saved.model, saved.tokenizer.as_ref().unwrap(), known, 16, 9, &sampling, 1)
                .unwrap();
        assert_eq!((samples.len(), samples[0].len()), (9, 16));
        for (step, truth) in future.iter().enumerate() {
            let mut at: Vec<f64> = samples.iter().filter_map(|sample| sample[step]).collect();
            assert!(at.len() >= 5, "step {step}: {} of 9 samples are numbers", at.len());
            at.sort_by(f64::total_cmp);
            error += (at[at.len() / 2] - truth).abs();
            repeated += (known[15] - truth).abs();
            count += 1;
        }
    }
    let (error, repeated) = (error / f64::from(count), repeated / f64::from(count));
    assert!(error < 0.25 * repeated, "mean error {error:.3}, of the last value repeated {repeated:.3}");
}
