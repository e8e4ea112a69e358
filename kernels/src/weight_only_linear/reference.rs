//! The definition: the weight read back, then libtorch's product.

use tch::{Kind, Tensor};
use torch_bridge::Result;

use super::{BLOCK, QuantisedWeight};
use crate::operands::compute_kind;

/// `[out_features, in_features]`, f32.
pub(super) fn dequantised(weight: &QuantisedWeight) -> Result<Tensor> {
    match weight {
        QuantisedWeight::Int8 { codes, scale } => Ok(codes.f_to_kind(Kind::Float)? * scale.f_unsqueeze(1)?),
        QuantisedWeight::Int4 { codes, scale, zero } => {
            let [out, groups] = [scale.size()[0], scale.size()[1]];
            let bytes = codes.f_view([out, -1, BLOCK / 2])?;
            let halves = [bytes.f_bitwise_and(15)?, bytes.f_bitwise_right_shift_tensor_scalar(4)?];
            let codes = Tensor::f_stack(&halves, 2)?.f_view([out, groups, -1])?.f_to_kind(Kind::Float)? - 8.0;
            let weight = codes * scale.f_unsqueeze(2)?;
            let weight = match zero {
                Some(zero) => weight + zero.f_unsqueeze(2)?,
                None => weight,
            };
            Ok(weight.f_view([out, -1])?)
        }
    }
}

/// In the precision that `x` asks for; the weight is rounded to 16 bits where `x` has no more.
pub(super) fn linear(x: &Tensor, weight: &QuantisedWeight) -> Result<Tensor> {
    let weight = dequantised(weight)?;
    if x.device().is_cuda() && [Kind::BFloat16, Kind::Half].contains(&x.kind()) {
        return Ok(x.f_linear(&weight.f_to_kind(x.kind())?, None::<&Tensor>)?);
    }
    let kind = compute_kind(x);
    Ok(x.f_to_kind(kind)?.f_linear(&weight.f_to_kind(kind)?, None::<&Tensor>)?.f_to_kind(x.kind())?)
}
