//! The programs of the mLSTM, and which variants a call takes.

use tch::{Device, Kind, Tensor};
use torch_bridge::Result;

use crate::cuda::launch::Launch;
use crate::cuda::{COMMON, Define, Header, Loaded, Unavailable, Value, program};
use crate::mlstm::Mlstm;

static TILES: Header = Header { name: "tiles.cuh", text: include_str!("../tiles.cuh") };

program!(GATES = "mlstm/gates.cu", headers: &[&COMMON, &TILES], variants: CHUNKS);
program!(GATES_BACKWARD = "mlstm/gates_backward.cu", headers: &[&COMMON, &TILES], variants: CHUNKS);
program!(STATES = "mlstm/states.cu", headers: &[&COMMON, &TILES], variants: STATE_VARIANTS);
program!(OUTPUTS = "mlstm/forward.cu", headers: &[&COMMON, &TILES], variants: OUTPUT_VARIANTS);
program!(QUERIES = "mlstm/queries.cu", headers: &[&COMMON, &TILES], variants: BACKWARD_VARIANTS);
program!(KEYS = "mlstm/keys.cu", headers: &[&COMMON, &TILES], variants: BACKWARD_VARIANTS);

const CHUNKS: &[&[Define]] = &[&[chunk_of(128)], &[chunk_of(64)]];
const STATE_VARIANTS: &[&[Define]] = &[
    &state([128, 128], false, 128, false),
    &state([128, 128], false, 128, true),
    &state([128, 128], true, 128, false),
    &state([128, 128], true, 64, true),
    &state([64, 256], true, 64, true),
];
const OUTPUT_VARIANTS: &[&[Define]] =
    &[&output([128, 128], false, 256), &output([128, 96], true, 64), &output([64, 256], true, 128)];
const BACKWARD_VARIANTS: &[&[Define]] =
    &[&backward([128, 128], false, 3), &backward([128, 32], true, 3), &backward([64, 256], true, 3)];

const fn chunk_of(tokens: i64) -> Define {
    ("CHUNK", Value::Int(tokens))
}

const fn flag(name: &'static str, value: bool) -> Define {
    (name, Value::Int(value as i64))
}

const fn output([chunk, width]: [i64; 2], masks: bool, tile: i64) -> [Define; 4] {
    [chunk_of(chunk), ("WIDTH", Value::Int(width)), flag("MASKS", masks), ("TILE", Value::Int(tile))]
}

const fn state(sizes: [i64; 2], masks: bool, tile: i64, backward: bool) -> [Define; 5] {
    let [chunk, width, masks, tile] = output(sizes, masks, tile);
    [chunk, width, masks, tile, flag("BACKWARD", backward)]
}

const fn backward([chunk, width]: [i64; 2], masks: bool, stages: i64) -> [Define; 4] {
    [chunk_of(chunk), ("WIDTH", Value::Int(width)), flag("MASKS", masks), ("STAGES", Value::Int(stages))]
}

/// The widest query, what it is rounded up to, and what vectors are made of.
const WIDEST: i64 = 256;
const WIDTH_STEP: i64 = 32;
pub(super) const EIGHT: i64 = 8;
/// The widest query of which 128 tokens fit into a block.
const WIDEST_OF_LONG_CHUNKS: i64 = 128;
/// Tiles of states from which on wide ones fill a card.
const MANY_TILES: i64 = 128;
/// Bytes of a row of a panel, and its columns.
const ROW: i64 = 128;
const PANEL: i64 = 64;

/// Sizes of a call and of its kernels.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) batch: i64,
    pub(super) time: i64,
    pub(super) heads: i64,
    pub(super) d_qk: i64,
    pub(super) d_v: i64,
    /// Tokens of a chunk, and chunks.
    pub(super) chunk: i64,
    pub(super) chunks: i64,
    width: i64,
    output_tile: i64,
    state_tile: i64,
    stages: i64,
}

