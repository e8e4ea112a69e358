//! The gradients of one micro-batch: operation by operation, or on a GPU as one recorded CUDA graph.
//!
//! The first micro-batches of a kind (equal shapes) run operation by operation, which compiles kernels and makes the
//! gradients' tensors; then one is recorded, and from there on the values of a micro-batch are copied to where the
//! recorded one lies and the graph is replayed. Both give the same bits. The optimizer and the reading of numbers stay
//! outside: they are few launches, and the device is busy meanwhile.

use tch::{Kind, Tensor};
use torch_bridge::{
    autograd,
    cuda::graph::{Graph, Pool},
    guards::NoGrad,
    memory,
    optim::foreach_zero_,
    panics,
};

use super::TrainLoop;
use crate::{
    data::{Loader, Recordable},
    error::TrainError,
    optimizer,
    task::{Loss, Task},
    trainer::GraphPolicy,
};

/// Runs of a kind of micro-batch before it is recorded.
const WARM_UP: u32 = 2;
/// Kinds that are recorded; more of them run operation by operation.
const MOST: usize = 8;

/// What a micro-batch gave besides gradients.
pub(super) struct MicroBatch {
    /// Its part of the step's mean loss.
    pub(super) mean: Tensor,
    /// The loss and what was measured, without history.
    pub(super) loss: Loss,
}

impl MicroBatch {
    /// The same values at addresses of their own: the next replay writes the graph's.
    fn copied(&self) -> Result<Self, torch_bridge::Error> {
        let mut measured = Vec::with_capacity(self.loss.measured.len());
        for (name, value) in &self.loss.measured {
            measured.push((name.clone(), value.f_detach_copy()?));
        }
        let statistics = self.loss.statistics.f_copy()?;
        let loss = Loss { sum: self.loss.sum.f_detach_copy()?, measured, statistics };
        Ok(Self { mean: self.mean.f_detach_copy()?, loss })
    }
}

/// Recorded micro-batches, and what is known of those that are not.
pub(super) struct Recordings<B> {
    /// Whether to record; why not, once something spoke against it.
    wanted: bool,
    pool: Option<Pool>,
    recorded: Vec<Recorded<B>>,
    /// How often each kind ran that is not recorded.
    runs: Vec<(Kinds, u32)>,
}

/// Shapes, types and variant of a micro-batch: what decides which operations its loss is made of.
type Kinds = (i64, Vec<(Vec<i64>, Kind)>);

struct Recorded<B> {
    kinds: Kinds,
    /// Where the graph reads the micro-batch.
    batch: B,
    /// Where it reads by what the loss is divided, a scalar.
    divisor: Tensor,
    graph: Graph,
    /// Where it writes.
    output: MicroBatch,
}

impl<B: Recordable> Recordings<B> {
    pub(super) fn new(wanted: bool) -> Self {
        Self { wanted, pool: None, recorded: Vec::new(), runs: Vec::new() }
    }

    fn kinds(batch: &B) -> Kinds {
        let shape = |tensor: &&Tensor| (tensor.size(), tensor.kind());
        (batch.variant(), batch.tensors().iter().map(shape).collect())
    }

    /// Counts a run; whether the kind may be recorded now.
    fn count(&mut self, kinds: &Kinds) -> bool {
        let found = self.runs.iter().position(|(known, _)| known == kinds);
        let at = found.unwrap_or_else(|| {
            self.runs.push((kinds.clone(), 0));
            self.runs.len() - 1
        });
        self.runs[at].1 += 1;
        self.runs[at].1 > WARM_UP && self.recorded.len() < MOST
    }

    fn replay(&self, kinds: &Kinds, batch: &B, divisor: &Tensor) -> Option<torch_bridge::Result<MicroBatch>> {
        let recorded = self.recorded.iter().find(|recorded| recorded.kinds == *kinds)?;
        Some(recorded.replay(batch, divisor))
    }
}

impl<B: Recordable> Recorded<B> {
    fn replay(&self, batch: &B, divisor: &Tensor) -> torch_bridge::Result<MicroBatch> {
        let _no_grad = NoGrad::new();
        for (to, from) in self.batch.tensors().into_iter().zip(batch.tensors()) {
            to.shallow_clone().f_copy_(from)?;
        }
        self.divisor.shallow_clone().f_copy_(divisor)?;
        self.graph.replay()?;
        self.output.copied()
    }
}

