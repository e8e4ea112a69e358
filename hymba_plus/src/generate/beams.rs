//! Beam search: the likeliest beginnings are followed side by side, as transformers does it.

use torch_bridge::Result;

use super::{
    Finish, GenerateOptions, History, LogitsProcessor, Scores, Sequence, TokenLogprobs,
    hypotheses::{Hypotheses, Hypothesis},
    limit,
    logits::{HostLogits, Rows},
    logprobs::Distribution,
    prefill::prefill,
    processors,
    scores::check_logits,
    stepper::Stepper,
};
use crate::model::Model;

/// A beginning that may still grow.
#[derive(Debug, Clone)]
struct Beam {
    history: History,
    /// Sum of the scores of its new tokens.
    score: f64,
    logprobs: Vec<TokenLogprobs>,
    /// Row of the logits and of the state that it goes on from.
    row: usize,
}

/// The search for one prompt.
#[derive(Debug)]
struct Search<'a> {
    options: &'a GenerateOptions,
    beams: Vec<Beam>,
    found: Hypotheses,
    /// Most new tokens, and why no more.
    most: (usize, Finish),
}

/// One more token on one of the beams.
struct Candidate {
    beam: usize,
    token: i64,
    score: f64,
}

impl Search<'_> {
    /// The beams one token further. `ends` says of new tokens whether they are a complete text.
    fn step(
        &mut self,
        rows: &Rows<'_>,
        processors: &[Box<dyn LogitsProcessor>],
        ends: &dyn Fn(&[i64]) -> bool,
    ) -> Result<()> {
        let (options, num_beams) = (self.options, self.options.beams.num_beams);
        // Enough that `num_beams` are left when every stop token is among the best of every beam.
        let keep = num_beams * (1 + options.stop_tokens.len()).max(2);
        let (mut candidates, mut complete, mut scores) = (Vec::new(), Vec::new(), Scores::default());
        for (i, beam) in self.beams.iter().enumerate() {
            let logits = rows.row(beam.row);
            check_logits(logits, i)?;
            scores.load(&Distribution::new(logits).all());
            for processor in processors {
                processor.process(&beam.history, &mut scores);
            }
            let top = scores.top(keep);
            if top.is_empty() {
                let (tokens, logprobs) = (beam.history.new_tokens().to_vec(), beam.logprobs.clone());
                let score = self.found.score(beam.score, tokens.len());
                complete.push(Hypothesis { tokens, logprobs, finish: Finish::NoToken, score });
            }
            candidates.extend(top.into_iter().map(|(token, score)| Candidate {
                beam: i,
                token,
                score: beam.score + f64::from(score),
            }));
        }
        // Stable: of equals, the earlier beam's and the earlier token.
        candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
        candidates.truncate(keep);
        let mut beams = Vec::new();
        for (rank, candidate) in candidates.into_iter().enumerate() {
            if rank >= num_beams && beams.len() == num_beams {
                break;
            }
            let parent = &self.beams[candidate.beam];
            let mut history = parent.history.clone();
            history.push(candidate.token);
            let length = history.new_tokens().len();
            let finish = if options.stop_tokens.contains(&candidate.token) {
                Some(Finish::StopToken(candidate.token))
            } else if ends(history.new_tokens()) {
                Some(Finish::Listener)
            } else {
                (length == self.most.0).then_some(self.most.1)
            };
            if finish.map_or(beams.len() == num_beams, |_| rank >= num_beams) {
                continue; // not among the best, or no room
            }
            let mut logprobs = parent.logprobs.clone();
            if let Some(count) = options.logprobs {
                let distribution = Distribution::new(rows.row(parent.row));
                logprobs.push(distribution.report(candidate.token, count));
            }
            let score = candidate.score;
            match finish {
                Some(finish) => {
                    let mut tokens = history.new_tokens().to_vec();
                    if matches!(finish, Finish::StopToken(_)) {
                        tokens.pop();
                        logprobs.truncate(tokens.len());
                    }
                    let score = self.found.score(score, length);
                    complete.push(Hypothesis { tokens, logprobs, finish, score });
                }
                None => beams.push(Beam { history, score, logprobs, row: parent.row }),
            }
        }
        self.found.add(complete);
        self.beams = beams;
        let goes_on = self.beams.first().is_some_and(|best| {
            let length = best.history.new_tokens().len();
            self.found.goes_on(best.score, length)
        });
        if !goes_on {
            self.beams.clear();
        }
        Ok(())
    }
}

/// See [`beam_search`](super::beam_search).
pub(super) fn search(
    model: &Model,
    prompts: &[Vec<i64>],
    options: &GenerateOptions,
    ends: &dyn Fn(&[i64]) -> bool,
) -> Result<Vec<Sequence>> {
    let (beams, processors) = (&options.beams, processors(options));
    let mut searches: Vec<Search<'_>> = prompts
        .iter()
        .enumerate()
        .map(|(row, prompt)| {
            let most = limit(model, prompt, options);
            let start = Beam { history: History::new(prompt), score: 0.0, logprobs: Vec::new(), row };
            let (room, penalty) = (beams.num_beams, beams.length_penalty);
            let found = Hypotheses::new(room, penalty, beams.early_stopping, most.0);
            Search { options, beams: vec![start], found, most }
        })
        .collect();
    let initial = model.initial_state(false)?;
    let (logits, state) = prefill(model, prompts, &initial, options.prefill_chunk)?;
    // Beams change places at every step, which a recorded step could not follow.
    let mut stepper = Stepper::new(model, &initial, state, prompts.len(), (0, 0), (false, false));
    let mut logits = HostLogits::new(&logits)?;
    loop {
        let read = logits.read()?;
        for search in searches.iter_mut().filter(|search| !search.beams.is_empty()) {
            search.step(&read, &processors, ends)?;
        }
        drop(read);
        let running: Vec<&mut Beam> = searches.iter_mut().flat_map(|search| &mut search.beams).collect();
        if running.is_empty() {
            break;
        }
        let from: Vec<i64> = running.iter().map(|beam| beam.row as i64).collect();
        let last: Vec<i64> =
            running.iter().map(|beam| beam.history.tokens().last().copied().unwrap_or(0)).collect();
        logits = HostLogits::new(&stepper.advance(&from, &last)?.logits)?;
        for (row, beam) in running.into_iter().enumerate() {
            beam.row = row;
        }
    }
    let mut sequences = Vec::new();
    for (prompt, search) in searches.into_iter().enumerate() {
        let best = search.found.into_best().into_iter().take(options.num_return_sequences);
        sequences.extend(best.map(|found| Sequence {
            prompt,
            seed: options.seed,
            tokens: found.tokens,
            finish: found.finish,
            logprobs: found.logprobs,
            score: Some(found.score),
        }));
    }
    Ok(sequences)
}
