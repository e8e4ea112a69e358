//! A tiny task and what the tests of the loop share.
#![allow(dead_code)] // each test binary uses a part
#![allow(clippy::unwrap_used)]

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use hymba_plus::{
    config::{LoadOptions, Recipe},
    model::Statistics,
    params::{Init, ParameterPlan, Parameters},
};
use serde_json::{Value, json};
use tch::{Kind, Tensor};
use training::{
    prelude::*,
    telemetry::{Console, MetricsFile},
};

/// An embedding and a linear map with a bias: predicts the next token from the last one, with dropout.
pub struct Bigram {
    parameters: Parameters,
    validation: ValidationBlocks,
    pub dropout: f64,
    /// Evaluations so far: state besides the parameters.
    pub evaluations: u64,
    /// Steps of the optimizer so far, of the same kind.
    pub steps: u64,
    /// Gives a loss that is not a number when the step's first batch is this one.
    pub poison: Option<u64>,
    /// What every batch waits for.
    pub pause: Duration,
    batches: std::cell::Cell<u64>,
}

/// The bytes of each parameter, by name.
pub type Weights = Vec<(String, Vec<u8>)>;

pub const VOCAB: i64 = 12;

/// Tokens of a sequence.
pub const SEQUENCE_LENGTH: usize = 8;

impl Bigram {
    pub fn new(run: &Run, stream: &Arc<TokenStream>) -> Self {
        let plan = |name: &str, shape: &[i64], weight_decay| ParameterPlan {
            name: name.to_owned(),
            shape: shape.to_vec(),
            init: Init::Normal { std: 0.1 },
            weight_decay,
            keep_float: false,
            trained: true,
        };
        let plan = [
            plan("embedding.weight", &[VOCAB, 16], true),
            plan("head.weight", &[VOCAB, 16], true),
            plan("head.bias", &[VOCAB], false),
        ];
        let kind = run.trainer().precision.parameter_kind();
        Self {
            parameters: Parameters::allocate(&plan, run.device(), kind, run.seed()).unwrap(),
            validation: ValidationBlocks::new(Arc::clone(stream), 8, 4, 0, run.device()).unwrap(),
            dropout: 0.2,
            evaluations: 0,
            steps: 0,
            poison: None,
            pause: Duration::ZERO,
            batches: std::cell::Cell::new(0),
        }
    }

    fn sum(&self, batch: &Batch, train: bool) -> Tensor {
        let tensor = |name: &str| &self.parameters.get(name).unwrap().tensor;
        let hidden = Tensor::embedding(tensor("embedding.weight"), &batch.tokens, -1, false, false);
        let hidden = hidden.dropout(self.dropout, train);
        let logits = hidden.linear(tensor("head.weight"), Some(tensor("head.bias")));
        cross_entropy_sum(&logits, &batch.targets, 0.0).unwrap()
    }

    pub fn weights(&self) -> Weights {
        let bytes = |tensor: &Tensor| torch_bridge::tensors::to_bytes(tensor).unwrap();
        self.parameters.iter().map(|p| (p.plan.name.clone(), bytes(&p.tensor))).collect()
    }
}

impl Task for Bigram {
    type Batch = Batch;

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn loss(&self, batch: &Batch) -> Result<Loss, TaskError> {
        std::thread::sleep(self.pause);
        let sum = self.sum(batch, true);
        self.batches.set(self.batches.get() + 1);
        let mut loss =
            Loss::of_sum(if self.poison == Some(self.batches.get()) { sum * f64::NAN } else { sum });
        let counted = batch.targets.ne(training::data::IGNORE_INDEX);
        let mean_target = (&batch.targets * &counted).sum(Kind::Double) / counted.sum(Kind::Double);
        loss.measured.push(("mean_target".to_owned(), mean_target));
        loss.measured.push(("steps_before".to_owned(), Tensor::from(self.steps as f64)));
        Ok(loss)
    }

    fn after_step(&mut self, _statistics: &Statistics) -> Result<(), TaskError> {
        assert!(!torch_bridge::guards::is_grad_enabled());
        self.steps += 1;
        Ok(())
    }

    fn evaluate(&mut self) -> Result<Vec<(String, f64)>, TaskError> {
        self.evaluations += 1;
        let mut sum = 0.0;
        for batch in self.validation.batches() {
            sum += self.sum(&batch?, false).to_kind(Kind::Double).double_value(&[]);
        }
        let _draws_numbers = Tensor::rand([3], (Kind::Float, tch::Device::Cpu));
        let loss = sum / self.validation.target_tokens() as f64;
        Ok(vec![("validation_loss".to_owned(), loss), ("evaluations".to_owned(), self.evaluations as f64)])
    }

