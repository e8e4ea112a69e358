//! A batch of sequences, token by token: on a GPU as a recorded CUDA graph, whose launches cost the host nothing.

use std::sync::Once;

use tch::{Device, Kind, Tensor};
use torch_bridge::{
    Result,
    cuda::graph::{self, Graph, Pool},
    tensors::to_device_without_waiting,
};

use super::fixed;
use crate::{
    model::Model,
    state::{ModelState, SpanInput},
};

/// Steps of a batch before one is recorded: short texts are not worth it.
const WARM_UP: u32 = 2;
/// Places that a growing cache gets at least.
const PLACES: i64 = 512;

/// What a step gives.
#[derive(Debug)]
pub(super) struct Advanced {
    /// `[batch, vocab_size]`, `Float` where it was recorded; the next step writes over it then.
    pub logits: Tensor,
    /// The largest logit of each row that is a number, and its index: `Double [2, batch]`; none unless asked for.
    pub best: Option<Tensor>,
}

impl Advanced {
    fn of(logits: &Tensor, finds_best: bool) -> Result<Self> {
        let logits = logits.f_to_kind(Kind::Float)?;
        if !finds_best {
            return Ok(Self { logits, best: None });
        }
        let (value, index) =
            logits.f_nan_to_num(f64::NEG_INFINITY, None, f64::NEG_INFINITY)?.f_max_dim(-1, false)?;
        let best = Tensor::f_stack(&[value.f_to_kind(Kind::Double)?, index.f_to_kind(Kind::Double)?], 0)?;
        Ok(Self { logits, best: Some(best) })
    }
}

/// Where a batch stands.
#[derive(Debug)]
pub(super) struct Stepper<'a> {
    model: &'a Model,
    initial: &'a ModelState,
    state: ModelState,
    rows: usize,
    /// Text tokens of the longest row, and as many as it may come to.
    tokens: (i64, i64),
    /// Whether steps are to be recorded.
    records: bool,
    /// Whether the device is to find the largest logits.
    finds_best: bool,
    /// Steps of this batch.
    steps: u32,
    fixed: Option<Fixed>,
}

/// A step on a state of constant shape, which is the stepper's.
#[derive(Debug)]
struct Fixed {
    /// Where it reads the tokens, `[batch, 1]`.
    ids: Tensor,
    /// Steps until a cache has no place left.
    left: i64,
    /// Whether it has run, so that its kernels are there.
    warm: bool,
    graph: Option<(Graph, Advanced)>,
}

impl<'a> Stepper<'a> {
    /// `rows` sequences at `state`, of at most `tokens.0` text tokens so far and `tokens.1` at the end.
    pub(super) fn new(
        model: &'a Model,
        initial: &'a ModelState,
        state: ModelState,
        rows: usize,
        tokens: (i64, i64),
        (records, finds_best): (bool, bool),
    ) -> Self {
        let records = records && can_record(model);
        Self { model, initial, state, rows, tokens, records, finds_best, steps: 0, fixed: None }
    }

    /// One token further: row `i` of the new batch goes on from row `from[i]` and reads `tokens[i]`.
    pub(super) fn advance(&mut self, from: &[i64], tokens: &[i64]) -> Result<Advanced> {
        let is_same = from.len() == self.rows && from.iter().enumerate().all(|(i, &row)| i as i64 == row);
        if !is_same {
            let device = self.model.options().device;
            let chosen = to_device(&Tensor::f_from_slice(from)?, device)?;
            self.state = self.state.select(&chosen, self.rows as i64)?;
            (self.rows, self.steps, self.fixed) = (from.len(), 0, None);
        }
        self.tokens.0 += 1;
        self.steps = self.steps.saturating_add(1);
        let ids = Tensor::f_from_slice(tokens)?.f_view([-1, 1])?;
        if self.records && self.steps > WARM_UP {
            if let Some(advanced) = self.fixed_step(&ids)? {
                return Ok(advanced);
            }
            // The state is as it was before the step: what failed only recorded.
            (self.records, self.fixed) = (false, None);
        }
        let ids = to_device(&ids, self.model.options().device)?;
        let (hidden, after) = self.model.forward(&ids, &self.state, self.initial, SpanInput::default())?;
        self.state = after;
        Advanced::of(&self.model.head(&hidden)?.f_select(1, 0)?, self.finds_best)
    }

