//! The products on CUDA devices: up to 16 rows in bf16.

use tch::{Kind, Tensor};
use torch_bridge::{Error, Result};

use super::QuantisedWeight;
use crate::cuda::launch::{Shape, blocks};
use crate::cuda::{self, COMMON, Define, HALF, Loaded, Value, program};

program!(ROWS = "weight_only_linear/rows.cu", headers: &[&COMMON, &HALF], variants: VARIANTS);

/// Each number of bits, group, tile and split at least once.
const VARIANTS: &[&[Define]] = &[
    &variant([8, 128, 1, 4]),
    &variant([8, 128, 2, 1]),
    &variant([4, 128, 1, 8]),
    &variant([4, 64, 2, 2]),
    &variant([4, 32, 1, 1]),
    &variant([4, 32, 2, 4]),
];

const fn variant([bits, group, tiles, split]: [i64; 4]) -> [Define; 4] {
    [
        ("BITS", Value::Int(bits)),
        ("GROUP", Value::Int(group)),
        ("TILES", Value::Int(tiles)),
        ("SPLIT", Value::Int(split)),
    ]
}

/// Rows that a tile of the matrix unit has, and the most rows that there are kernels for.
const TILE: i64 = 8;
const MOST: i64 = 16;
/// Warps that keep a large card's memory busy.
const WARPS: i64 = 132 * 16;
/// What one block may have of shared memory on every card.
const SHARED: i64 = 48 * 1024;

/// As [`weight_only_linear`](super::weight_only_linear); nothing where the weight is to be read back.
pub(super) fn quantised(x: &Tensor, weight: &QuantisedWeight) -> Result<Option<Tensor>> {
    let (width, out) = (weight.in_features(), weight.out_features());
    let rows = x.numel() as i64 / width;
    let (bits, group, scale, zero) = match weight {
        QuantisedWeight::Int8 { scale, .. } => (8, 128, scale, None),
        QuantisedWeight::Int4 { scale, zero, .. } => (4, width / scale.size()[1], scale, zero.as_ref()),
    };
    let tiles = (rows + TILE - 1) / TILE;
    let shared = tiles * (4096 + if bits == 4 { 32 * (width / group) } else { 0 });
    let codes = weight.codes();
    let whole = width % 16 == 0 && codes.data_ptr().addr().is_multiple_of(16);
    if x.kind() != Kind::BFloat16 || rows > MOST || shared > SHARED || !whole {
        return Ok(None);
    }
    // As many warps share an output as it takes to keep the memory busy, and as there is something to share.
    let steps = width * bits / 8 / 64;
    let split = split(WARPS / ((out + 15) / 16), steps);
    let found = ROWS.on(x.device(), &variant([bits, group, tiles, split]));
    let Some(loaded) = cuda::or_definition("weight_only_linear", found)? else { return Ok(None) };
    let rows_of = x.f_detach()?.f_reshape([rows, width])?.f_contiguous()?;
    let rows_of = if rows_of.data_ptr().addr().is_multiple_of(16) { rows_of } else { rows_of.copy() };
    let mut size = x.size();
    if let Some(last) = size.last_mut() {
        *last = out;
    }
    let y = Tensor::empty(size.as_slice(), (Kind::BFloat16, x.device()));
    let launch = loaded
        .kernel("weight_only_rows")?
        .tensor(&rows_of, Kind::BFloat16)
        .tensor(codes, codes.kind())
        .tensor(scale, Kind::Float)
        .optional(zero, Kind::Float)
        .tensor(&y, Kind::BFloat16)
        .i64(rows)
        .i64(out)
        .i64(width);
    let grid = [blocks(out, outputs(loaded)?)?, 1, 1];
    let shared = u32::try_from(shared).map_err(Error::other)?;
    // SAFETY: the kernel's parameters in its order; `check` has seen to the weight's shapes, and the rest was made to the
    // documented ones here.
    unsafe { launch.run(Shape { grid, block: [256, 1, 1], shared }) }?;
    Ok(Some(y))
}

fn outputs(loaded: &Loaded) -> Result<i64> {
    Ok(loaded.constant("weight_only_outputs")?.into())
}

/// The largest power of two up to 8 that is not above either number.
fn split(wanted: i64, steps: i64) -> i64 {
    [8, 4, 2].into_iter().find(|split| *split <= wanted && *split <= steps).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warps_share_an_output_where_there_are_few() {
        assert_eq!(
            [split(0, 100), split(1, 100), split(3, 100), split(500, 100), split(500, 5)],
            [1, 1, 2, 8, 4]
        );
        assert_eq!(split(500, 0), 1);
    }
}
