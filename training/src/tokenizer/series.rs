//! Numbers as tokens of the text's own vocabulary (Ansari et al. 2024, Chronos, section 3.1).

use hymba_plus::{component_config, register, registry::Component};
use serde::{Deserialize, Serialize};

use super::{Tokenizer, TokenizerError};
use crate::slot::{Resolve, TokenizerSpec, tokenizer};

/// A text tokenizer with further tokens for numbers: a series is divided by the mean absolute value of its first part,
/// and each value becomes the nearest of `bins` values spaced evenly from `-limit` to `limit`. No text ever becomes one of
/// those tokens.
#[component_config]
pub struct WithSeries {
    /// The tokenizer of text.
    pub text: Component<tokenizer>,
    /// Tokens for numbers.
    #[default(4094)]
    #[schemars(range(min = 2, max = 1_048_576))]
    pub bins: usize,
    /// The largest number that has a token of its own, in units of the mean absolute value; larger ones become it.
    #[default(15.0)]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub limit: f64,
}

register!(tokenizer "with_series" => WithSeries);

impl TokenizerSpec for WithSeries {
    fn vocab_size(&self, resolve: Resolve<'_>) -> Result<usize, TokenizerError> {
        Ok(self.text()?.vocab_size(resolve)? + self.bins)
    }

    fn needs_training(&self) -> bool {
        self.text().is_ok_and(|text| text.needs_training())
    }

    fn build(&self, texts: &[&str], resolve: Resolve<'_>) -> Result<Tokenizer, TokenizerError> {
        self.text()?.build(texts, resolve)?.with_series(SeriesBins { bins: self.bins, limit: self.limit })
    }
}

impl WithSeries {
    fn text(&self) -> Result<Box<dyn TokenizerSpec>, TokenizerError> {
        self.text.make().map_err(|error| TokenizerError::Library {
            doing: "setting up the tokenizer of text",
            message: error.to_string(),
        })
    }
}

/// How numbers become tokens: what a saved tokenizer remembers of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SeriesBins {
    /// Number of tokens.
    pub bins: usize,
    /// The number that the last of them stands for; the first stands for its negative.
    pub limit: f64,
}

impl SeriesBins {
    /// The spelling of a token for numbers in the vocabulary.
    pub(super) fn name(bin: usize) -> String {
        format!("<|bin_{bin}|>")
    }
}

/// The tokens for numbers of a tokenizer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SeriesTokens {
    bins: SeriesBins,
    first: u32,
}

impl SeriesTokens {
    pub(super) fn new(bins: SeriesBins, first: u32) -> Self {
        Self { bins, first }
    }

    /// What a series is divided by: the mean absolute value of what is known of it; 1 when that is 0.
    pub fn scale(known: &[f64]) -> f64 {
        let mean = known.iter().map(|value| value.abs()).sum::<f64>() / known.len().max(1) as f64;
        if mean > 0.0 && mean.is_finite() { mean } else { 1.0 }
    }

    /// Ids of the tokens, rising with the number that they stand for.
    pub fn ids(&self) -> std::ops::Range<u32> {
        self.first..self.first + self.bins.bins as u32
    }

    /// Distance of the numbers of two neighbouring tokens, in units of the scale.
    pub fn step(&self) -> f64 {
        2.0 * self.bins.limit / (self.bins.bins - 1) as f64
    }

    /// The token of each value: that of the nearest number, the first or the last beyond the limit. A value that is no
    /// number becomes the token of 0 or of its nearest.
    pub fn encode(&self, values: &[f64], scale: f64) -> Vec<u32> {
        let last = (self.bins.bins - 1) as f64;
        let bin = |value: &f64| {
            let value = if value.is_nan() { 0.0 } else { value / scale };
            ((value + self.bins.limit) / self.step()).round().clamp(0.0, last) as u32
        };
        values.iter().map(|value| self.first + bin(value)).collect()
    }

