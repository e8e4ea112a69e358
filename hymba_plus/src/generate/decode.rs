//! Token by token: a batch of sequences that grow, end and leave.

use tch::Tensor;
use torch_bridge::Result;

use super::{
    Finish, GenerateOptions, History, Listener, LogitsProcessor, Sampler, Scores, Sequence, Step, limit,
    logits::HostLogits, logprobs::Distribution, prefill::prefill, processors, scores::check_logits,
};
use crate::{
    model::Model,
    state::{ModelState, SpanInput},
};

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
    /// Chooses the next token, if there is one, and ends when there is a reason.
    fn step(
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
        if self.options.stop_tokens.contains(&token) {
            self.finish = Some(Finish::StopToken(token));
            return Ok(());
        }
        self.history.push(token);
        self.sequence.tokens.push(token);
        if let Some(count) = self.options.logprobs {
            self.sequence.logprobs.push(Distribution::new(logits).report(token, count));
        }
        let step = Step { sequence: index, token, logprobs: self.sequence.logprobs.last() };
        if !listener.token(&step) {
            self.finish = Some(Finish::Listener);
        } else if self.sequence.tokens.len() >= self.most.0 {
            self.finish = Some(self.most.1);
        }
        Ok(())
    }

    /// The token that the model reads next; of a sequence that has ended, any.
    fn last(&self) -> i64 {
        self.history.tokens().last().copied().unwrap_or(0)
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
    let (logits, mut state) = prefill(model, prompts, &initial, options.prefill_chunk)?;
    let (mut logits, mut scores) = (HostLogits::new(&logits)?, Scores::default());
    // For each row of the batch its sequence, and the row of the logits and of the state that it goes on from.
    let mut batch: Vec<(usize, usize)> = (0..runners.len()).map(|i| (i, i / copies)).collect();
    let mut rows = prompts.len();
    loop {
        let read = logits.read()?;
        for &(i, row) in &batch {
            if runners[i].finish.is_none() {
                runners[i].step(i, read.row(row), &mut scores, listener)?;
                if let Some(finish) = runners[i].finish {
                    listener.end(i, finish);
                }
            }
        }
        drop(read);
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
        let (next, after) = advance(model, &initial, &state, (&from, rows), &last)?;
        (logits, state, rows) = (HostLogits::new(&next)?, after, batch.len());
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

/// One token further: row `i` of the new batch goes on from row `from[i]` of the `rows` rows of `state` and reads
/// `tokens[i]`. Logits `[batch, vocab_size]` and the state after it.
pub(super) fn advance(
    model: &Model,
    initial: &ModelState,
    state: &ModelState,
    (from, rows): (&[i64], usize),
    tokens: &[i64],
) -> Result<(Tensor, ModelState)> {
    let device = model.options().device;
    let is_same = from.len() == rows && from.iter().enumerate().all(|(i, &row)| i as i64 == row);
    let chosen = if is_same {
        state.share()
    } else {
        state.select(&Tensor::f_from_slice(from)?.f_to_device(device)?, rows as i64)?
    };
    let ids = Tensor::f_from_slice(tokens)?.f_view([tokens.len() as i64, 1])?.f_to_device(device)?;
    let (hidden, after) = model.forward(&ids, &chosen, initial, SpanInput::default())?;
    Ok((model.head(&hidden)?.f_select(1, 0)?, after))
}
