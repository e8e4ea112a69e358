//! What a generation is told: how long, how chosen, how ended.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::component_config;

/// A setting that means nothing, or contradicts another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` {problem}")]
pub struct OptionError {
    /// The setting.
    pub name: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl From<OptionError> for torch_bridge::Error {
    fn from(error: OptionError) -> Self {
        Self::other(error.to_string())
    }
}

/// How tokens are chosen. The defaults change nothing: each token is drawn from the model's own distribution.
///
/// [`processors`](super::processors) says in which order the settings apply.
#[component_config]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest token always.
    #[default(1.0)]
    #[schemars(range(min = 0.0))]
    pub temperature: f64,
    /// Only the `top_k` likeliest tokens; left out, all.
    #[schemars(range(min = 1))]
    pub top_k: Option<usize>,
    /// Only the likeliest tokens that together have this probability; left out, all.
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0.0))]
    pub top_p: Option<f64>,
    /// Only tokens with at least this share of the likeliest token's probability; left out, all.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_p: Option<f64>,
    /// Above 1, tokens of the prompt and of the text so far become less likely: their logit is divided by it, or
    /// multiplied if it is negative. 1 changes nothing.
    #[default(1.0)]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub repetition_penalty: f64,
    /// Taken off the logit of a new token once for each time it has come; 0 changes nothing.
    #[default(0.0)]
    pub frequency_penalty: f64,
    /// Taken off the logit of every new token that has come at all; 0 changes nothing.
    #[default(0.0)]
    pub presence_penalty: f64,
    /// No run of so many tokens comes twice, the prompt included; left out, it may.
    #[schemars(range(min = 1))]
    pub no_repeat_ngram: Option<usize>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            no_repeat_ngram: None,
        }
    }
}

impl Sampling {
    /// The likeliest token always.
    #[must_use]
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Whether the likeliest token is taken always.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Settings of drawing that are not at their neutral value: a search that does not draw has no use for them.
    pub fn drawing(&self) -> Vec<&'static str> {
        let set = [
            ("temperature", !is_neutral(self.temperature, 1.0) && !self.is_greedy()),
            ("top_k", self.top_k.is_some()),
            ("top_p", self.top_p.is_some()),
            ("min_p", self.min_p.is_some()),
        ];
        set.into_iter().filter_map(|(name, is_set)| is_set.then_some(name)).collect()
    }

    /// Refuses values that mean nothing, by the name of the setting.
    ///
    /// # Errors
    /// When a value is out of its range.
    pub fn check(&self) -> Result<(), OptionError> {
        let in_range = |value: Option<f64>, least: f64| value.is_none_or(|v| v >= least && v <= 1.0);
        let finite = |value: f64| value.is_finite();
        let above_zero = f64::MIN_POSITIVE;
        require(finite(self.temperature) && self.temperature >= 0.0, "temperature", "0 or more")?;
        require(self.top_k != Some(0), "top_k", "1 or more")?;
        require(in_range(self.top_p, above_zero), "top_p", "above 0, at most 1")?;
        require(in_range(self.min_p, 0.0), "min_p", "from 0 to 1")?;
        let penalty = self.repetition_penalty;
        require(finite(penalty) && penalty > 0.0, "repetition_penalty", "above 0")?;
        require(finite(self.frequency_penalty), "frequency_penalty", "a number")?;
        require(finite(self.presence_penalty), "presence_penalty", "a number")?;
        require(self.no_repeat_ngram != Some(0), "no_repeat_ngram", "1 or more")
    }
}

/// Beam search (`num_beams` above 1): the likeliest whole texts instead of drawn ones.
#[component_config]
pub struct Beams {
    /// Beginnings that are followed at a time; 1 is no beam search.
    #[default(1)]
    #[schemars(range(min = 1))]
    pub num_beams: usize,
    /// A text's score is its log-probability divided by its number of tokens to this power: above 0 favours long
    /// texts, 0 compares plain log-probabilities.
    #[default(1.0)]
    pub length_penalty: f64,
    /// When the search of a prompt ends: `true`, as soon as `num_beams` texts are complete; `false`, when no beginning
    /// could do better at its present length; `never`, when none could at any length.
    #[default(EarlyStopping::False)]
    pub early_stopping: EarlyStopping,
}

impl Default for Beams {
    fn default() -> Self {
        Self { num_beams: 1, length_penalty: 1.0, early_stopping: EarlyStopping::False }
    }
}

/// When a beam search ends: `true`, `false` or `never`, as transformers has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EarlyStopping {
    /// As soon as `num_beams` texts are complete.
    True,
    /// When no beginning could do better if it were complete at its present length.
    False,
    /// When no beginning could do better at any length.
    Never,
}

impl std::str::FromStr for EarlyStopping {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "true" => Ok(Self::True),
            "false" => Ok(Self::False),
            "never" => Ok(Self::Never),
            _ => Err("expected true, false or never".to_owned()),
        }
    }
}

impl Serialize for EarlyStopping {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::True => serializer.serialize_bool(true),
            Self::False => serializer.serialize_bool(false),
            Self::Never => serializer.serialize_str("never"),
        }
    }
}

impl<'de> Deserialize<'de> for EarlyStopping {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::Bool(true) => Ok(Self::True),
            serde_json::Value::Bool(false) => Ok(Self::False),
            serde_json::Value::String(text) => text.parse().map_err(D::Error::custom),
            other => Err(D::Error::custom(format!("expected true, false or never, not {other}"))),
        }
    }
}

impl JsonSchema for EarlyStopping {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "EarlyStopping".into()
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "boolean" }, { "enum": ["never"] }] })
    }
}

