//! Launches of the kernels on the matrix unit.

use tch::{Kind, Tensor};
use torch_bridge::{Error, Result};

use super::{CELL, Gradients, Sizes, Slstm, Trace, cells, states, strided};
use crate::cuda::launch::{Shape, blocks};
use crate::cuda::sums::Sums;
use crate::cuda::{COMMON, Define, HALF, Header, Loaded, Unavailable, Value, program};

static FUSED: Header = Header { name: "fused.cuh", text: include_str!("../fused.cuh") };

program!(FORWARD = "slstm/forward.cu", headers: &[&COMMON, &CELL, &HALF, &FUSED], variants: VARIANTS);
program!(BACKWARD = "slstm/backward.cu", headers: &[&COMMON, &CELL, &HALF, &FUSED], variants: VARIANTS);
program!(RECURRENT = "slstm/recurrent.cu", headers: &[&COMMON, &HALF], variants: &[&[width(64)], &[width(16)], &[width(128)]]);

/// Each width of a lane, dtype and switch at least once, the widest heads too.
const VARIANTS: &[&[Define]] = &[
    &variant(64, 1, false, "float"),
    &variant(64, 2, true, "bf16"),
    &variant(16, 1, true, "float"),
    &variant(128, 2, true, "float"),
    &variant(128, 1, false, "bf16"),
    &variant(112, 2, false, "float"),
];

const fn width(head_dim: i64) -> Define {
    ("HEAD_DIM", Value::Int(head_dim))
}

const fn variant(head_dim: i64, cells: i64, masks: bool, recurrent: &'static str) -> [Define; 4] {
    [
        width(head_dim),
        ("CELLS", Value::Int(cells)),
        ("MASKS", Value::Int(masks as i64)),
        ("RECURRENT", Value::Text(recurrent)),
    ]
}

/// The widest heads: more, and R does not fit into the registers of a block.
const WIDEST: i64 = 128;
/// Tokens that the sum for the gradient of R goes over at a time, and at least, and its blocks on a multiprocessor.
const GROUP: i64 = 32;
const PART: i64 = 128;
const BLOCKS: i64 = 4;

/// The kernels of one call, loaded.
#[derive(Clone, Copy)]
pub(super) struct Fused {
    forward: &'static Loaded,
    /// Only where gradients may be asked for.
    backward: Option<Backward>,
    /// Sequences of a lane.
    cells: i64,
    recurrent: Kind,
}

#[derive(Clone, Copy)]
struct Backward {
    loaded: &'static Loaded,
    recurrent: &'static Loaded,
    sums: Sums,
}

impl Fused {
    /// Whether there are kernels for heads of this size.
    pub(super) fn takes(head_dim: i64) -> bool {
        head_dim <= WIDEST && head_dim.rem_euclid(16) == 0
    }

    pub(super) fn find(args: &Slstm<'_>, graph: bool) -> Result<Self, Unavailable> {
        let (sizes, device) = (Sizes::of(args), args.gates.device());
        let recurrent = if args.recurrent.kind() == Kind::BFloat16 { Kind::BFloat16 } else { Kind::Float };
        let name = if recurrent == Kind::BFloat16 { "bf16" } else { "float" };
        let masks = args.resets.is_some() || args.valid.is_some();
        let load = |cells: i64| -> Result<Self, Unavailable> {
            let defines = variant(sizes.head_dim, cells, masks, name);
            let backward = graph
                .then(|| -> Result<_, Unavailable> {
                    let loaded = BACKWARD.on(device, &defines)?;
                    let product = RECURRENT.on(device, &[width(sizes.head_dim)])?;
                    Ok(Backward { loaded, recurrent: product, sums: Sums::on(device)? })
                })
                .transpose()?;
            Ok(Self { forward: FORWARD.on(device, &defines)?, backward, cells, recurrent })
        };
        // Two sequences a lane once the card is full; with one, a token takes less time.
        let narrow = load(1)?;
        let full = sizes.heads * ((sizes.batch + 3) / 4) > 2 * narrow.forward.multiprocessors();
        let found = if full { load(2)? } else { narrow };
        let bytes = [
            Some((found.forward, "slstm_forward_shared")),
            found.backward.map(|backward| (backward.loaded, "slstm_backward_shared")),
        ];
        for (loaded, name) in bytes.into_iter().flatten() {
            if shared(loaded, name).map_err(|error| error.to_string())? > loaded.shared_bytes() {
                return Err("slstm does not fit into this card's shared memory".into());
            }
        }
        Ok(found)
    }

    fn tiles(&self, sizes: &Sizes) -> i64 {
        (sizes.batch + 4 * self.cells - 1) / (4 * self.cells)
    }

    fn shape(&self, sizes: &Sizes, threads: i64, shared: u32) -> Result<Shape> {
        let grid = [blocks(sizes.heads, 1)?, blocks(self.tiles(sizes), 1)?, 1];
        Ok(Shape { grid, block: [threads as u32, 1, 1], shared })
    }