    fn state(&self) -> Value {
        json!({ "evaluations": self.evaluations, "steps": self.steps })
    }

    fn restore(&mut self, state: &Value) -> Result<(), TaskError> {
        self.evaluations = state["evaluations"].as_u64().ok_or("no evaluations in the state")?;
        self.steps = state["steps"].as_u64().ok_or("no steps in the state")?;
        Ok(())
    }
}

/// A text whose next token is mostly certain, in 40 documents.
pub fn stream() -> Arc<TokenStream> {
    let document = |n: u32| -> Vec<u32> {
        (0..20 + n % 7).map(|i| 1 + (i * (1 + n % 3)) % (VOCAB as u32 - 1)).collect()
    };
    let documents: Vec<Vec<u32>> = (0..40).map(document).collect();
    Arc::new(TokenStream::from_documents(documents.iter().map(Vec::as_slice), 0))
}

pub fn loop_config(changes: &Value) -> LoopConfig {
    let mut config = json!({
        "steps": 20, "batch_size": 4, "evaluate_every": 5, "evaluate_at_start": false,
        "optimizer": { "kind": "adamw", "lr": 0.01 },
        "schedule": { "kind": "cosine", "warmup_steps": 4 },
    });
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    hymba_plus::registry::parse_config(config).unwrap()
}

pub fn recipe(trainer: &str) -> Recipe {
    let text = format!("schema: 1\nname: bigram\nseed: 3\ntrainer: {{device: cpu, threads: 1, {trainer}}}\n");
    Recipe::from_yaml(&text, &LoadOptions::default()).unwrap()
}

pub const TRAINER: &str = "checkpoint: {every_steps: 3, keep_last: 2, keep_best: 1}, log: {every_steps: 2}";

pub fn options(run_dir: &Path, resume: bool) -> RunOptions {
    RunOptions { resume, console: Console::silent(), ..RunOptions::new(run_dir, "hymba run recipe.yaml") }
}

/// One run at a time in this process: libtorch's random numbers are the process'.
static ALONE: Mutex<()> = Mutex::new(());

/// Opens a run and trains the bigram in it; the outcome and the weights.
pub fn run(
    recipe: &Recipe,
    options: RunOptions,
    config: &LoopConfig,
    change: impl FnOnce(&mut Bigram),
) -> Result<(Outcome, Weights), TrainError> {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut run = Run::open(recipe, options)?;
    let stream = stream();
    let mut task = Bigram::new(&run, &stream);
    change(&mut task);
    let fingerprint = Fingerprint::default().with("text", "bigram");
    let mut loader = Blocks::new(stream, SEQUENCE_LENGTH, run.seed(), run.device(), fingerprint)?;
    let outcome = train(&mut run, "pretrain", config, &mut task, &mut loader)?;
    Ok((outcome, task.weights()))
}

/// The lines of `metrics.jsonl` without what depends on the clock.
pub fn metrics(run_dir: &Path) -> Vec<MetricRecord> {
    let records = MetricsFile::read(&run_dir.join("metrics.jsonl")).unwrap();
    records.into_iter().map(MetricRecord::deterministic).collect()
}

/// Every file of the checkpoint of a step that must be equal in two equal runs, by name.
pub fn checkpoint_bytes(run_dir: &Path, step: u64) -> Vec<(String, Vec<u8>)> {
    let folder = run_dir.join(format!("checkpoints/pretrain/step-{step:08}"));
    let read = |name: &str| (name.to_owned(), std::fs::read(folder.join(name)).unwrap());
    let mut files: Vec<_> =
        ["model", "optimizer", "rng"].iter().map(|name| read(&format!("{name}.safetensors"))).collect();
    let mut state: Value = serde_json::from_slice(&read("state.json").1).unwrap();
    for clocked in ["elapsed_seconds", "metrics_bytes"] {
        state[clocked] = Value::Null;
    }
    files.push(("state.json".to_owned(), state.to_string().into_bytes()));
    files
}

/// A pipe whose text can be read.
#[derive(Clone, Default)]
pub struct Pipe(Arc<Mutex<Vec<u8>>>);

impl Pipe {
    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
