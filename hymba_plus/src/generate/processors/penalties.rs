//! Penalties on tokens that have come already.

use super::{History, LogitsProcessor, Scores};

/// Every token of the prompt and the text so far: a score below 0 is multiplied by the penalty, another divided by it
/// (Keskar et al. 2019, CTRL, section 4.1, as transformers has it for scores of either sign).
#[derive(Debug, Clone, Copy)]
pub struct RepetitionPenalty(pub f64);

impl LogitsProcessor for RepetitionPenalty {
    fn process(&self, history: &History, scores: &mut Scores) {
        let penalty = self.0 as f32;
        for (token, _) in history.counts() {
            scores.update(token, |score| if score < 0.0 { score * penalty } else { score / penalty });
        }
    }
}

/// New tokens that have come already lose `frequency` for each time, and `presence` once, as in OpenAI's interface.
#[derive(Debug, Clone, Copy)]
pub struct OutputPenalty {
    /// Taken off once for each time.
    pub frequency: f64,
    /// Taken off once.
    pub presence: f64,
}

impl LogitsProcessor for OutputPenalty {
    fn process(&self, history: &History, scores: &mut Scores) {
        for (token, count) in history.counts().filter(|(_, count)| *count > 0) {
            let penalty = self.frequency * f64::from(count) + self.presence;
            scores.update(token, |score| score - penalty as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_tokens_are_counted() {
        let mut history = History::new(&[0, 1]);
        for token in [1, 2, 2] {
            history.push(token);
        }
        let mut scores = Scores::new(&[1.0; 4]);
        OutputPenalty { frequency: 0.25, presence: 0.5 }.process(&history, &mut scores);
        assert_eq!(scores.values(), [1.0, 0.25, 0.0, 1.0]);
    }
}