    /// `y`, the last state and, if it is to be kept, the trace.
    pub(super) fn forward(&self, args: &Slstm<'_>, keep: bool) -> Result<(Tensor, Tensor, Option<Trace>)> {
        let (sizes, device) = (Sizes::of(args), args.gates.device());
        let element = (Kind::BFloat16, device);
        let y = Tensor::empty(sizes.outputs(), element);
        let last = Tensor::empty(sizes.state(), (Kind::Float, device));
        let trace = keep.then(|| {
            // 16 bytes for each lane and cell.
            let size = [
                self.tiles(&sizes),
                sizes.time,
                sizes.heads,
                sizes.head_dim.div_euclid(8),
                self.cells,
                32,
                4,
            ];
            Trace {
                records: Tensor::empty(size, (Kind::Float, device)),
                before: Tensor::empty(sizes.outputs(), element),
            }
        });
        let launch = strided(self.forward.kernel("slstm_forward")?, args.gates, Kind::BFloat16)
            .optional(args.bias, Kind::Float)
            .tensor(args.recurrent, self.recurrent);
        let launch = states(states(launch, Some(args.initial_state)), args.reset_state)
            .optional(args.resets, Kind::Bool)
            .optional(args.valid, Kind::Bool)
            .tensor(&y, Kind::BFloat16)
            .tensor(&last, Kind::Float)
            .optional(trace.as_ref().map(|trace| &trace.records), Kind::Float)
            .optional(trace.as_ref().map(|trace| &trace.before), Kind::BFloat16)
            .i64(sizes.batch)
            .i64(sizes.time)
            .i64(sizes.heads);
        let shape = self.shape(&sizes, 4 * sizes.head_dim, shared(self.forward, "slstm_forward_shared")?)?;
        // SAFETY: the kernel's parameters in its order; `check` has seen to the operands' shapes, `Operands` to their
        // dtypes and strides, and the rest was made to the documented ones here.
        unsafe { launch.run(shape) }?;
        Ok((y, last, trace))
    }

    pub(super) fn backward(
        &self,
        args: &Slstm<'_>,
        trace: &Trace,
        last: &Tensor,
        dy: &Tensor,
        dlast: Option<&Tensor>,
    ) -> Result<Gradients> {
        let kernels = self.backward.ok_or_else(|| Error::other("slstm: no backward was loaded"))?;
        let (sizes, device) = (Sizes::of(args), args.gates.device());
        let float = (Kind::Float, device);
        let gates = Tensor::empty(sizes.gates(), (Kind::BFloat16, device));
        let start = Tensor::empty(sizes.state(), float);
        let reset = args.reset_state.map(|_| Tensor::empty(sizes.state(), float));
        let launch = strided(kernels.loaded.kernel("slstm_backward")?, dy, Kind::BFloat16)
            .optional(dlast, Kind::Float)
            .tensor(args.recurrent, self.recurrent)
            .tensor(last, Kind::Float)
            .tensor(&trace.records, Kind::Float);
        let launch = cells(cells(launch, Some(args.initial_state)), args.reset_state)
            .optional(args.resets, Kind::Bool)
            .optional(args.valid, Kind::Bool)
            .tensor(&gates, Kind::BFloat16)
            .tensor(&start, Kind::Float)
            .optional(reset.as_ref(), Kind::Float)
            .i64(sizes.batch)
            .i64(sizes.time)
            .i64(sizes.heads);
        let bytes = shared(kernels.loaded, "slstm_backward_shared")?;
        // SAFETY: as above; the upstream gradients have the shapes of the outputs.
        unsafe { launch.run(self.shape(&sizes, 2 * sizes.head_dim, bytes)?) }?;

        let (tokens, rows) = (sizes.batch * sizes.time, 4 * sizes.heads);
        let wanted = (kernels.loaded.multiprocessors() * BLOCKS / rows).clamp(1, (tokens / PART).max(1));
        let split = (tokens / wanted / GROUP + 1) * GROUP;
        let splits = (tokens + split - 1) / split;
        let matrices = Tensor::empty([splits, rows, sizes.head_dim, sizes.head_dim], float);
        let biases = Tensor::empty([splits, rows, sizes.head_dim], float);
        let launch = kernels
            .recurrent
            .kernel("slstm_recurrent")?
            .tensor(&gates, Kind::BFloat16)
            .tensor(&trace.before, Kind::BFloat16)
            .tensor(&matrices, Kind::Float)
            .tensor(&biases, Kind::Float)
            .i64(tokens)
            .i64(sizes.heads)
            .i64(split);
        let shape = Shape {
            grid: [blocks(rows, 1)?, blocks(splits, 1)?, 1],
            block: [2 * sizes.head_dim as u32, 1, 1],
            shared: shared(kernels.recurrent, "slstm_recurrent_shared")?,
        };
        // SAFETY: as above.
        unsafe { launch.run(shape) }?;
        let sum = |x: &Tensor| -> Result<Tensor> {
            let columns = x.numel() as i64 / splits;
            kernels.sums.of(x, [1, splits, columns])
        };
        Ok(Gradients {
            gates,
            recurrent: sum(&matrices)?.f_view([4, sizes.heads, sizes.head_dim, sizes.head_dim])?,
            bias: sum(&biases)?.f_view([4, sizes.heads, sizes.head_dim])?,
            start,
            reset,
        })
    }
}

/// What a block has of shared memory, as the source says.
fn shared(loaded: &Loaded, name: &'static str) -> Result<u32> {
    u32::try_from(loaded.constant(name)?).map_err(Error::other)
}
