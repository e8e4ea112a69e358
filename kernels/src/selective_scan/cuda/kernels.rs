//! Which kernels a call takes, and how they are launched.

use tch::Kind;
use torch_bridge::Result;

use super::SelectiveScan;
use crate::cuda::launch::{Shape, blocks};
use crate::cuda::sums::Sums;
use crate::cuda::{self, COMMON, Define, Header, Loaded, Unavailable, Value, program};

static SCAN: Header = Header { name: "scan.cuh", text: include_str!("../scan.cuh") };

program!(FORWARD = "selective_scan/forward.cu", headers: &[&COMMON, &SCAN], variants: VARIANTS);
program!(BACKWARD = "selective_scan/backward.cu", headers: &[&COMMON, &SCAN], variants: VARIANTS);
program!(COMBINE = "selective_scan/combine.cu", variants: &[&[Elements::BFloat16.define()], &[Elements::Float.define()]]);

/// The dtype that a call reads and writes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Elements {
    BFloat16,
    Float,
}

impl Elements {
    pub(super) const fn define(self) -> Define {
        ("ELEMENT", Value::Text(if matches!(self, Self::BFloat16) { "bf16" } else { "float" }))
    }

    /// Tokens from one kept state to the next. With twice as many the backward has room for one block in place of two on
    /// a Hopper and for none on smaller cards.
    pub(super) const fn checkpoint(self) -> i64 {
        if matches!(self, Self::BFloat16) { 16 } else { 8 }
    }

    pub(super) fn kind(self) -> Kind {
        if self == Self::BFloat16 { Kind::BFloat16 } else { Kind::Float }
    }
}

/// What a call computes in: bf16 if u, delta and z are. (b and c are small and often come wider, from a norm; they
/// follow.) Nothing for f64, which has no kernel.
pub(super) fn of_elements(args: &SelectiveScan<'_>) -> Option<Elements> {
    let narrow =
        [Some(args.u), Some(args.delta), args.z].into_iter().flatten().all(|x| x.kind() == Kind::BFloat16);
    let found = if narrow { Elements::BFloat16 } else { Elements::Float };
    (args.u.kind() != Kind::Double).then_some(found)
}

/// Each dtype, number of states and switch at least once.
const VARIANTS: &[&[Define]] = &[
    &variant(Elements::BFloat16, 16, 1, [1, 1, 0]),
    &variant(Elements::BFloat16, 16, 1, [1, 1, 1]),
    &variant(Elements::BFloat16, 8, 1, [0, 1, 1]),
    &variant(Elements::BFloat16, 64, 4, [1, 0, 0]),
    &variant(Elements::Float, 16, 1, [1, 1, 1]),
    &variant(Elements::Float, 16, 2, [1, 1, 0]),
    &variant(Elements::Float, 32, 2, [0, 0, 0]),
];

const fn variant(
    elements: Elements,
    states: i64,
    lanes: i64,
    [gated, softplus, masks]: [i64; 3],
) -> [Define; 7] {
    [
        elements.define(),
        ("STATES", Value::Int(states)),
        ("LANES", Value::Int(lanes)),
        ("CHECKPOINT", Value::Int(elements.checkpoint())),
        ("GATED", Value::Int(gated)),
        ("SOFTPLUS", Value::Int(softplus)),
        ("MASKS", Value::Int(masks)),
    ]
}

/// Threads of a block of the scan.
const THREADS: i64 = 128;
/// Of a block of the others.
const SMALL: i64 = 256;
/// What a grid may have in y and z.
const ROWS: i64 = 65_535;
/// A segment has at least so many tokens; fewer, and joining the segments costs more than they save.
const SEGMENT: i64 = 256;
/// Blocks of the scan that a multiprocessor has room for.
const BLOCKS: i64 = 2;

/// The kernels of one call, loaded, and how they are to be launched.
#[derive(Clone, Copy)]
pub(super) struct Kernels {
    pub(super) element: Kind,
    /// Tokens from one kept state to the next.
    pub(super) checkpoint: i64,
    /// `d_state` as the kernels have it.
    pub(super) states: i64,
    pub(super) forward: Pass,
    /// Only where gradients may be asked for.
    pub(super) backward: Option<Pass>,
    pub(super) combine: &'static Loaded,
    pub(super) sums: Sums,
}

/// One direction.
#[derive(Clone, Copy)]
pub(super) struct Pass {
    pub(super) loaded: &'static Loaded,
    /// Lanes that share a channel.
    pub(super) lanes: i64,
    reverse: bool,
}

