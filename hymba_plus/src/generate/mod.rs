//! Generation: prompts in, tokens out, by the same pass that trains the model.

mod sampler;

use tch::{Kind, Tensor};
use torch_bridge::{Error, Result, guards::NoGrad};

pub use sampler::{Sampler, Sampling};

use crate::{
    model::Model,
    state::{ModelState, SpanInput},
};

/// When and how to stop, and how to choose tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    /// Most new tokens of each sequence.
    pub max_new_tokens: usize,
    /// Tokens that end a sequence; they are not part of the result.
    pub stop_tokens: Vec<i64>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Seed of the first sequence; sequence `i` has `seed + i`, whatever stands beside it in the batch.
    pub seed: u64,
}

/// Continues every prompt (token ids, of any lengths) and returns the new tokens of each. `on_token(i, id)` hears of
/// every new token of sequence `i` as it comes; when it returns false, that sequence ends.
///
/// # Errors
/// When a prompt is empty (start one with the end-of-text token), or libtorch refuses.
pub fn generate(
    model: &Model,
    prompts: &[Vec<i64>],
    options: &GenerateOptions,
    mut on_token: impl FnMut(usize, i64) -> bool,
) -> Result<Vec<Vec<i64>>> {
    let _guard = NoGrad::new();
    if prompts.is_empty() || options.max_new_tokens == 0 {
        return Ok(vec![Vec::new(); prompts.len()]);
    }
    if let Some(empty) = prompts.iter().position(Vec::is_empty) {
        return Err(Error::other(format!(
            "prompt {empty} is empty: give at least one token, such as end-of-text"
        )));
    }
    let initial = model.initial_state(false)?;
    let (mut logits, mut state) = prefill(model, prompts, &initial)?;
    let mut samplers: Vec<_> = (0..prompts.len())
        .map(|i| Sampler::new(&options.sampling, options.seed.wrapping_add(i as u64)))
        .collect();
    let mut outputs = vec![Vec::new(); prompts.len()];
    let mut running = vec![true; prompts.len()];
    loop {
        let rows = host_rows(&logits)?;
        let mut next = Vec::with_capacity(prompts.len());
        for (i, row) in rows.iter().enumerate() {
            let token = samplers[i].choose(row);
            if running[i] {
                if options.stop_tokens.contains(&token) {
                    running[i] = false;
                } else {
                    outputs[i].push(token);
                    running[i] = on_token(i, token) && outputs[i].len() < options.max_new_tokens;
                }
            }
            next.push(token);
        }
        if !running.contains(&true) {
            return Ok(outputs);
        }
        let ids =
            Tensor::f_from_slice(&next)?.f_view([prompts.len() as i64, 1])?.f_to_device(logits.device())?;
        let (hidden, after) = model.forward(&ids, &state, &initial, SpanInput::default())?;
        logits = model.head(&hidden)?.f_select(1, -1)?;
        state = after;
    }
}

/// Logits `[batch, vocab_size]` after the last token of each prompt, and the state there.
fn prefill(model: &Model, prompts: &[Vec<i64>], initial: &ModelState) -> Result<(Tensor, ModelState)> {
    let device = model.options().device;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let ragged = prompts.iter().any(|prompt| prompt.len() != longest);
    let (mut ids, mut valid) = (Vec::new(), Vec::new());
    for prompt in prompts {
        let padding = longest - prompt.len();
        ids.extend(prompt.iter().copied().chain(std::iter::repeat_n(0, padding)));
        valid.extend(std::iter::repeat_n(true, prompt.len()).chain(std::iter::repeat_n(false, padding)));
    }
    let shape = [prompts.len() as i64, longest as i64];
    let ids = Tensor::f_from_slice(&ids)?.f_view(shape)?.f_to_device(device)?;
    let valid = Tensor::f_from_slice(&valid)?.f_view(shape)?.f_to_device(device)?;
    let input = SpanInput { valid: ragged.then_some(&valid), ..SpanInput::default() };
    let (hidden, state) = model.forward(&ids, initial, initial, input)?;
    let last: Vec<i64> = prompts.iter().map(|prompt| prompt.len() as i64 - 1).collect();
    let last = Tensor::f_from_slice(&last)?.f_view([shape[0], 1, 1])?.f_to_device(device)?;
    let last = hidden.f_gather(1, &last.f_expand([shape[0], 1, hidden.size()[2]], false)?, false)?;
    Ok((model.head(&last)?.f_select(1, 0)?, state))
}

fn host_rows(logits: &Tensor) -> Result<Vec<Vec<f32>>> {
    let (rows, width) = (logits.size()[0], logits.size()[1] as usize);
    let flat = logits.f_to_kind(Kind::Float)?.f_to_device(tch::Device::Cpu)?.f_contiguous()?.f_view([-1])?;
    let flat = Vec::<f32>::try_from(&flat)?;
    Ok((0..rows as usize).map(|row| flat[row * width..(row + 1) * width].to_vec()).collect())
}
