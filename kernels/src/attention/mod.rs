//! Attention over meta tokens, cached keys and the keys of the call.
//!
//! A query sees every meta token; of the text before it in its document, itself included, it sees the last `window`
//! tokens, or all. Keys of other documents and of padding do not exist for it.

mod cuda;
mod mask;

use tch::Tensor;
use torch_bridge::device::{Determinism, determinism};
use torch_bridge::{Error, Result};

pub use mask::Visibility;

use crate::policy;

/// Operands of [`attention`].
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Queries `[batch, n_heads, time, head_dim]`.
    pub query: &'a Tensor,
    /// Keys `[batch, n_kv_heads, keys, head_dim]`: meta tokens unless they are in `meta`, then cached keys, then the
    /// keys of the call.
    pub key: &'a Tensor,
    /// Values `[batch, n_kv_heads, keys, v_head_dim]`, in the same order.
    pub value: &'a Tensor,
    /// Keys and values of meta tokens, `[batch or 1, n_kv_heads, meta, ..]`, where they do not stand in front of the
    /// others.
    pub meta: Option<[&'a Tensor; 2]>,
    /// Which keys each query sees.
    pub visibility: &'a Visibility<'a>,
    /// What the products of queries and keys are multiplied by; left out, `1 / sqrt(head_dim)`.
    pub scale: Option<f64>,
    /// Probability with which a weight is dropped.
    pub dropout: f64,
}

impl Attention<'_> {
    fn scale(&self) -> f64 {
        let width = self.query.size().last().copied().unwrap_or(1);
        self.scale.unwrap_or_else(|| 1.0 / (width as f64).sqrt())
    }
}

/// `softmax(scale q k^T) v` over the visible keys: `[batch, n_heads, time, v_head_dim]`.
///
/// Query head `h` reads key head `h / (n_heads / n_kv_heads)`.
///
/// # Errors
/// When shapes do not fit.
pub fn attention(args: &Attention<'_>) -> Result<Tensor> {
    let time = args.query.size().get(2).copied().unwrap_or(0);
    // Where no mask is needed libtorch has fast kernels too, but their backward does not repeat itself bit for bit.
    let repeats = || determinism() != Determinism::Off;
    if policy::fast()
        && args.query.device().is_cuda()
        && time > 1
        && args.scale() > 0.0
        && (args.visibility.needs_mask(time) || repeats())
        && let Some(y) = cuda::attention(args)?
    {
        return Ok(y);
    }
    definition(args)
}

/// The definition that [`attention`] is tested against: tensor operations with a mask, on any device.
///
/// # Errors
/// As [`attention`].
pub fn definition(args: &Attention<'_>) -> Result<Tensor> {
    let Some([meta_key, meta_value]) = args.meta else { return joined(args) };
    let join = |meta: &Tensor, others: &Tensor| -> Result<Tensor> {
        let mut size = meta.size();
        size[0] = others.size()[0];
        Ok(Tensor::f_cat(&[&meta.f_expand(size, false)?, others], 2)?)
    };
    let (key, value) = (join(meta_key, args.key)?, join(meta_value, args.value)?);
    joined(&Attention { key: &key, value: &value, meta: None, ..*args })
}

fn joined(args: &Attention<'_>) -> Result<Tensor> {
    let &[batch, heads, time, head_dim] = args.query.size().as_slice() else {
        let size = args.query.size();
        return Err(Error::other(format!("queries must be [batch, heads, time, head_dim], got {size:?}")));
    };
    let kv_heads = args.key.size()[1];
    let mask = args.visibility.mask(time, args.key.size()[2])?;
    let causal = mask.is_none() && time > 1;
    // Of libtorch's kernels on a GPU, those that take a mask and repeat themselves bit for bit know no groups of heads:
    // with groups they give way to products in 32 bits, an order of magnitude slower.
    let repeat = args.key.device().is_cuda() && mask.is_some() && time > 1 && heads != kv_heads;
    let (key, value) = if repeat {
        (repeated(args.key, heads)?, repeated(args.value, heads)?)
    } else {
        (args.key.shallow_clone(), args.value.shallow_clone())
    };
    let product = |query: &Tensor, grouped| {
        Tensor::f_scaled_dot_product_attention(
            query,
            &key,
            &value,
            mask.as_ref(),
            args.dropout,
            causal,
            args.scale,
            grouped,
        )
    };
    if time == 1 && heads != kv_heads {
        // The heads of a group stand as the queries of one head: libtorch would repeat every key and value for each.
        let y = product(&args.query.f_reshape([batch, kv_heads, heads / kv_heads, head_dim])?, false)?;
        return Ok(y.f_reshape([batch, heads, 1, -1])?);
    }
    Ok(product(args.query, heads != kv_heads && !repeat)?)
}

/// Keys or values `[batch, n_kv_heads, keys, width]` for every one of `heads` query heads.
fn repeated(x: &Tensor, heads: i64) -> Result<Tensor> {
    let &[batch, kv_heads, keys, width] = x.size().as_slice() else {
        return Err(Error::other(format!("keys must be [batch, heads, keys, width], got {:?}", x.size())));
    };
    let each = [batch, kv_heads, heads / kv_heads, keys, width];
    Ok(x.f_unsqueeze(2)?.f_expand(each, false)?.f_reshape([batch, heads, keys, width])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_head_finds_its_key_head() {
        let x = Tensor::arange(2 * 3 * 2 * 2, tch::kind::FLOAT_CPU).view([2, 3, 2, 2]);
        let all = repeated(&x, 6).unwrap();
        for head in 0..6 {
            assert!(all.select(1, head).equal(&x.select(1, head / 2)));
        }
    }
}
