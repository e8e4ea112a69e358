//! Attention over meta tokens, cached keys and the keys of the call.
//!
//! A query sees every meta token; of the text before it in its document, itself included, it sees the last `window`
//! tokens, or all. Keys of other documents and of padding do not exist for it.

mod mask;

use tch::Tensor;
use torch_bridge::Result;

pub use mask::Visibility;

/// Operands of [`attention`].
#[derive(Debug)]
pub struct Attention<'a> {
    /// Queries `[batch, n_heads, time, head_dim]`.
    pub query: &'a Tensor,
    /// Keys `[batch, n_kv_heads, keys, head_dim]`: meta tokens, then cached keys, then the keys of the call.
    pub key: &'a Tensor,
    /// Values `[batch, n_kv_heads, keys, v_head_dim]`, in the same order.
    pub value: &'a Tensor,
    /// Which keys each query sees.
    pub visibility: &'a Visibility<'a>,
    /// Probability with which a weight is dropped.
    pub dropout: f64,
}

/// `softmax(q k^T / sqrt(head_dim)) v` over the visible keys: `[batch, n_heads, time, v_head_dim]`.
///
/// Query head `h` reads key head `h / (n_heads / n_kv_heads)`.
///
/// # Errors
/// When shapes do not fit.
pub fn attention(args: &Attention<'_>) -> Result<Tensor> {
    let grouped = args.query.size()[1] != args.key.size()[1];
    let mask = args.visibility.mask(args.query.size()[2], args.key.size()[2])?;
    let causal = mask.is_none() && args.query.size()[2] > 1;
    Ok(Tensor::f_scaled_dot_product_attention(
        args.query,
        args.key,
        args.value,
        mask.as_ref(),
        args.dropout,
        causal,
        None,
        grouped,
    )?)
}
