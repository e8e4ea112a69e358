//! A saved run's model measured again: in calls of any length, with another configuration of the same parameters.

use std::{fmt, num::NonZeroUsize, path::Path, sync::Arc};

use hymba_plus::{
    config::{LoadOptions, Recipe},
    model::{Model, ModelConfig},
    plan::grouped,
    registry::Section,
    state::SpanInput,
};
use recipes::{SavedRun, StageError, StagesSection, Which, check_language_model, loss_in_calls};
use serde_json::Value;
use tch::{Device, Kind};
use torch_bridge::guards::NoGrad;
use training::{
    data::{Batch, DataError, Dataset, Modality, TokenStream, ValidationBlocks},
    tokenizer::Tokenizer,
    trainer::{DataSection, Precision},
};

/// What to measure, and how.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// Which weights.
    pub checkpoint: Which,
    /// Where to compute.
    pub device: Device,
    /// Keys of the model that are changed, as `model.norm.eps=1e-5`; none may change a parameter.
    pub set: Vec<String>,
    /// Tokens of a call, which hands its state to the next; none for whole sequences.
    pub call_length: Option<NonZeroUsize>,
    /// Tokens to read, about; none for all.
    pub tokens: Option<NonZeroUsize>,
    /// Tokens of a sequence, each from the initial state; none for those of the recipe's last stage that has them.
    pub sequence_length: Option<NonZeroUsize>,
    /// Sequences at a time; none for those of that stage.
    pub batch_size: Option<NonZeroUsize>,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Measurement {
    /// Nats per token.
    pub loss: f64,
    /// Tokens that were predicted.
    pub tokens: u64,
    /// Bits per byte of text.
    pub bits_per_byte: f64,
    /// Tokens of a sequence.
    pub sequence_length: usize,
    /// Tokens of a call.
    pub call_length: usize,
    /// Bytes of a sequence's state after its last token, as the plan has them.
    pub planned_state_bytes: u64,
    /// The same as allocated.
    pub state_bytes: u64,
    /// Checkpoints that were passed over, and why.
    pub passed_over: Vec<String>,
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (calls, length) = (grouped(self.call_length as u64), grouped(self.sequence_length as u64));
        writeln!(f, "{} tokens in sequences of {length}, in calls of {calls}", grouped(self.tokens))?;
        writeln!(f, "loss/token  perplexity  bits/byte  state of a sequence (planned)")?;
        write!(
            f,
            "{:>10.4}  {:>10.4}  {:>9.4}  {} B ({} B)",
            self.loss,
            self.loss.exp(),
            self.bits_per_byte,
            grouped(self.state_bytes),
            grouped(self.planned_state_bytes)
        )
    }
}