impl Kernels {
    pub(super) fn find(args: &SelectiveScan<'_>, graph: bool) -> Result<Self, Unavailable> {
        let (device, n_states) = (args.u.device(), args.a.size()[1]);
        let elements = of_elements(args).ok_or("selective_scan has no CUDA kernel for float64")?;
        let states = [8, 16, 32, 64].into_iter().find(|states| n_states <= *states);
        let states =
            states.ok_or_else(|| format!("selective_scan has no CUDA kernel for d_state {n_states}"))?;
        if args.u.size()[0] > ROWS {
            return Err(format!("selective_scan has no CUDA kernel for more than {ROWS} rows").into());
        }
        let switches = [args.z.is_some(), args.delta_softplus, args.resets.is_some() || args.valid.is_some()];
        let load = |program: &'static cuda::Program, lanes| {
            let defines = variant(elements, states, lanes, switches.map(i64::from));
            program.on(device, &defines).map(|loaded| Pass {
                loaded,
                lanes,
                reverse: std::ptr::eq(program, &raw const BACKWARD),
            })
        };
        // A thread has 16 states, or 8, with which a block is smaller.
        let lanes = [(states / 16).max(1), (states / 8).min(4)];
        let mut backward = None;
        if graph {
            for lanes in lanes {
                let pass = load(&BACKWARD, lanes)?;
                let bytes = shared_bytes(pass.loaded).map_err(|error| error.to_string())?;
                if bytes <= pass.loaded.shared_bytes() {
                    backward = Some(pass);
                    break;
                }
            }
            if backward.is_none() {
                return Err(
                    "the backward of selective_scan needs more shared memory than this card has".into()
                );
            }
        }
        Ok(Self {
            element: elements.kind(),
            checkpoint: elements.checkpoint(),
            states,
            forward: load(&FORWARD, lanes[0])?,
            backward,
            combine: COMBINE.on(device, &[elements.define()])?,
            sums: Sums::on(device)?,
        })
    }
}

/// Dynamic shared memory of a block of the backward.
pub(super) fn shared_bytes(backward: &Loaded) -> Result<u32> {
    backward.constant("selective_scan_backward_shared").map(i32::unsigned_abs)
}

/// The sizes of one call and how its time is cut.
pub(super) struct Sizes {
    pub(super) batch: i64,
    pub(super) time: i64,
    pub(super) d_inner: i64,
    pub(super) states: i64,
    /// Tokens of a segment.
    pub(super) segment: i64,
    pub(super) segments: i64,
}

impl Sizes {
    /// A batch that leaves places on the card empty is cut in time, at the price of a pass more.
    pub(super) fn of(args: &SelectiveScan<'_>, kernels: &Kernels, pass: Pass) -> Self {
        let size = args.u.size();
        let (batch, time, d_inner) = (size[0], size[1], size[2]);
        let blocks = batch * (d_inner * pass.lanes + THREADS - 1).div_euclid(THREADS);
        let places = BLOCKS * pass.loaded.multiprocessors();
        let length = if pass.reverse { cut_reverse(time, blocks, places) } else { cut(time, blocks, places) };
        let segment = (length + kernels.checkpoint - 1).div_euclid(kernels.checkpoint) * kernels.checkpoint;
        let segments = (time + segment - 1).div_euclid(segment);
        Self { batch, time, d_inner, states: kernels.states, segment, segments }
    }

    pub(super) fn shape(&self, pass: Pass, shared: u32) -> Result<Shape> {
        let grid =
            [blocks(self.d_inner * pass.lanes, THREADS)?, blocks(self.batch, 1)?, blocks(self.segments, 1)?];
        Ok(Shape { grid, block: [THREADS as u32, 1, 1], shared })
    }

    /// Elements of a state of one row.
    pub(super) fn state(&self) -> i64 {
        self.d_inner * self.states
    }

    /// Room for a state of every row.
    pub(super) fn states_of_rows(&self) -> [i64; 3] {
        [self.batch, self.d_inner, self.states]
    }

    /// Room for a state of every segment.
    pub(super) fn states_of_segments(&self) -> [i64; 4] {
        [self.batch, self.segments, self.d_inner, self.states]
    }
}

/// Tokens of a segment, before rounding, for a scan of `time` tokens that has `blocks` blocks on a card with so many
/// `places` for them: more segments where half of the places would be empty.
fn cut(time: i64, blocks: i64, places: i64) -> i64 {
    let segments = if 2 * blocks > places { 1 } else { (places / blocks).min(time / SEGMENT).clamp(1, ROWS) };
    (time + segments - 1).div_euclid(segments)
}

/// As [`cut`], for the backward. Where some multiprocessors would have two blocks and some one, a long first segment and a
/// short last one, for the places that are left, take the least time.
fn cut_reverse(time: i64, blocks: i64, places: i64) -> i64 {
    let left = places - blocks;
    if 2 * blocks > places && left > 0 && time >= 4 * SEGMENT {
        // The least whole number with left * long >= blocks.
        let long = (blocks + left - 1).div_euclid(left);
        return time * long / (long + 1);
    }
    cut(time, blocks, places)
}

pub(super) fn small(columns: i64, outer: i64) -> Result<Shape> {
    Ok(Shape {
        grid: [blocks(columns, SMALL)?, blocks(outer, 1)?, 1],
        block: [SMALL as u32, 1, 1],
        shared: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_cut_where_that_fills_the_card() {
        // 8 x 2048 x 3200 on an H100; 1 x 16384 x 1536; 2 x 8192 x 3200; one token.
        assert_eq!((cut(2_048, 200, 264), cut_reverse(2_048, 200, 264)), (2_048, 1_638));
        assert_eq!((cut(16_384, 12, 264), cut_reverse(16_384, 12, 264)), (745, 745));
        assert_eq!((cut(8_192, 50, 264), cut_reverse(8_192, 50, 264)), (1_639, 1_639));
        assert_eq!((cut(1, 1, 264), cut_reverse(1, 200, 264)), (1, 1));
        for time in [1, 15, 16, 17, 1_024, 2_100, 65_537, 100_000_000] {
            for blocks in [1, 7, 50, 132, 133, 263, 264, 10_000] {
                for length in [cut(time, blocks, 264), cut_reverse(time, blocks, 264)] {
                    let segments = (time + length - 1) / length;
                    assert!((1..=time).contains(&length) && (1..=ROWS).contains(&segments));
                }
            }
        }
    }
}
