//! Attention over meta tokens, cached keys and the keys of the call.
//!
//! A query sees every meta token; of the text before it in its document, itself included, it sees the last `window`
//! tokens, or all. Keys of other documents and of padding do not exist for it.

mod cuda;
mod decode;
mod mask;
mod plain;

use tch::Tensor;
use torch_bridge::device::{Determinism, determinism};
use torch_bridge::guards::is_grad_enabled;
use torch_bridge::{Error, Result};

pub use mask::Visibility;

use crate::kv_quant::{Bits, Quantised, Shared, dequantise};
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
    /// The oldest cached keys, where they are codes: they stand before the others in `key` and `value`, which then have
    /// no meta tokens in front.
    pub codes: Option<Coded<'a>>,
    /// Which keys each query sees.
    pub visibility: &'a Visibility<'a>,
    /// What the products of queries and keys are multiplied by; left out, `1 / sqrt(head_dim)`.
    pub scale: Option<f64>,
    /// Probability with which a weight is dropped.
    pub dropout: f64,
}

/// Keys and values in codes, `[batch or 1, n_kv_heads, groups, tokens of a group, ..]`.
#[derive(Clone, Copy, Debug)]
pub struct Coded<'a> {
    /// Keys; the tokens of a group share a scale for each channel.
    pub key: &'a Quantised,
    /// Values, with a scale for each token.
    pub value: &'a Quantised,
    /// Bits of a code.
    pub bits: Bits,
}

impl Coded<'_> {
    /// Keys and values, read back: `[batch, n_kv_heads, tokens, ..]`.
    fn read(&self, batch: i64) -> Result<[Tensor; 2]> {
        let read = |groups, shared| -> Result<Tensor> {
            let x = dequantise(groups, self.bits, shared)?.f_flatten(2, 3)?;
            expanded(&x, batch)
        };
        Ok([read(self.key, Shared::ByChannel)?, read(self.value, Shared::ByToken)?])
    }

    fn fits(&self, [batch, kv_heads, key, value]: [i64; 4]) -> bool {
        let packed = |width: i64| width / self.bits.per_byte();
        let sizes = |x: &Quantised| [&x.codes, &x.scale, &x.zero].map(Tensor::size);
        let &[rows, _, groups, size, _] = self.key.codes.size().as_slice() else { return false };
        let scales = vec![rows, kv_heads, groups, key];
        let keys = [vec![rows, kv_heads, groups, size, packed(key)], scales.clone(), scales];
        let scales = vec![rows, kv_heads, groups, size];
        let values = [vec![rows, kv_heads, groups, size, packed(value)], scales.clone(), scales];
        (rows == 1 || rows == batch) && sizes(self.key) == keys && sizes(self.value) == values
    }
}

/// For every row of the batch.
fn expanded(x: &Tensor, batch: i64) -> Result<Tensor> {
    let mut size = x.size();
    size[0] = batch;
    Ok(x.f_expand(size, false)?)
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
    let on_gpu = policy::fast() && args.query.device().is_cuda() && args.scale() > 0.0;
    if !on_gpu {
        return definition(args);
    }
    let time = args.query.size().get(2).copied().unwrap_or(0);
    let given = [args.query, args.key, args.value].into_iter().chain(args.meta.into_iter().flatten());
    let graph = is_grad_enabled() && given.into_iter().any(Tensor::requires_grad);
    // What libtorch can do as it stands, without a mask and without joining keys, it does.
    let apart = args.codes.is_some() || args.meta.is_some() && args.visibility.meta > 0;
    if time == 1
        && !graph
        && (apart || args.visibility.needs_mask(time))
        && let Some(y) = decode::attention(args)?
    {
        return Ok(y);
    }
    let Some(codes) = &args.codes else { return in_full(args, time) };
    let [key, value] = codes.read(args.key.size()[0])?;
    let (key, value) = (Tensor::f_cat(&[&key, args.key], 2)?, Tensor::f_cat(&[&value, args.value], 2)?);
    in_full(&Attention { key: &key, value: &value, codes: None, ..*args }, time)
}

/// On a GPU, without codes.
fn in_full(args: &Attention<'_>, time: i64) -> Result<Tensor> {
    // Where no mask is needed libtorch has fast kernels too, but their backward does not repeat itself bit for bit.
    if (args.visibility.needs_mask(time) || determinism() != Determinism::Off)
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
    with_all_keys(args, joined)
}

/// `run` on operands whose keys and values are all in one tensor.
fn with_all_keys(args: &Attention<'_>, run: impl FnOnce(&Attention<'_>) -> Result<Tensor>) -> Result<Tensor> {
    let batch = args.key.size().first().copied().unwrap_or(1);
    let meta = args
        .meta
        .filter(|_| args.visibility.meta > 0)
        .map(|parts| -> Result<_> { Ok([expanded(parts[0], batch)?, expanded(parts[1], batch)?]) });
    let codes = args.codes.map(|codes| codes.read(batch));
    let parts: Vec<[Tensor; 2]> = [meta, codes].into_iter().flatten().collect::<Result<_>>()?;
    if parts.is_empty() {
        return run(args);
    }
    let join = |which: usize, others: &Tensor| {
        let all: Vec<&Tensor> = parts.iter().map(|part| &part[which]).chain([others]).collect();
        Tensor::f_cat(&all, 2)
    };
    let (key, value) = (join(0, args.key)?, join(1, args.value)?);
    run(&Attention { key: &key, value: &value, meta: None, codes: None, ..*args })
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