    /// The number that each token stands for; none for a token of text.
    pub fn decode(&self, ids: &[u32], scale: f64) -> Vec<Option<f64>> {
        let value = |id: &u32| {
            let bin = self.ids().contains(id).then(|| f64::from(id - self.first))?;
            // Symmetric about 0 to the last bit.
            Some((bin - (self.bins.bins - 1) as f64 / 2.0) * self.step() * scale)
        };
        ids.iter().map(value).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn build(config: serde_json::Value) -> Tokenizer {
        let component: Component<tokenizer> = serde_json::from_value(config).unwrap();
        let spec = component.make().unwrap();
        let tokenizer =
            spec.build(&["to be or not to be, that is the question"], &|p| p.as_str().into()).unwrap();
        assert_eq!(spec.vocab_size(&|p| p.as_str().into()).unwrap(), tokenizer.planned_vocab_size());
        tokenizer
    }

    fn bytes(bins: usize, limit: f64) -> (Tokenizer, SeriesTokens) {
        let tokenizer =
            build(json!({ "kind": "with_series", "text": "bytes", "bins": bins, "limit": limit }));
        let series = tokenizer.series().unwrap();
        (tokenizer, series)
    }

    #[test]
    fn every_token_comes_back_from_its_number_at_any_scale() {
        for (bins, limit) in [(2, 1.0), (3, 0.7), (1024, 15.0), (4094, 15.0)] {
            let (_, series) = bytes(bins, limit);
            let ids: Vec<u32> = series.ids().collect();
            assert_eq!(ids.len(), bins);
            for scale in [1.0, 1e-9, 3.7, 12_345.678] {
                let values: Vec<f64> = series.decode(&ids, scale).into_iter().flatten().collect();
                assert_eq!(series.encode(&values, scale), ids, "{bins} {limit} {scale}");
                assert!(values.windows(2).all(|pair| pair[0] < pair[1]));
                assert!(
                    values.iter().zip(values.iter().rev()).all(|(a, b)| (a + b).abs() <= f64::MIN_POSITIVE)
                );
                assert!((values[bins - 1] - limit * scale).abs() <= 1e-12 * limit * scale);
            }
        }
    }

    #[test]
    fn text_keeps_its_tokens_and_never_becomes_a_number() {
        let text = build(json!({ "kind": "byte_level_bpe", "vocab_size": 300 }));
        let both = build(json!({
            "kind": "with_series", "bins": 16,
            "text": { "kind": "byte_level_bpe", "vocab_size": 300, "special_tokens": ["<|user|>"] },
        }));
        assert!(text.series().is_none());
        let series = both.series().unwrap();
        assert_eq!((both.planned_vocab_size(), series.ids().len()), (316, 16));
        assert!(series.ids().end as usize <= both.vocab_size());
        for sample in ["to be", "<|bin_3|>", "question <|endoftext|>"] {
            let ids = both.encode(sample).unwrap();
            assert_eq!(both.decode(&ids).unwrap(), sample);
            assert!(ids.iter().all(|id| !series.ids().contains(id)), "{sample}");
        }
        let [eos, bin] = [both.eos(), series.ids().start];
        assert_eq!(series.decode(&[eos, bin], 2.0), [None, Some(-30.0)]);
        assert_eq!(both.decode(&[bin]).unwrap(), "<|bin_0|>");
    }

    #[test]
    fn a_saved_tokenizer_remembers_its_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let (tokenizer, series) = bytes(64, 4.0);
        tokenizer.save(&path).unwrap();
        let loaded = Tokenizer::load(&path).unwrap();
        assert_eq!((loaded.series(), loaded.hash()), (Some(series), tokenizer.hash()));
        assert_ne!(bytes(64, 5.0).0.hash(), tokenizer.hash());
    }

    #[test]
    fn scales_and_what_lies_outside() {
        assert!((SeriesTokens::scale(&[1.0, -3.0, 2.0]) - 2.0).abs() < 1e-12);
        assert_eq!((SeriesTokens::scale(&[]), SeriesTokens::scale(&[0.0, 0.0])), (1.0, 1.0));
        let (_, series) = bytes(5, 2.0); // -2, -1, 0, 1, 2
        let first = series.ids().start;
        let bins: Vec<u32> = series
            .encode(&[-99.0, -6.0, -1.4, 0.0, f64::NAN, 2.9, 9.0, f64::INFINITY], 3.0)
            .iter()
            .map(|id| id - first)
            .collect();
        assert_eq!(bins, [0, 0, 2, 2, 2, 3, 4, 4]);
    }

    proptest! {
        #[test]
        fn a_value_within_the_limit_moves_by_at_most_half_a_step(value in -15.0_f64..15.0, scale in 1e-3_f64..1e3) {
            let (_, series) = bytes(1024, 15.0);
            let back = series.decode(&series.encode(&[value * scale], scale), scale)[0].unwrap();
            prop_assert!((back - value * scale).abs() <= series.step() * scale * 0.500_000_1);
        }
    }
}
