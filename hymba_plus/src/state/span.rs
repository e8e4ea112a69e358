//! A span: which tokens of which documents one call covers.

use tch::{Device, Kind, Tensor};
use torch_bridge::{Error, Result};

use super::ModelState;

/// Whether a call runs the meta tokens or text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The meta tokens, run once: what they leave behind is where every document starts.
    Prefix,
    /// Ordinary tokens.
    Text,
}

/// What a caller says of the tokens of one call; all but the shape is optional.
#[derive(Debug, Default, Clone, Copy)]
pub struct SpanInput<'a> {
    /// `[batch, time]` bool: false where a token is padding, anywhere in the row.
    pub valid: Option<&'a Tensor>,
    /// `[batch, time]` bool: true where a token is the first of a new document, which starts from the initial state.
    pub resets: Option<&'a Tensor>,
    /// Whether dropout is active.
    pub training: bool,
}

/// The tokens of one call, as every mixer sees them: padding, if any, at the end of each row.
#[derive(Debug)]
pub struct Span {
    /// Rows.
    pub batch: i64,
    /// Tokens of each row, padding included.
    pub time: i64,
    /// Meta tokens or text.
    pub phase: Phase,
    /// Position of each token in its document, meta tokens counted first: `[batch or 1, time]` int64.
    pub positions: Tensor,
    /// Tokens of each row that are not padding, `[batch]` int64; none when there is no padding.
    pub lengths: Option<Tensor>,
    /// False where a token is padding, `[batch, time]` bool; none when there is no padding.
    pub valid: Option<Tensor>,
    /// True at the first token of each document that starts in this call, `[batch, time]` bool; none when no does.
    pub resets: Option<Tensor>,
    /// How many documents started before or at each token in this call, `[batch, time]` int64; none without resets.
    pub document: Option<Tensor>,
    /// Whether all rows stand at one position and everything they remember exists: no row was ever padded or packed.
    pub uniform: bool,
    /// Whether dropout is active.
    pub training: bool,
    order: Option<Tensor>,
}

impl Span {
    /// The span of the meta tokens: batch 1, positions from 0.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn prefix(meta_tokens: i64, device: Device, training: bool) -> Result<Self> {
        Ok(Self {
            batch: 1,
            time: meta_tokens,
            phase: Phase::Prefix,
            positions: Tensor::f_arange(meta_tokens, (Kind::Int64, device))?.f_unsqueeze(0)?,
            lengths: None,
            valid: None,
            resets: None,
            document: None,
            uniform: true,
            training,
            order: None,
        })
    }

    /// The span of `time` text tokens in each of `batch` rows, continuing `state`; documents that start inside it
    /// take positions from `meta_tokens` on.
    ///
    /// # Errors
    /// When a mask does not have the shape `[batch, time]`.
    pub fn text(
        batch: i64,
        time: i64,
        state: &ModelState,
        meta_tokens: i64,
        input: SpanInput<'_>,
    ) -> Result<Self> {
        let device = state.next_position.device();
        for (name, mask) in [("valid", input.valid), ("resets", input.resets)] {
            if let Some(mask) = mask
                && (mask.size() != [batch, time] || mask.kind() != Kind::Bool)
            {
                let (got, kind) = (mask.size(), mask.kind());
                return Err(Error::other(format!(
                    "`{name}` must be bool [{batch}, {time}], got {kind:?} {got:?}"
                )));
            }
        }
        let steps = Tensor::f_arange(time, (Kind::Int64, device))?.f_unsqueeze(0)?;
        // Padding anywhere in a row is moved to its end, so that mixers meet one form of it only.
        let order = match input.valid {
            Some(valid) => {
                Some(valid.f_logical_not()?.f_to_kind(Kind::Int)?.f_argsort_stable(true, 1, false)?)
            }
            None => None,
        };
        let compact = |mask: &Tensor| -> Result<Tensor> {
            Ok(order
                .as_ref()
                .map_or_else(|| Ok(mask.shallow_clone()), |order| mask.f_gather(1, order, false))?)
        };
        let valid = input.valid.map(&compact).transpose()?;
        let lengths = match &valid {
            Some(valid) => Some(valid.f_sum_dim_intlist(1, false, Kind::Int64)?),
            None => None,
        };
        let resets = match (input.resets, &valid) {
            (Some(resets), Some(valid)) => Some(compact(resets)?.f_logical_and(valid)?),
            (Some(resets), None) => Some(resets.shallow_clone()),
            (None, _) => None,
        };
        let running = state.next_position.f_unsqueeze(1)? + &steps;
        let (positions, document) = match &resets {
            None => (running, None),
            Some(resets) => {
                // Index of the latest document start at or before each token, -1 before the first.
                let started = steps.f_where_self(resets, &Tensor::f_full([1], -1, (Kind::Int64, device))?)?;
                let started = if time == 0 { started } else { started.f_cummax(1)?.0 };
                let since = &steps - &started + meta_tokens;
                let positions = since.f_where_self(&started.f_ge(0)?, &running)?;
                (positions, Some(resets.f_cumsum(1, Kind::Int64)?))
            }
        };
        Ok(Self {
            batch,
            time,
            phase: Phase::Text,
            positions,
            lengths,
            valid,
            resets,
            document,
            uniform: state.uniform_position.is_some(),
            training: input.training,
            order,
        })
    }

    /// Brings `[batch, time, ...]` from the caller's order of tokens into this span's (padding last).
    ///
    /// # Errors
    /// When the shape does not fit.
    pub fn compact(&self, tensor: &Tensor) -> Result<Tensor> {
        self.permute(tensor, self.order.as_ref())
    }

    /// Brings `[batch, time, ...]` back into the caller's order of tokens.
    ///
    /// # Errors
    /// When the shape does not fit.
    pub fn restore(&self, tensor: &Tensor) -> Result<Tensor> {
        let inverse = self.order.as_ref().map(|order| order.f_argsort(1, false)).transpose()?;
        self.permute(tensor, inverse.as_ref())
    }

    fn permute(&self, tensor: &Tensor, order: Option<&Tensor>) -> Result<Tensor> {
        let Some(order) = order else { return Ok(tensor.shallow_clone()) };
        let mut shape = vec![self.batch, self.time];
        shape.resize(tensor.dim(), 1);
        Ok(tensor.f_gather(1, &order.f_view(shape.as_slice())?.f_expand_as(tensor)?, false)?)
    }

    /// Position of each row's next token after this call, `[batch or 1]` int64, and the same on the host when the
    /// whole batch agrees.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn next_position(&self, state: &ModelState) -> Result<(Tensor, Option<i64>)> {
        if self.time == 0 {
            return Ok((state.next_position.shallow_clone(), state.uniform_position));
        }
        let Some(lengths) = &self.lengths else {
            let uniform =
                if self.resets.is_some() { None } else { state.uniform_position.map(|p| p + self.time) };
            return Ok((self.positions.f_select(1, -1)? + 1, uniform));
        };
        let last = (lengths - 1).f_clamp_min(0)?.f_unsqueeze(1)?;
        let positions = self.positions.f_expand([self.batch, self.time], false)?.f_gather(1, &last, false)?;
        let after = positions.f_squeeze_dim(1)? + 1;
        // A row of padding alone has not moved.
        Ok((after.f_where_self(&lengths.f_gt(0)?, &state.next_position)?, None))
    }
}
