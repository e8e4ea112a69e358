//! Reading prompts.

use tch::Tensor;
use torch_bridge::Result;

use crate::{
    model::Model,
    state::{ModelState, SpanInput},
};

/// Logits `[batch, vocab_size]` after the last token of each prompt, and the state there. A pass reads `chunk` tokens
/// of each row.
pub(super) fn prefill(
    model: &Model,
    prompts: &[Vec<i64>],
    initial: &ModelState,
    chunk: Option<usize>,
) -> Result<(Tensor, ModelState)> {
    let (batch, device) = (prompts.len() as i64, model.options().device);
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let shortest = prompts.iter().map(Vec::len).min().unwrap_or(0);
    // Padding stands in front, so that every row ends with the last chunk.
    let padding = longest - shortest;
    let (mut state, mut start, chunk) = (initial.share(), 0, chunk.unwrap_or(longest).max(1));
    loop {
        let end = longest.min(start + chunk);
        let columns = || (start..end).map(|column| longest - column);
        let row = |prompt: &Vec<i64>, from_end: usize| prompt.len().checked_sub(from_end);
        let ids: Vec<i64> = prompts
            .iter()
            .flat_map(|prompt| columns().map(move |from_end| row(prompt, from_end).map_or(0, |i| prompt[i])))
            .collect();
        let valid: Vec<bool> = prompts
            .iter()
            .flat_map(|prompt| columns().map(move |from_end| row(prompt, from_end).is_some()))
            .collect();
        let shape = [batch, (end - start) as i64];
        let ids = Tensor::f_from_slice(&ids)?.f_view(shape)?.f_to_device(device)?;
        let valid = Tensor::f_from_slice(&valid)?.f_view(shape)?.f_to_device(device)?;
        let input = SpanInput { valid: (start < padding).then_some(&valid), ..SpanInput::default() };
        let (hidden, after) = model.forward(&ids, &state, initial, input)?;
        if end == longest {
            let last = hidden.f_narrow(1, hidden.size()[1] - 1, 1)?;
            return Ok((model.head(&last)?.f_select(1, 0)?, after));
        }
        (state, start) = (after, end);
    }
}
