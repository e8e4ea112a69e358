//! Products of a few rows with a weight matrix, as in decoding, where reading the weight is all of the work; and weights in
//! eight or four bits, which are less to read.
//!
//! The codes are those of torchao's weight-only quantisation. In eight bits a row (an output feature) has one scale:
//! `w = q s` with `s = max |w| / 127.5` and `q` in -128..=127. In four bits each group of 32, 64 or 128 inputs of a row has a
//! scale and perhaps a zero: `w = (q - 8) s + z` with `q` in 0..=15, where `s = (max - min) / 15` and `z = min + 8 s`, or
//! without a zero `s = max |w| / 7.5`.

mod cpu;
mod cuda;
mod reference;

use tch::{Device, Kind, Tensor};
use torch_bridge::guards::{Autocast, is_grad_enabled};
use torch_bridge::{Error, Result};

use crate::operands::Operands;
use crate::policy;

/// Groups of inputs that may share a scale.
pub const GROUPS: [i64; 3] = [32, 64, 128];

/// Codes that lie in one run of bytes.
const BLOCK: i64 = 32;

/// A weight `[out_features, in_features]` in few bits.
#[derive(Debug)]
pub enum QuantisedWeight {
    /// Eight bits, a scale for each row.
    Int8 {
        /// `[out_features, in_features]`, int8.
        codes: Tensor,
        /// `[out_features]`, f32.
        scale: Tensor,
    },
    /// Four bits, a scale for each group of inputs of a row.
    Int4 {
        /// `[out_features, in_features / 2]`, uint8. Of 32 neighbouring codes the first 16 are the low halves of 16 bytes,
        /// the others the high halves.
        codes: Tensor,
        /// `[out_features, in_features / group]`, f32.
        scale: Tensor,
        /// What code 8 stands for, shaped as `scale`; 0 where there is none.
        zero: Option<Tensor>,
    },
}

/// Whether a group of four-bit codes has a zero of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zero {
    /// The codes reach from the smallest to the largest weight of the group.
    Free,
    /// The codes reach equally far to both sides of 0.
    Fixed,
}

impl QuantisedWeight {
    /// A floating weight `[out_features, in_features]` in eight bits.
    ///
    /// # Errors
    /// It has another number of dimensions, or is not floating.
    pub fn int8(weight: &Tensor) -> Result<Self> {
        let weight = float_matrix(weight)?;
        let scale = (weight.f_abs()?.f_amax([1i64].as_slice(), true)? / 127.5)
            .f_clamp_min(f64::from(f32::EPSILON))?;
        let codes = (weight / &scale).f_round()?.f_clamp(-128.0, 127.0)?.f_to_kind(Kind::Int8)?;
        Ok(Self::Int8 { codes, scale: scale.f_squeeze_dim(1)? })
    }

    /// A floating weight `[out_features, in_features]` in four bits.
    ///
    /// # Errors
    /// As [`int8`](Self::int8); or `group` is none of [`GROUPS`], or does not divide `in_features`.
    pub fn int4(weight: &Tensor, group: i64, zero: Zero) -> Result<Self> {
        let weight = float_matrix(weight)?;
        let [out, width] = [weight.size()[0], weight.size()[1]];
        if !GROUPS.contains(&group) || width % group != 0 {
            return Err(Error::Mismatch {
                operation: "weight_only_linear".to_owned(),
                expected: format!("groups of 32, 64 or 128 that divide the {width} inputs"),
                got: format!("groups of {group}"),
            });
        }
        let groups = weight.f_view([out, -1, group])?;
        let last = [-1i64];
        let (scale, low) = match zero {
            Zero::Free => {
                let low = groups.f_amin(last.as_slice(), true)?;
                ((groups.f_amax(last.as_slice(), true)? - &low).f_div_scalar(15.0)?, low)
            }
            Zero::Fixed => {
                let scale = groups.f_abs()?.f_amax(last.as_slice(), true)?.f_div_scalar(7.5)?;
                let low = &scale * -8.0;
                (scale, low)
            }
        };
        let scale = scale.f_clamp_min(1e-6)?;
        let codes = match zero {
            Zero::Free => ((groups - &low) / &scale).f_round()?,
            Zero::Fixed => (groups / &scale).f_round()? + 8.0,
        };
        let codes = codes.f_clamp(0.0, 15.0)?.f_to_kind(Kind::Uint8)?.f_view([out, -1, 2, BLOCK / 2])?;
        let high = codes.f_select(2, 1)?.f_bitwise_left_shift_tensor_scalar(4)?;
        let packed = codes.f_select(2, 0)?.f_bitwise_or_tensor(&high)?.f_reshape([out, width / 2])?;
        let zero = match zero {
            Zero::Free => Some((low + &scale * 8.0).f_squeeze_dim(-1)?),
            Zero::Fixed => None,
        };
        Ok(Self::Int4 { codes: packed, scale: scale.f_squeeze_dim(-1)?, zero })
    }

    /// The weight that the codes stand for, `[out_features, in_features]`.
    ///
    /// # Errors
    /// The tensors do not fit each other.
    pub fn dequantise(&self, kind: Kind) -> Result<Tensor> {
        self.check()?;
        reference::dequantised(self)?.f_to_kind(kind).map_err(Into::into)
    }

    /// Output features.
    pub fn out_features(&self) -> i64 {
        self.codes().size()[0]
    }

