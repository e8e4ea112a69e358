//! Runs a layout: deals the tokens of the streams out to calls and collects what comes back, row by row.

use tch::{Kind, Tensor};
use torch_bridge::Result;

use super::{
    harness::{Pass, Streams, Subject, Tensors},
    layout::{Cell, Layout, Turn, tokens},
    noise::noise,
};
use crate::state::{ModelState, SpanInput};

/// A run on from some state, call by call.
pub(super) struct Run<'a> {
    subject: &'a Subject,
    streams: &'a Streams,
    initial: &'a ModelState,
    state: ModelState,
    /// Tokens that each row has read.
    read: Vec<usize>,
    /// Outputs of each row's tokens, `[tokens, width]` each.
    rows: Vec<Vec<Tensor>>,
}

/// The operands of one call.
pub(super) struct Operands {
    pub(super) x: Tensors,
    pub(super) size: [i64; 2],
    pub(super) valid: Option<Tensor>,
    pub(super) resets: Option<Tensor>,
}

impl Operands {
    pub(super) fn span(&self) -> SpanInput<'_> {
        SpanInput { valid: self.valid.as_ref(), resets: self.resets.as_ref(), training: false }
    }
}

impl<'a> Run<'a> {
    /// From the initial state, with `offset` tokens of each row left out.
    pub(super) fn new(
        subject: &'a Subject,
        streams: &'a Streams,
        initial: &'a ModelState,
        batch: usize,
        offset: usize,
    ) -> Self {
        let (read, rows) = (vec![offset; batch], (0..batch).map(|_| Vec::new()).collect());
        Self { subject, streams, initial, state: initial.share(), read, rows }
    }

    /// On from a state whose rows have read so many tokens.
    pub(super) fn resume(
        subject: &'a Subject,
        streams: &'a Streams,
        initial: &'a ModelState,
        state: ModelState,
        read: Vec<usize>,
    ) -> Self {
        let rows = read.iter().map(|_| Vec::new()).collect();
        Self { subject, streams, initial, state, read, rows }
    }

    pub(super) fn state(&self) -> &ModelState {
        &self.state
    }

    /// What the next call would be given. Masks are given where the layout has need of them anywhere.
    pub(super) fn operands(&self, turn: &Turn, padded: bool, packed: bool) -> Result<Operands> {
        let (batch, time) = (turn.len(), turn.first().map_or(0, Vec::len));
        let size = [batch as i64, time as i64];
        let (mut indices, mut valid, mut resets) = (Vec::new(), Vec::new(), Vec::new());
        for (row, cells) in turn.iter().enumerate() {
            let mut next = self.read[row] as i64;
            for cell in cells {
                // Padding reads the entry behind the stream.
                indices.push(if *cell == Cell::Padding { -1 } else { next });
                next += i64::from(*cell != Cell::Padding);
                valid.push(*cell != Cell::Padding);
                // Document starts at padding mean nothing.
                resets.push(*cell != Cell::Token);
            }
        }
        let indices = Tensor::f_from_slice(&indices)?.f_view(size)?;
        let gather = |(key, stream): (&String, &Tensor)| -> Result<(String, Tensor)> {
            let width = stream.size()[2];
            let junk = noise(self.streams.seed, &format!("padding.{key}"), &[1, 1, width])?;
            let junk = junk.f_to_kind(stream.kind())?.f_expand([size[0], 1, width], false)?;
            let longest = stream.size()[1];
            let index = Tensor::f_full([1], longest, (Kind::Int64, stream.device()))?;
            let index = index.f_where_self(&indices.f_lt(0)?, &indices)?.f_unsqueeze(2)?;
            let all = Tensor::f_cat(&[stream.shallow_clone(), junk], 1)?;
            Ok((key.clone(), all.f_gather(1, &index.f_expand([size[0], size[1], width], false)?, false)?))
        };
        let mask = |bits: &[bool]| -> Result<Tensor> { Ok(Tensor::f_from_slice(bits)?.f_view(size)?) };
        let x = self.streams.text.iter().map(gather).collect::<Result<_>>()?;
        Ok(Operands {
            x: side_by_side(&x)?,
            size,
            valid: padded.then(|| mask(&valid)).transpose()?,
            resets: packed.then(|| mask(&resets)).transpose()?,
        })
    }

    /// One call on from where the run is; nothing of the run changes.
    pub(super) fn call(&self, operands: &Operands) -> Result<Pass> {
        self.subject.call(&operands.x, operands.size, &self.state, self.initial, operands.span())
    }

    /// Makes a call and goes on from its state.
    pub(super) fn step(&mut self, turn: &Turn, padded: bool, packed: bool) -> Result<()> {
        let operands = self.operands(turn, padded, packed)?;
        let Pass { y, state } = self.call(&operands)?;
        self.take(turn, &y)?;
        self.state = state;
        Ok(())
    }

    /// Collects the outputs of a call's tokens.
    fn take(&mut self, turn: &Turn, y: &Tensor) -> Result<()> {
        for (row, cells) in turn.iter().enumerate() {
            let kept: Vec<i64> =
                (0..cells.len()).filter(|&i| cells[i] != Cell::Padding).map(|i| i as i64).collect();
            let y = y.f_select(0, row as i64)?;
            self.rows[row].push(y.f_index_select(0, &Tensor::f_from_slice(&kept)?)?);
            self.read[row] += tokens(cells);
        }
        Ok(())
    }

    /// Makes all calls of a layout.
    pub(super) fn layout(&mut self, layout: &Layout) -> Result<()> {
        let (padded, packed) = (layout.has(Cell::Padding), layout.has(Cell::First));
        layout.turns.iter().try_for_each(|turn| self.step(turn, padded, packed))
    }

    /// The outputs of each row's tokens in order, `[tokens, width]`.
    pub(super) fn outputs(&self) -> Result<Vec<Tensor>> {
        let nothing = [0, self.subject.width()];
        let nothing = Tensor::f_zeros(nothing, (self.subject.kind, tch::Device::Cpu))?;
        let whole = |outputs: &Vec<Tensor>| match outputs.as_slice() {
            [] => Ok(nothing.shallow_clone()),
            outputs => Ok(Tensor::f_cat(outputs, 0)?),
        };
        self.rows.iter().map(whole).collect()
    }
}

/// The same slices as views of one tensor, as they are cut from one projection.
fn side_by_side(x: &Tensors) -> Result<Tensors> {
    let fused = Tensor::f_cat(&x.values().collect::<Vec<_>>(), 2)?;
    let mut start = 0;
    let cut = x.iter().map(|(key, x)| {
        let width = x.size()[2];
        start += width;
        Ok((key.clone(), fused.f_narrow(2, start - width, width)?))
    });
    cut.collect()
}

/// Outputs of a whole layout from the initial state, row by row.
pub(super) fn outputs(
    subject: &Subject,
    streams: &Streams,
    initial: &ModelState,
    layout: &Layout,
) -> Result<Vec<Tensor>> {
    let mut run = Run::new(subject, streams, initial, layout.batch(), 0);
    run.layout(layout)?;
    run.outputs()
}
