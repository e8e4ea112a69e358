//! Logits of given tokens, for comparing a model with anything.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use hymba_plus::{
    model::{Model, Observers, Taps},
    state::{Span, SpanInput},
    weights::ImportOptions,
};
use tch::{Device, Kind, Tensor};
use torch_bridge::guards::NoGrad;
use training::checkpoint::{NamedTensors, TensorFile, Which, write_tensors};

use super::open_model;
use crate::context::StageError;

/// What to compute.
#[derive(Debug, Clone)]
pub struct LogitsRequest {
    /// A run directory, or a folder of another library.
    pub model: PathBuf,
    /// Which weights of a run.
    pub which: Which,
    /// How a folder of another library is read.
    pub import: ImportOptions,
    /// A safetensors file: `input_ids [batch, time]` int64; where a token is padding, `attention_mask` (or `valid`)
    /// `[batch, time]` is 0; where it begins a document, `resets [batch, time]` is not 0.
    pub ids: PathBuf,
    /// The safetensors file to write.
    pub out: PathBuf,
    /// Whether intermediate results are written too.
    pub taps: bool,
    /// Type to compute in; left out, the model's.
    pub kind: Option<Kind>,
    /// Tokens of a call; left out, all in one. The result does not depend on it, which is what it is there to show.
    pub call_length: Option<i64>,
    /// Where to compute.
    pub device: Device,
}

/// What was computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogitsReport {
    /// Rows, tokens of a row, size of the vocabulary.
    pub shape: [i64; 3],
    /// Intermediate results that were written.
    pub taps: usize,
    /// What the user should know of how the model was found.
    pub notes: Vec<String>,
}

/// Names of the file's tensors, and of those that are read.
const IDS: &str = "input_ids";
const MASKS: [&str; 2] = ["attention_mask", "valid"];
const RESETS: &str = "resets";
/// What stands before the names of the meta tokens' own taps.
const META: &str = "meta_tokens.";

/// Computes `logits [batch, time, vocab_size]` in 32 bits, and taps by their names (`layers.3.out [batch, time, d_model]`;
/// those of the meta tokens, `[1, meta_tokens, ...]`, as `meta_tokens.layers.3.out`), and writes them to a file.
///
/// # Errors
/// When the model or the file cannot be read, a tensor is not as described, or the result cannot be written.
pub fn logits(request: &LogitsRequest) -> Result<LogitsReport, StageError> {
    let _guard = NoGrad::new();
    let tokens = Tokens::read(&request.ids, request.device)?;
    let opened = open_model(&request.model, request.which, request.device, request.kind, &request.import)?;
    let model = &opened.model;
    let Some(vocabulary) = model.plan().vocab_size else {
        return Err(StageError::Other(
            "the model has no vocabulary, so there are no logits of tokens".to_owned(),
        ));
    };
    tokens.check(&request.ids, vocabulary)?;
    let mut taps = request.taps.then(BTreeMap::new);
    let logits = run(model, &tokens, request.call_length, taps.as_mut())?;
    let mut tensors: NamedTensors = vec![("logits".to_owned(), logits)];
    for (name, parts) in taps.into_iter().flatten() {
        tensors.push((name, joined(&parts)?));
    }
    write(&request.out, &tensors)?;
    let [batch, time] = tokens.size;
    Ok(LogitsReport { shape: [batch, time, vocabulary], taps: tensors.len() - 1, notes: opened.notes })
}

/// The tokens of a file.
struct Tokens {
    ids: Tensor,
    valid: Option<Tensor>,
    resets: Option<Tensor>,
    size: [i64; 2],
}

impl Tokens {
    fn read(path: &Path, device: Device) -> Result<Self, StageError> {
        let refuse = |message: String| StageError::Other(format!("{}: {message}", path.display()));
        let file = TensorFile::open(path)?;
        let names = file.names();
        let known = [IDS, MASKS[0], MASKS[1], RESETS];
        if let Some(name) = names.iter().find(|name| !known.contains(&name.as_str())) {
            return Err(refuse(format!("`{name}` is none of {}", known.join(", "))));
        }
        if !names.contains(IDS) {
            return Err(refuse(format!("it has no `{IDS}`")));
        }
        let ids = file.read(IDS)?;
        let &[batch, time] = ids.size().as_slice() else {
            return Err(refuse(format!("`{IDS}` is {:?}, expected [batch, time]", ids.size())));
        };
        if ids.kind() != Kind::Int64 {
            return Err(refuse(format!("`{IDS}` is {:?}, expected 64-bit integers", ids.kind())));
        }
        let flags = |name: &str| -> Result<Option<Tensor>, StageError> {
            if !names.contains(name) {
                return Ok(None);
            }
            let mask = file.read(name)?;
            if mask.size() != [batch, time] {
                return Err(refuse(format!("`{name}` is {:?}, expected {:?}", mask.size(), [batch, time])));
            }
            Ok(Some(
                mask.f_ne(0).and_then(|mask| mask.f_to_device(device)).map_err(torch_bridge::Error::from)?,
            ))
        };
        let (valid, resets) = match (flags(MASKS[0])?, flags(MASKS[1])?) {
            (Some(_), Some(_)) => {
                return Err(refuse("`attention_mask` and `valid` say the same: give one".to_owned()));
            }
            (one, other) => (one.or(other), flags(RESETS)?),
        };
        let ids = ids.f_to_device(device).map_err(torch_bridge::Error::from)?;
        Ok(Self { ids, valid, resets, size: [batch, time] })
    }