impl<T: Task, L: Loader<Batch = T::Batch>> TrainLoop<'_, T, L> {
    /// Adds the gradients of a micro-batch's loss, divided by `divisor`, a scalar on the device.
    pub(super) fn micro_batch(
        &mut self,
        batch: &T::Batch,
        divisor: &Tensor,
    ) -> Result<MicroBatch, TrainError> {
        if !self.recordings.wanted {
            return self.run_micro_batch(batch, divisor);
        }
        let kinds = Recordings::kinds(batch);
        if let Some(replayed) = self.recordings.replay(&kinds, batch, divisor) {
            return replayed.map_err(self.torch_error());
        }
        if !self.recordings.count(&kinds) {
            return self.run_micro_batch(batch, divisor);
        }
        let unreached = optimizer::without_gradient(self.task.parameters());
        let recorded = self.record(kinds, batch, divisor, &unreached);
        if recorded.is_err() {
            self.clear_gradients_of(&unreached)?;
        }
        match recorded {
            Ok(recorded) => {
                let replayed = recorded.replay(batch, divisor).map_err(self.torch_error())?;
                self.recordings.recorded.push(recorded);
                Ok(replayed)
            }
            Err(error) if self.run.trainer().cuda_graph == GraphPolicy::Auto => {
                self.recordings = Recordings::new(false);
                self.progress.say(&format!(
                    "the step cannot be recorded as a CUDA graph and runs operation by operation, which may be slow: {error}"
                ));
                self.run_micro_batch(batch, divisor)
            }
            Err(error) => Err(error),
        }
    }

    fn run_micro_batch(&self, batch: &T::Batch, divisor: &Tensor) -> Result<MicroBatch, TrainError> {
        let (torch_error, task_error) = (self.torch_error(), self.task_error());
        let loss = panics::caught(|| {
            let _autocast = self.run.autocast();
            Ok(self.task.loss(batch).map_err(&task_error))
        });
        let loss = loss.map_err(&torch_error)??;
        let run = || -> torch_bridge::Result<MicroBatch> {
            let mean = loss.sum.f_div(&divisor.f_to_kind(loss.sum.kind())?)?;
            autograd::backward(&[&mean], None, false)?;
            let loss = Loss { sum: loss.sum.f_detach()?, ..loss };
            Ok(MicroBatch { mean: mean.f_detach()?, loss })
        };
        run().map_err(&torch_error)
    }

    /// Zeros for the gradients that a failed recording made for the first time: what should have written them never ran.
    fn clear_gradients_of(&self, unreached: &[String]) -> Result<(), TrainError> {
        let torch_error = self.torch_error();
        let mut gradients = Vec::new();
        for parameter in self.task.parameters().trained() {
            let gradient = parameter.tensor.f_grad().map_err(|error| torch_error(error.into()))?;
            if gradient.defined() && unreached.contains(&parameter.plan.name) {
                gradients.push(gradient);
            }
        }
        foreach_zero_(&gradients).map_err(torch_error)
    }

    fn record(
        &mut self,
        kinds: Kinds,
        batch: &T::Batch,
        divisor: &Tensor,
        unreached: &[String],
    ) -> Result<Recorded<T::Batch>, TrainError> {
        let torch_error = self.torch_error();
        let mut prepare = || -> torch_bridge::Result<_> {
            // What the runs so far left in the allocator's hands, the graph's own memory cannot use.
            memory::empty_cache(self.run.device())?;
            let pool = match self.recordings.pool {
                Some(pool) => pool,
                None => *self.recordings.pool.insert(Pool::new()?),
            };
            let mut tensors = Vec::new();
            for tensor in batch.tensors() {
                tensors.push(tensor.f_detach_copy()?);
            }
            Ok((pool, batch.with_tensors(tensors), divisor.f_detach_copy()?))
        };
        let (pool, batch, divisor) = prepare().map_err(&torch_error)?;
        let (graph, output) =
            Graph::record(pool, || self.run_micro_batch(&batch, &divisor).map_err(Unrecorded::Train))
                .map_err(|error| match error {
                    Unrecorded::Train(error) => error,
                    Unrecorded::Torch(error) => torch_error(error),
                })?;
        if optimizer::without_gradient(self.task.parameters()) != unreached {
            return Err(torch_error(torch_bridge::Error::other(
                "a parameter got its first gradient while the step was recorded",
            )));
        }
        Ok(Recorded { kinds, batch, divisor, graph, output })
    }
}

/// Why a recording failed: in what was recorded, or in the recording.
enum Unrecorded {
    Train(TrainError),
    Torch(torch_bridge::Error),
}

impl From<torch_bridge::Error> for Unrecorded {
    fn from(error: torch_bridge::Error) -> Self {
        Self::Torch(error)
    }
}
