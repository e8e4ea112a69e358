//! Attention in the simplest tensor operations, every one of which can be differentiated again and again.

use tch::{Kind, Tensor};
use torch_bridge::Result;

use super::{Attention, repeated, with_all_keys};
use crate::operands::compute_kind;

/// As [`definition`](super::definition), without dropout; it keeps all weights, so it is for few tokens only. libtorch's
/// own attention has gradients, but gradients of gradients not on every device.
pub(super) fn attention(args: &Attention<'_>) -> Result<Tensor> {
    with_all_keys(args, |args| {
        let (heads, time, keys) = (args.query.size()[1], args.query.size()[2], args.key.size()[2]);
        let kind = compute_kind(args.query);
        let wide = |x: &Tensor| -> Result<Tensor> { Ok(x.f_to_kind(kind)?) };
        let (key, value) = (wide(&repeated(args.key, heads)?)?, wide(&repeated(args.value, heads)?)?);
        let mask = match args.visibility.mask(time, keys)? {
            Some(mask) => Some(mask),
            None if time > 1 => {
                Some(Tensor::f_ones([time, keys], (Kind::Bool, args.query.device()))?.f_tril(0)?)
            }
            None => None,
        };
        let mut scores = wide(args.query)?.f_matmul(&key.f_transpose(2, 3)?)? * args.scale();
        if let Some(mask) = mask {
            scores = scores.f_masked_fill(&mask.f_logical_not()?, f64::NEG_INFINITY)?;
        }
        Ok(scores.f_softmax(-1, kind)?.f_matmul(&value)?.f_to_kind(args.query.kind())?)
    })
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use crate::attention::{Attention, Visibility, definition};

    #[test]
    fn it_is_the_definition() {
        let options = (Kind::Double, Device::Cpu);
        for (time, cached, window, valid) in
            [(5, 0, None, false), (5, 3, Some(4), false), (5, 3, Some(2), true), (1, 4, None, false)]
        {
            let random = |shape: &[i64]| Tensor::randn(shape, options);
            let keys = cached + time;
            let (query, key, value) =
                (random(&[2, 4, time, 6]), random(&[2, 2, keys, 6]), random(&[2, 2, keys, 3]));
            let meta = [random(&[1, 2, 3, 6]), random(&[1, 2, 3, 3])];
            let positions = Tensor::arange(time, (Kind::Int64, Device::Cpu)).unsqueeze(0) + cached;
            let cached_positions = Tensor::arange(cached, (Kind::Int64, Device::Cpu)).unsqueeze(0);
            let real = Tensor::from_slice(&[true, true, false, true, false]).unsqueeze(0).repeat([2, 1]);
            for meta in [None, Some([&meta[0], &meta[1]])] {
                let visibility = Visibility {
                    meta: if meta.is_some() { 3 } else { 0 },
                    cached,
                    window,
                    cached_positions: &cached_positions,
                    positions: &positions,
                    valid: valid.then_some(&real),
                    document: None,
                    uniform: !valid,
                };
                let (query, key, value) = (&query, &key, &value);
                let (visibility, scale) = (&visibility, None);
                let args =
                    Attention { query, key, value, meta, codes: None, visibility, scale, dropout: 0.0 };
                let distance = (super::attention(&args).unwrap() - definition(&args).unwrap()).abs().max();
                assert!(distance.double_value(&[]) < 1e-12, "{time} {cached} {window:?} {valid}");
            }
        }
    }
}
