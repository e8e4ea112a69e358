//! Keys and values in four or eight bits.
//!
//! Numbers that share a scale become codes `c = round((x - zero) / scale)` with `zero` their minimum and
//! `scale = (max - min) / (2^bits - 1)`; `x` is read back as `zero + c scale`, at most half a scale off, but for the
//! rounding of `scale` to its own type (Liu et al. 2024, KIVI, arXiv 2402.02750).

use tch::{Kind, Tensor};
use torch_bridge::{Error, Result};

/// Bits of a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bits {
    /// One code in a byte.
    Eight,
    /// Two codes in a byte: the first half of the channels in the low bits, the second half in the high ones.
    Four,
}

impl Bits {
    /// Codes in a byte.
    pub fn per_byte(self) -> i64 {
        match self {
            Self::Eight => 1,
            Self::Four => 2,
        }
    }

    fn largest(self) -> f64 {
        match self {
            Self::Eight => 255.0,
            Self::Four => 15.0,
        }
    }
}

/// Which numbers of a group of tokens `[..., tokens, channels]` share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shared {
    /// Those of one channel: keys, whose large numbers stand in a few channels.
    ByChannel,
    /// Those of one token: values.
    ByToken,
}

impl Shared {
    fn dim(self) -> i64 {
        match self {
            Self::ByChannel => -2,
            Self::ByToken => -1,
        }
    }
}

/// Groups of tokens as codes.
#[derive(Debug)]
pub struct Quantised {
    /// `[..., tokens, channels / codes in a byte]`, uint8.
    pub codes: Tensor,
    /// `[..., channels]` or `[..., tokens]`, in the type of the numbers.
    pub scale: Tensor,
    /// What code 0 stands for; shape and type of `scale`.
    pub zero: Tensor,
}

/// Groups of tokens `x [..., tokens, channels]` as codes. Gradients do not flow through.
///
/// # Errors
/// When four bits are asked for an odd number of channels.
pub fn quantise(x: &Tensor, bits: Bits, shared: Shared) -> Result<Quantised> {
    let channels = x.size().last().copied().unwrap_or(0);
    if channels % bits.per_byte() != 0 {
        return Err(Error::other(format!("{channels} channels cannot be packed two in a byte")));
    }
    let (x, dim) = (x.f_detach()?, [shared.dim()]);
    let kind = x.kind();
    let wide = if kind == Kind::Double { x } else { x.f_to_kind(Kind::Float)? };
    let zero = wide.f_amin(dim.as_slice(), true)?;
    let range = wide.f_amax(dim.as_slice(), true)? - &zero;
    // Codes are made with the scale that reads them back.
    let scale = (range / bits.largest()).f_to_kind(kind)?;
    let divisor = scale.f_to_kind(wide.kind())?;
    let divisor = divisor.f_where_self(&divisor.f_gt(0.0)?, &divisor.f_ones_like()?)?;
    let codes = ((wide - &zero) / divisor).f_round()?.f_clamp(0.0, bits.largest())?.f_to_kind(Kind::Uint8)?;
    let codes = match bits {
        Bits::Eight => codes,
        Bits::Four => {
            let half = channels / 2;
            let (low, high) = (codes.f_narrow(-1, 0, half)?, codes.f_narrow(-1, half, half)?);
            low.f_bitwise_or_tensor(&high.f_bitwise_left_shift_tensor_scalar(4)?)?
        }
    };
    let drop = |tensor: Tensor| tensor.f_squeeze_dim(shared.dim());
    Ok(Quantised { codes, scale: drop(scale)?, zero: drop(zero.f_to_kind(kind)?)? })
}

/// The numbers that the codes stand for, `[..., tokens, channels]` in the type of the scale.
///
/// # Errors
/// When shapes do not fit.
pub fn dequantise(groups: &Quantised, bits: Bits, shared: Shared) -> Result<Tensor> {
    let codes = match bits {
        Bits::Eight => groups.codes.shallow_clone(),
        Bits::Four => {
            let (low, high) =
                (groups.codes.f_bitwise_and(15)?, groups.codes.f_bitwise_right_shift_tensor_scalar(4)?);
            Tensor::f_cat(&[low, high], -1)?
        }
    };
    let kind = groups.scale.kind();
    let widen = |tensor: &Tensor| -> Result<Tensor> {
        let wide = if kind == Kind::Double { kind } else { Kind::Float };
        Ok(tensor.f_unsqueeze(shared.dim())?.f_to_kind(wide)?)
    };
    let (scale, zero) = (widen(&groups.scale)?, widen(&groups.zero)?);
    Ok(zero.f_addcmul(&codes.f_to_kind(scale.kind())?, &scale)?.f_to_kind(kind)?)
}