    /// Input features.
    pub fn in_features(&self) -> i64 {
        match self {
            Self::Int8 { codes, .. } => codes.size()[1],
            Self::Int4 { codes, .. } => codes.size()[1] * 2,
        }
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        let of = |x: &Tensor| x.numel() * x.kind().elt_size_in_bytes();
        match self {
            Self::Int8 { codes, scale } => of(codes) + of(scale),
            Self::Int4 { codes, scale, zero } => of(codes) + of(scale) + zero.as_ref().map_or(0, of),
        }
    }

    fn codes(&self) -> &Tensor {
        match self {
            Self::Int8 { codes, .. } | Self::Int4 { codes, .. } => codes,
        }
    }

    fn check(&self) -> Result<()> {
        let ops = Operands::of("weight_only_linear", self.codes());
        let [out, _] = ops.sizes("codes", self.codes(), "[out_features, bytes]")?;
        let kind = |operand: &str, x: &Tensor, kind: Kind| {
            let got = format!("{:?} on {:?}", x.kind(), x.device());
            let right = x.kind() == kind && x.device() == self.codes().device() && x.is_contiguous();
            if right { Ok(()) } else { Err(ops.refusal(operand, &format!("{kind:?}, contiguous"), &got)) }
        };
        match self {
            Self::Int8 { codes, scale } => {
                kind("codes", codes, Kind::Int8)?;
                kind("scale", scale, Kind::Float)?;
                ops.parameter("scale", scale, &[out])
            }
            Self::Int4 { codes, scale, zero } => {
                kind("codes", codes, Kind::Uint8)?;
                kind("scale", scale, Kind::Float)?;
                let [_, groups] = ops.sizes("scale", scale, "[out_features, groups]")?;
                let width = self.in_features();
                if groups * GROUPS.into_iter().find(|group| groups * group == width).unwrap_or(0) != width {
                    let expected = format!("one for each 32, 64 or 128 of {width} inputs");
                    return Err(ops.refusal("scale", &expected, &format!("{groups}")));
                }
                ops.parameter("scale", scale, &[out, groups])?;
                zero.as_ref().map_or(Ok(()), |zero| {
                    kind("zero", zero, Kind::Float)?;
                    ops.parameter("zero", zero, &[out, groups])
                })
            }
        }
    }
}

/// In f32 and contiguous.
fn float_matrix(weight: &Tensor) -> Result<Tensor> {
    let ops = Operands::of("weight_only_linear", weight);
    let [out, width] = ops.sizes("weight", weight, "[out_features, in_features]")?;
    ops.parameter("weight", weight, &[out, width])?;
    Ok(weight.f_detach()?.f_to_kind(Kind::Float)?.f_contiguous()?)
}

/// `y = x W^T` for `x [.., in_features]`: `[.., out_features]` in `x`'s dtype, summed in f32 (f64 if `x` is).
///
/// A few rows are multiplied with the codes as they are; for more, and where a gradient is wanted (of `x`; a quantised weight
/// has none), the weight is read back first.
///
/// # Errors
/// A shape, dtype or device that does not fit.
pub fn weight_only_linear(x: &Tensor, weight: &QuantisedWeight) -> Result<Tensor> {
    weight.check()?;
    check_rows(x, weight.codes().device(), weight.in_features())?;
    let plain = !(is_grad_enabled() && x.requires_grad()) && x.numel() > 0 && weight.codes().numel() > 0;
    if plain && policy::fast() {
        let found = match x.device() {
            Device::Cpu => cpu::quantised(x, weight)?,
            Device::Cuda(_) => cuda::quantised(x, weight)?,
            _ => None,
        };
        if let Some(y) = found {
            return Ok(y);
        }
    }
    reference::linear(x, weight)
}

/// The definition that [`weight_only_linear`] is tested against: the weight read back, then a product.
///
/// # Errors
/// As [`weight_only_linear`].
pub fn reference(x: &Tensor, weight: &QuantisedWeight) -> Result<Tensor> {
    weight.check()?;
    check_rows(x, weight.codes().device(), weight.in_features())?;
    reference::linear(x, weight)
}

/// `y = x W^T` for `x [.., in_features]` and a weight `[out_features, in_features]` as it is. On the CPU a few rows without
/// gradients read an f16 or bf16 weight at the speed of the memory, which libtorch's product does in f32 only; all else is
/// libtorch's, and under autocast everything is.
///
/// # Errors
/// As libtorch's `linear`.
pub fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let graph = is_grad_enabled() && (x.requires_grad() || weight.requires_grad());
    if !graph
        && x.device() == Device::Cpu
        && policy::fast()
        && Autocast::current(Device::Cpu).is_none()
        && let Some(y) = cpu::dense(x, weight)?
    {
        return Ok(y);
    }
    Ok(x.f_linear(weight, None::<&Tensor>)?)
}

fn check_rows(x: &Tensor, device: Device, width: i64) -> Result<()> {
    let ops = Operands::of("weight_only_linear", x);
    let mut shape = x.size();
    let Some(last) = shape.last_mut() else {
        return Err(ops.refusal("x", "[.., in_features]", "a scalar"));
    };
    *last = width;
    ops.activation("x", x, &shape)?;
    if x.device() != device {
        return Err(ops.refusal("x", &format!("{device:?}"), &format!("{:?}", x.device())));
    }
    Ok(())
}