    /// A step on a state of constant shape; nothing where it could not be recorded.
    fn fixed_step(&mut self, ids: &Tensor) -> Result<Option<Advanced>> {
        if self.fixed.as_ref().is_none_or(|fixed| fixed.left == 0) {
            self.make_places()?;
        }
        let (model, initial, state, finds_best) = (self.model, self.initial, &self.state, self.finds_best);
        let Some(fixed) = &mut self.fixed else {
            return Err(torch_bridge::Error::other("a step without places"));
        };
        fixed.ids.f_copy_(&to_device(ids, model.options().device)?)?;
        let step = |ids: &Tensor| -> Result<Advanced> {
            let (hidden, after) = model.forward(ids, state, initial, SpanInput::default())?;
            let advanced = Advanced::of(&model.head(&hidden)?.f_select(1, 0)?, finds_best)?;
            fixed::write_back(model.plan(), state, &after)?;
            Ok(advanced)
        };
        if !fixed.warm {
            let advanced = step(&fixed.ids)?;
            (fixed.warm, fixed.left) = (true, fixed.left - 1);
            return Ok(Some(advanced));
        }
        if fixed.graph.is_none() {
            // A pool of its own: that of a graph that is gone cannot be used again.
            match Graph::record(Pool::new()?, || step(&fixed.ids)) {
                Ok(recorded) => fixed.graph = Some(recorded),
                Err(error) => {
                    warn(&error.to_string());
                    return Ok(None);
                }
            }
        }
        let Some((graph, advanced)) = &fixed.graph else {
            return Err(torch_bridge::Error::other("a step that was not recorded"));
        };
        graph.replay()?;
        fixed.left -= 1;
        Ok(Some(Advanced {
            logits: advanced.logits.shallow_clone(),
            best: advanced.best.as_ref().map(Tensor::shallow_clone),
        }))
    }

    /// Gives every cache places for the tokens to come: for all of them, or as many again as there are.
    fn make_places(&mut self) -> Result<()> {
        let (now, most) = self.tokens;
        let (capacity, left) = if fixed::is_unbounded(self.model.plan()) {
            let capacity = most.min((2 * now).max(PLACES)).max(now + 1);
            (capacity, capacity - now)
        } else {
            (most, i64::MAX)
        };
        self.state = fixed::padded(self.model.plan(), &self.state, self.rows as i64, capacity)?;
        let options = (Kind::Int64, self.model.options().device);
        let ids = Tensor::f_zeros([self.rows as i64, 1], options)?;
        self.fixed = Some(Fixed { ids, left, warm: false, graph: None });
        Ok(())
    }
}

fn to_device(tensor: &Tensor, device: Device) -> Result<Tensor> {
    if matches!(device, Device::Cuda(_)) {
        to_device_without_waiting(tensor, device)
    } else {
        Ok(tensor.f_to_device(device)?)
    }
}

/// Whether steps of the model can be recorded, on a stream where they can.
fn can_record(model: &Model) -> bool {
    let device = model.options().device;
    if !matches!(device, Device::Cuda(_)) {
        return false;
    }
    let reason = match fixed::obstacle(model.plan()) {
        Some(reason) => reason,
        None => match graph::use_side_stream(device) {
            Ok(()) => return true,
            Err(error) => error.to_string(),
        },
    };
    warn(&reason);
    false
}

fn warn(reason: &str) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        eprintln!("warning: decoding steps are not recorded as CUDA graphs, which may be slow: {reason}");
    });
}