impl Sizes {
    fn of(args: &Mlstm<'_>) -> Option<Self> {
        let size = args.q.size();
        let [batch, time, heads, d_qk] = [size[0], size[1], size[2], size[3]];
        let d_v = args.v.size()[3];
        let width = (d_qk + WIDTH_STEP - 1) / WIDTH_STEP * WIDTH_STEP;
        let items = batch * heads * time;
        (d_qk % EIGHT == 0 && d_v % EIGHT == 0 && width <= WIDEST && items < 1 << 36).then(|| {
            let narrow = width <= WIDEST_OF_LONG_CHUNKS;
            let widest = if narrow { 4 * PANEL } else { 2 * PANEL };
            let many = batch * heads * ((d_v + 2 * PANEL - 1) / (2 * PANEL)) >= MANY_TILES;
            let state_tile = if many && narrow && d_v > PANEL { 2 * PANEL } else { PANEL };
            let sizes = Self {
                batch,
                time,
                heads,
                d_qk,
                d_v,
                chunk: 0,
                chunks: 0,
                width,
                output_tile: ((d_v + PANEL - 1) / PANEL * PANEL).min(widest),
                state_tile,
                stages: 3,
            };
            sizes.cut(if narrow { 128 } else { 64 }, 3)
        })
    }

    fn cut(self, chunk: i64, stages: i64) -> Self {
        Self { chunk, chunks: (self.time + chunk - 1) / chunk, stages, ..self }
    }

    /// With chunks and stages that fit into a block's shared memory.
    fn fitted(self, bytes: i64) -> Option<Self> {
        let longest = self.chunk;
        let cuts = [(128, 3), (64, 3), (64, 2)].into_iter().filter(|(chunk, _)| *chunk <= longest);
        cuts.map(|(chunk, stages)| self.cut(chunk, stages))
            .filter_map(|sizes| {
                let tiles = (1..=self.output_tile / PANEL).rev();
                tiles
                    .map(|tiles| Self { output_tile: tiles * PANEL, ..sizes })
                    .find(|sizes| sizes.outputs_bytes() <= bytes)
            })
            .find(|sizes| {
                let states = sizes.states_bytes().max(sizes.states_backward_bytes());
                states.max(sizes.queries_bytes()).max(sizes.keys_bytes()) <= bytes
            })
    }

    pub(super) fn rows(&self) -> i64 {
        self.batch * self.heads
    }

    /// Time rounded up to chunks.
    pub(super) fn padded(&self) -> i64 {
        self.chunks * self.chunk
    }

    pub(super) fn scale(&self) -> f32 {
        (self.d_qk as f64).powf(-0.5) as f32
    }

    pub(super) fn output_tiles(&self) -> i64 {
        (self.d_v + self.output_tile - 1) / self.output_tile
    }

    pub(super) fn state_tiles(&self) -> i64 {
        (self.d_v + self.state_tile - 1) / self.state_tile
    }

    fn panels(&self) -> i64 {
        (self.width + PANEL - 1) / PANEL
    }

    fn rows_bytes(&self) -> i64 {
        self.panels() * self.chunk * ROW
    }

    /// Of tokens and weights in `mlstm_states`.
    fn step_bytes(&self) -> i64 {
        (self.panels() + self.state_tile / PANEL) * 64 * ROW + 768
    }

    pub(super) fn states_bytes(&self) -> i64 {
        3 * self.step_bytes()
    }

    /// The state itself is there, too.
    pub(super) fn states_backward_bytes(&self) -> i64 {
        2 * self.step_bytes() + self.panels() * (self.state_tile / 16) * 2048
    }

    pub(super) fn outputs_bytes(&self) -> i64 {
        let panels = self.output_tile / PANEL;
        2 * self.rows_bytes() + panels * (self.chunk + self.width) * ROW + 28 * self.chunk + 4 * self.width
    }

    fn backward_bytes(&self) -> i64 {
        2 * self.rows_bytes() + self.stages * (2 * self.chunk * ROW + self.width * ROW)
    }

    pub(super) fn queries_bytes(&self) -> i64 {
        self.backward_bytes() + 8 * self.chunk + 8 * self.width
    }

