//! Token by token: a batch of sequences that grow, end and leave.

use tch::{Device, Tensor};
use torch_bridge::Result;

use super::{
    Finish, GenerateOptions, History, Listener, LogitsProcessor, Sampler, Scores, Sequence, Step, limit,
    logits::HostLogits,
    logprobs::Distribution,
    prefill::prefill,
    processors,
    scores::check_logits,
    stepper::{Advanced, Stepper},
};
use crate::model::Model;

/// One sequence on its way.
struct Runner<'a> {
    options: &'a GenerateOptions,
    processors: &'a [Box<dyn LogitsProcessor>],
    history: History,
    /// Tokens that the model has read, those after its end included.
    read: usize,
    sampler: Sampler,
    /// Most new tokens, and why no more.
    most: (usize, Finish),
    sequence: Sequence,
    finish: Option<Finish>,
}

impl Runner<'_> {
    /// Chooses the next token by its logits, if there is one, and ends when there is a reason.
    fn choose(
        &mut self,
        index: usize,
        logits: &[f32],
        scores: &mut Scores,
        listener: &mut dyn Listener,
    ) -> Result<()> {
        check_logits(logits, index)?;
        scores.load(logits);
        for processor in self.processors {
            processor.process(&self.history, scores);
        }
        let greedy = self.options.sampling.is_greedy();
        let Some(token) = (if greedy { scores.best() } else { self.sampler.draw(scores) }) else {
            self.finish = Some(Finish::NoToken);
            return Ok(());
        };
        if let Some(count) = self.options.logprobs.filter(|_| !self.options.stop_tokens.contains(&token)) {
            self.sequence.logprobs.push(Distribution::new(logits).report(token, count));
        }
        self.take(index, token, listener);
        Ok(())
    }

    /// Goes on with a token, or ends when there is a reason.
    fn take(&mut self, index: usize, token: i64, listener: &mut dyn Listener) {
        if self.options.stop_tokens.contains(&token) {
            self.finish = Some(Finish::StopToken(token));
            return;
        }
        self.history.push(token);
        self.sequence.tokens.push(token);
        let step = Step { sequence: index, token, logprobs: self.sequence.logprobs.last() };
        if !listener.token(&step) {
            self.finish = Some(Finish::Listener);
        } else if self.sequence.tokens.len() >= self.most.0 {
            self.finish = Some(self.most.1);
        }
    }

    /// The token that the model reads next; of a sequence that has ended, any.
    fn last(&self) -> i64 {
        self.history.tokens().last().copied().unwrap_or(0)
    }
}

/// What the host sees of a step.
enum Logits {
    /// All of them.
    Host(HostLogits),
    /// The largest of each row and its token; all of them are on the device.
    Best(Vec<(f64, f64)>, Tensor),
}

impl Logits {
    fn of(advanced: &Advanced) -> Result<Self> {
        let Some(best) = &advanced.best else { return Ok(Self::Host(HostLogits::new(&advanced.logits)?)) };
        let both = Vec::<Vec<f64>>::try_from(best.f_to_device(Device::Cpu)?)?;
        let [values, tokens] = both.as_slice() else {
            return Err(torch_bridge::Error::other("the largest logits are not two rows"));
        };
        let best = values.iter().copied().zip(tokens.iter().copied()).collect();
        Ok(Self::Best(best, advanced.logits.shallow_clone()))
    }
}

/// See [`generate_streaming`](super::generate_streaming).
pub(super) fn decode(
    model: &Model,
    prompts: &[Vec<i64>],
    options: &GenerateOptions,
    listener: &mut dyn Listener,
) -> Result<Vec<Sequence>> {
    let (copies, processors) = (options.num_return_sequences, processors(options));
    let mut runners: Vec<Runner<'_>> = (0..prompts.len() * copies)
        .map(|i| {
            let prompt = &prompts[i / copies];
            let seed = options.seed.wrapping_add(i as u64);
            Runner {
                options,
                processors: &processors,
                history: History::new(prompt),
                read: prompt.len(),
                sampler: Sampler::new(seed),
                most: limit(model, prompt, options),
                sequence: Sequence::new(i / copies, seed),
                finish: None,
            }
        })
        .collect();
    let initial = model.initial_state(false)?;
    let (logits, state) = prefill(model, prompts, &initial, options.prefill_chunk)?;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let most = runners.iter().map(|runner| runner.read + runner.most.0).max().unwrap_or(0);
    let tokens = (longest as i64, most.max(longest) as i64 + 1);
    // Where only the largest logit counts, the device finds it.
    let on_device = options.sampling.is_greedy() && processors.is_empty() && options.logprobs.is_none();
    let mut stepper =
        Stepper::new(model, &initial, state, prompts.len(), tokens, (options.cuda_graph, on_device));
    let (mut logits, mut scores) = (Logits::Host(HostLogits::new(&logits)?), Scores::default());
    // For each row of the batch its sequence, and the row of the logits and of the state that it goes on from.
    let mut batch: Vec<(usize, usize)> = (0..runners.len()).map(|i| (i, i / copies)).collect();
    loop {
        for &(i, row) in &batch {
            if runners[i].finish.is_none() {
                match &logits {
                    Logits::Best(best, _) if best[row].0.is_finite() => {
                        runners[i].take(i, best[row].1 as i64, listener);
                    }
                    // No number among them, or no token: the general way says which.
                    Logits::Best(_, all) => {
                        let host = HostLogits::new(all)?;
                        runners[i].choose(i, host.read()?.row(row), &mut scores, listener)?;
                    }
                    Logits::Host(host) => {
                        runners[i].choose(i, host.read()?.row(row), &mut scores, listener)?;
                    }
                }
                if let Some(finish) = runners[i].finish {
                    listener.end(i, finish);
                }
            }
        }
        let running = |&(i, _): &(usize, usize)| runners[i].finish.is_none();
        let left = batch.iter().filter(|row| running(row)).count();
        if left == 0 {
            break;
        }
        // Rows that have ended go on with the others until they are half of the batch.
        if left * 2 <= batch.len() || overtakes(model, &batch, &runners) {
            batch.retain(running);
        }
        let from: Vec<i64> = batch.iter().map(|&(_, row)| row as i64).collect();
        let last: Vec<i64> = batch.iter().map(|&(i, _)| runners[i].last()).collect();
        let next = stepper.advance(&from, &last)?;
        logits = Logits::of(&next)?;
        for (row, (i, from)) in batch.iter_mut().enumerate() {
            *from = row;
            runners[*i].read += 1;
        }
    }
    Ok(runners.into_iter().map(|runner| runner.sequence.ended(runner.finish)).collect())
}

/// Whether a row that has ended would run past the longest document that the model is made for.
fn overtakes(model: &Model, batch: &[(usize, usize)], runners: &[Runner<'_>]) -> bool {
    let Some(most) = model.plan().longest_document() else { return false };
    let is_at_end = |runner: &Runner<'_>| runner.finish.is_some() && runner.read as u64 >= most.max(0) as u64;
    batch.iter().any(|&(i, _)| is_at_end(&runners[i]))
}