    /// Refuses ids that the model has no row for: on a GPU they would end the process.
    fn check(&self, path: &Path, vocabulary: i64) -> Result<(), StageError> {
        if self.ids.numel() == 0 {
            return Ok(());
        }
        let bound = |tensor: tch::Tensor| i64::try_from(&tensor).map_err(torch_bridge::Error::from);
        let (least, most) = (bound(self.ids.min())?, bound(self.ids.max())?);
        if least >= 0 && most < vocabulary {
            return Ok(());
        }
        let wrong = if least < 0 { least } else { most };
        let message = format!("`{IDS}` has {wrong}, the model knows tokens 0 to {}", vocabulary - 1);
        Err(StageError::Other(format!("{}: {message}", path.display())))
    }
}

type Parts = BTreeMap<String, Vec<Tensor>>;

/// Runs the tokens in calls of so many; gives the logits in 32 bits, and adds each call's taps.
fn run(
    model: &Model,
    tokens: &Tokens,
    call_length: Option<i64>,
    mut taps: Option<&mut Parts>,
) -> Result<Tensor, StageError> {
    let [batch, time] = tokens.size;
    let observed = Taps::default();
    let observers = if taps.is_some() { Observers::taps(&observed) } else { Observers::default() };
    let initial = model.initial_state_observed(false, observers)?;
    if let Some(taps) = taps.as_deref_mut() {
        for name in observed.names() {
            taps.entry(format!("{META}{name}")).or_default().extend(observed.get(&name));
        }
    }
    let (mut state, mut logits, mut start) = (initial.share(), Vec::new(), 0);
    let length = call_length.unwrap_or(time).max(1);
    while start < time || logits.is_empty() {
        let count = length.min(time - start);
        let cut = |tensor: &Tensor| tensor.f_narrow(1, start, count).map_err(torch_bridge::Error::from);
        let ids = cut(&tokens.ids)?;
        let (valid, resets) =
            (tokens.valid.as_ref().map(cut).transpose()?, tokens.resets.as_ref().map(cut).transpose()?);
        let input = SpanInput { valid: valid.as_ref(), resets: resets.as_ref(), ..SpanInput::default() };
        let observed = Taps::default();
        let observers = if taps.is_some() { Observers::taps(&observed) } else { Observers::default() };
        let (hidden, next) = model.forward_observed(&ids, &state, &initial, input, observers)?;
        let out = model.head(&hidden)?;
        logits.push(out.f_to_kind(Kind::Float).map_err(torch_bridge::Error::from)?);
        if let Some(taps) = taps.as_deref_mut() {
            // Inside a call padding stands at the end; outside, the tokens stand as the file has them.
            let span = Span::text(batch, count, &state, model.plan().meta_tokens, input)?;
            for name in observed.names() {
                let Some(tap) = observed.get(&name) else { continue };
                let per_token = tap.size().get(..2) == Some(&[batch, count]);
                if per_token {
                    taps.entry(name).or_default().push(span.restore(&tap)?);
                } else {
                    taps.entry(format!("{name}.from_{start}")).or_default().push(tap);
                }
            }
        }
        state = next;
        start += count.max(1);
    }
    Ok(Tensor::f_cat(&logits, 1).map_err(torch_bridge::Error::from)?)
}

/// The parts of a tap, call after call, in 32 bits.
fn joined(parts: &[Tensor]) -> Result<Tensor, StageError> {
    let whole = match parts {
        [one] => one.shallow_clone(),
        several => Tensor::f_cat(several, 1).map_err(torch_bridge::Error::from)?,
    };
    let kind = if whole.is_floating_point() { Kind::Float } else { whole.kind() };
    Ok(whole.f_to_kind(kind).map_err(torch_bridge::Error::from)?)
}

/// Writes a file so that its name holds the old bytes or the new ones.
fn write(path: &Path, tensors: &NamedTensors) -> Result<(), StageError> {
    let failed = |error: std::io::Error| StageError::Other(format!("{}: {error}", path.display()));
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let temporary = path.with_file_name(format!(".{name}.tmp-{}", std::process::id()));
    let written = write_tensors(&temporary, tensors).map_err(StageError::from);
    written.and_then(|()| std::fs::rename(&temporary, path).map_err(failed)).inspect_err(|_| {
        let _ = std::fs::remove_file(&temporary); // the first error is the one to report
    })
}