/// What a generation is told.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    /// Most new tokens of each sequence.
    pub max_new_tokens: usize,
    /// New tokens before which no stop token is chosen.
    pub min_new_tokens: usize,
    /// Tokens that end a sequence; they are not part of the result.
    pub stop_tokens: Vec<i64>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Beam search instead of drawing.
    pub beams: Beams,
    /// Sequences for each prompt: differently drawn ones, or the best that beam search found.
    pub num_return_sequences: usize,
    /// Seed of the first sequence; sequence `i` has `seed + i`, whatever stands beside it in the batch.
    pub seed: u64,
    /// Log-probabilities of the new tokens, and of so many of the likeliest tokens beside each; none when left out.
    pub logprobs: Option<usize>,
    /// Tokens of a prompt that one pass reads; left out, all at once. Less memory, the same result.
    pub prefill_chunk: Option<usize>,
    /// On a GPU, record a decoding step as a CUDA graph where that can be done. The computation is the same, over caches
    /// with empty places; sums of another order can let tokens that are nearly tied change places.
    pub cuda_graph: bool,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_new_tokens: 200,
            min_new_tokens: 0,
            stop_tokens: Vec::new(),
            sampling: Sampling::default(),
            beams: Beams::default(),
            num_return_sequences: 1,
            seed: 0,
            logprobs: None,
            prefill_chunk: None,
            cuda_graph: true,
        }
    }
}

impl GenerateOptions {
    /// Whether this is a beam search.
    pub fn is_beam_search(&self) -> bool {
        self.beams.num_beams > 1
    }

    /// Refuses settings that mean nothing or contradict each other, by name.
    ///
    /// # Errors
    /// When there is one.
    pub fn check(&self) -> Result<(), OptionError> {
        self.sampling.check()?;
        require(self.num_return_sequences > 0, "num_return_sequences", "1 or more")?;
        require(self.prefill_chunk != Some(0), "prefill_chunk", "1 or more")?;
        require(self.beams.num_beams > 0, "num_beams", "1 or more")?;
        require(self.beams.length_penalty.is_finite(), "length_penalty", "a number")?;
        if self.min_new_tokens > self.max_new_tokens {
            let (least, most) = (self.min_new_tokens, self.max_new_tokens);
            return Err(wrong("min_new_tokens", format!("is {least}, more than `max_new_tokens`, {most}")));
        }
        if !self.is_beam_search() {
            return Ok(());
        }
        if let Some(name) = self.sampling.drawing().first() {
            return Err(wrong(
                name,
                "is for drawing, and a beam search (`num_beams`) does not draw".to_owned(),
            ));
        }
        let (wanted, beams) = (self.num_return_sequences, self.beams.num_beams);
        if wanted > beams {
            let problem = format!("is {wanted}, and a beam search keeps no more than `num_beams`, {beams}");
            return Err(wrong("num_return_sequences", problem));
        }
        Ok(())
    }
}

/// Whether a setting stands at exactly the value that changes nothing.
#[allow(clippy::float_cmp)] // a value beside it asks for something
pub(super) fn is_neutral(value: f64, neutral: f64) -> bool {
    value == neutral
}

fn require(is_right: bool, name: &'static str, range: &str) -> Result<(), OptionError> {
    if is_right { Ok(()) } else { Err(wrong(name, format!("must be {range}"))) }
}

fn wrong(name: &'static str, problem: String) -> OptionError {
    OptionError { name, problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_nothing_is_refused_by_name() {
        let plain = GenerateOptions::default;
        let sampling = |change: fn(&mut Sampling)| {
            let mut options = plain();
            change(&mut options.sampling);
            options
        };
        let beams = Beams { num_beams: 2, ..Beams::default() };
        let table = [
            ("temperature", sampling(|s| s.temperature = -0.5)),
            ("temperature", sampling(|s| s.temperature = f64::NAN)),
            ("top_k", sampling(|s| s.top_k = Some(0))),
            ("top_p", sampling(|s| s.top_p = Some(0.0))),
            ("top_p", sampling(|s| s.top_p = Some(1.5))),
            ("min_p", sampling(|s| s.min_p = Some(-0.1))),
            ("repetition_penalty", sampling(|s| s.repetition_penalty = 0.0)),
            ("frequency_penalty", sampling(|s| s.frequency_penalty = f64::INFINITY)),
            ("presence_penalty", sampling(|s| s.presence_penalty = f64::NAN)),
            ("no_repeat_ngram", sampling(|s| s.no_repeat_ngram = Some(0))),
            ("num_return_sequences", GenerateOptions { num_return_sequences: 0, ..plain() }),
            (
                "num_return_sequences",
                GenerateOptions { num_return_sequences: 3, beams: beams.clone(), ..plain() },
            ),
            ("prefill_chunk", GenerateOptions { prefill_chunk: Some(0), ..plain() }),
            ("num_beams", GenerateOptions { beams: Beams { num_beams: 0, ..Beams::default() }, ..plain() }),
            ("min_new_tokens", GenerateOptions { min_new_tokens: 201, ..plain() }),
            ("top_k", GenerateOptions { beams, ..sampling(|s| s.top_k = Some(3)) }),
        ];
        for (name, options) in table {
            assert_eq!(options.check().unwrap_err().name, name, "{options:?}");
        }
        let greedy = GenerateOptions { sampling: Sampling::greedy(), ..plain() };
        assert!(plain().check().is_ok() && greedy.check().is_ok());
    }

    #[test]
    fn early_stopping_reads_as_it_writes() {
        for text in ["true", "false", "\"never\""] {
            let read: EarlyStopping = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
        assert!(serde_json::from_str::<EarlyStopping>("\"always\"").is_err());
    }
}