    pub(super) fn keys_bytes(&self) -> i64 {
        self.backward_bytes() + 20 * self.chunk + 4 * self.width
    }
}

/// The kernels of one call, loaded.
#[derive(Clone, Copy)]
pub(super) struct Kernels {
    pub(super) sizes: Sizes,
    pub(super) gates: &'static Loaded,
    pub(super) states: &'static Loaded,
    pub(super) outputs: &'static Loaded,
    /// Only where gradients may be asked for.
    pub(super) backward: Option<Backward>,
}

#[derive(Clone, Copy)]
pub(super) struct Backward {
    pub(super) gates: &'static Loaded,
    pub(super) states: &'static Loaded,
    pub(super) queries: &'static Loaded,
    pub(super) keys: &'static Loaded,
}

impl Kernels {
    pub(super) fn find(args: &Mlstm<'_>, graph: bool) -> Result<Self, Unavailable> {
        let device = args.q.device();
        let sizes = Sizes::of(args).ok_or_else(|| {
            format!(
                "mlstm has CUDA kernels for widths that are multiples of {EIGHT}, of queries up to {WIDEST}"
            )
        })?;
        // Any program knows the card.
        let shared = GATES.on(device, &[chunk_of(64)])?.shared_bytes();
        let sizes = sizes
            .fitted(shared.into())
            .ok_or_else(|| format!("mlstm: queries of {} need more shared memory", sizes.d_qk))?;
        let masks = args.resets.is_some() || args.valid.is_some();
        let (of, chunk) = ([sizes.chunk, sizes.width], [chunk_of(sizes.chunk)]);
        let states = |back| STATES.on(device, &state(of, masks, sizes.state_tile, back));
        let defines = backward(of, masks, sizes.stages);
        let find = || {
            Ok::<_, Unavailable>(Backward {
                gates: GATES_BACKWARD.on(device, &chunk)?,
                states: states(true)?,
                queries: QUERIES.on(device, &defines)?,
                keys: KEYS.on(device, &defines)?,
            })
        };
        Ok(Self {
            sizes,
            gates: GATES.on(device, &chunk)?,
            states: states(false)?,
            outputs: OUTPUTS.on(device, &output(of, masks, sizes.output_tile))?,
            backward: graph.then(find).transpose()?,
        })
    }
}

/// An operand `[batch, time, heads, ..]`: its address and its strides over these.
pub(super) fn tokens<'a>(launch: Launch<'a>, x: &'a Tensor, kind: Kind) -> Launch<'a> {
    x.stride().iter().take(3).fold(launch.tensor(x, kind), |launch, stride| launch.i64(*stride))
}

/// A bf16 state `[batch or 1, ..]` with its stride over the batch, 0 where all rows share it.
pub(super) fn rounded_state<'a>(launch: Launch<'a>, x: Option<&'a Tensor>) -> Launch<'a> {
    let stride = x.map_or(0, |x| if x.size()[0] == 1 { 0 } else { x.stride()[0] });
    launch.optional(x, Kind::BFloat16).i64(stride)
}

/// `x [batch, time, heads, d]` where vectors of eight may begin at every row.
pub(super) fn aligned(x: &Tensor) -> Result<Tensor> {
    let stride = x.stride();
    let fits = stride[3] == 1 && stride[..3].iter().all(|stride| stride % EIGHT == 0);
    Ok(if fits && x.data_ptr().addr().is_multiple_of(16) {
        x.shallow_clone()
    } else if x.is_contiguous() {
        x.copy()
    } else {
        x.f_contiguous()?
    })
}

/// A new tensor, of f32.
pub(super) fn floats(shape: &[i64], device: Device) -> Result<Tensor> {
    Ok(Tensor::f_empty(shape, (Kind::Float, device))?)
}

/// A new tensor, of bf16.
pub(super) fn halves(shape: &[i64], device: Device) -> Result<Tensor> {
    Ok(Tensor::f_empty(shape, (Kind::BFloat16, device))?)
}