/// Measures the model of a run directory on its validation text.
///
/// # Errors
/// When it is no run, its text is not there any more, a changed key is wrong or changes a parameter, or nothing was held
/// out.
pub fn evaluate_run(folder: &Path, evaluation: &Evaluation) -> Result<Measurement, StageError> {
    let path = folder.join("recipe.yaml");
    let recipe = Recipe::load(&path, &LoadOptions::default())?;
    let changed = changed_model(&path, &recipe, &evaluation.set)?;
    let run = SavedRun::open_as(folder, evaluation.checkpoint, evaluation.device, changed.as_ref())?;
    let setting = |given: Option<NonZeroUsize>, key: &str, default: usize| {
        given.map_or_else(|| stage_setting(&recipe, key).unwrap_or(default), NonZeroUsize::get)
    };
    let length = setting(evaluation.sequence_length, "sequence_length", 256);
    let key = ("sequence_length", length as u64);
    recipe.refuse(check_language_model("evaluate", Some(run.model.plan()), StagesSection::KEY, key))?;

    let data: DataSection = recipe.require("to know what to measure on")?;
    let corpus = match data.0.make()?.load(&|path| recipe.path(path))? {
        Dataset::Text(corpus) => corpus,
        other => {
            let error = DataError::Modality { wanted: Modality::Text, got: other.modality() };
            return Err(error.into());
        }
    };
    let tokenizer = run.tokenizer()?;
    let stream = Arc::new(TokenStream::encode(&corpus.validation, tokenizer)?);
    if stream.is_empty() {
        let message = "the run held nothing out: its section `data` has no validation split".to_owned();
        return Err(StageError::Other(message));
    }
    let sequences = evaluation.tokens.map(|tokens| tokens.get().div_ceil(length));
    let batch_size = setting(evaluation.batch_size, "batch_size", 8).min(sequences.unwrap_or(usize::MAX));
    let batches = sequences.map_or(usize::MAX, |sequences| sequences.div_ceil(batch_size));
    let pad = tokenizer.pad();
    let blocks = ValidationBlocks::new(stream, length, batch_size, pad, evaluation.device)?;

    let _no_grad = NoGrad::new();
    let _autocast = run.trainer.precision.autocast(evaluation.device);
    let (loss, tokens) = loss_in_calls(&run.model, blocks.batches().take(batches), evaluation.call_length)?;
    let bytes = if tokens == blocks.target_tokens() {
        corpus.validation.iter().map(|document| document.text.len()).sum()
    } else {
        let mut bytes = 0;
        for batch in blocks.batches().take(batches) {
            bytes += text_bytes(&batch?, tokenizer)?;
        }
        bytes
    };
    let call_length = evaluation.call_length.map_or(length, NonZeroUsize::get).min(length);
    let compute = match run.trainer.precision {
        Precision::Bfloat16 => Kind::BFloat16,
        other => other.parameter_kind(),
    };
    let state_bytes = match blocks.batches().next().transpose()? {
        Some(batch) => state_bytes(&run.model, &batch, call_length as i64)?,
        None => 0,
    };
    Ok(Measurement {
        loss,
        tokens,
        bits_per_byte: loss * tokens as f64 / std::f64::consts::LN_2 / bytes.max(1) as f64,
        sequence_length: length,
        call_length,
        planned_state_bytes: run.model.plan().state_bytes(length as i64, compute),
        state_bytes,
        passed_over: run.passed_over,
    })
}

/// The model's section with keys changed; none when nothing is.
fn changed_model(path: &Path, recipe: &Recipe, set: &[String]) -> Result<Option<ModelConfig>, StageError> {
    if set.is_empty() {
        return Ok(None);
    }
    let changed = Recipe::load(path, &LoadOptions { set: set.to_vec(), ..LoadOptions::default() })?;
    let rest = |recipe: &Recipe| {
        let mut values = recipe.values().clone();
        values.as_object_mut().and_then(|values| values.remove(ModelConfig::KEY));
        values
    };
    if rest(&changed) != rest(recipe) {
        let message = format!(
            "--set changes more than the section `{}` of {}: only the model of a run can be changed",
            ModelConfig::KEY,
            path.display()
        );
        return Err(StageError::Other(message));
    }
    Ok(changed.section()?)
}

/// A setting of the last stage that has it.
fn stage_setting(recipe: &Recipe, key: &str) -> Option<usize> {
    let stages: StagesSection = recipe.section().ok()??;
    let value = stages.0.iter().rev().find_map(|stage| stage.config.get(key).and_then(Value::as_u64));
    value.map(|value| value as usize)
}

/// Bytes of the text that a batch's targets spell, to within a character at each end of a row.
fn text_bytes(batch: &Batch, tokenizer: &Tokenizer) -> Result<usize, StageError> {
    let special = [tokenizer.eos(), tokenizer.pad()];
    let mut bytes = 0;
    for row in 0..batch.batch_size() {
        let ids = target_ids(batch, row)?.into_iter().filter_map(|id| u32::try_from(id).ok());
        let ids: Vec<u32> = ids.filter(|id| !special.contains(id)).collect();
        bytes += tokenizer.decode(&ids)?.len();
    }
    Ok(bytes)
}

fn target_ids(batch: &Batch, row: i64) -> torch_bridge::Result<Vec<i64>> {
    Ok(Vec::try_from(&batch.targets.f_get(row)?.f_to_device(Device::Cpu)?)?)
}

/// Bytes that the state of a sequence takes after all tokens of a batch's first.
fn state_bytes(model: &Model, batch: &Batch, call_length: i64) -> torch_bridge::Result<u64> {
    let ids = batch.tokens.f_narrow(0, 0, 1)?;
    let (initial, time) = (model.initial_state(false)?, ids.size()[1]);
    let (mut state, mut start) = (initial.share(), 0);
    while start < time {
        let length = call_length.min(time - start);
        let call = ids.f_narrow(1, start, length)?;
        state = model.forward(&call, &state, &initial, SpanInput::default())?.1;
        start += length;
    }
    Ok(state.bytes())
}
