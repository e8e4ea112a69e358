//! What an optimizer step is made of: the fused AdamW, operations over lists of tensors, and clipping.
//!
//! All of it runs with gradients off and writes its arguments in place. On a GPU nothing here waits for the device,
//! and a list costs a few kernel launches, not one per tensor.

mod adamw;
mod clip;
mod foreach;

pub use adamw::{FusedAdamW, fused_adamw_};
pub use clip::{clip_grad_norm_, total_norm};
pub use foreach::{
    foreach_add_, foreach_add_scalar_, foreach_copy_, foreach_lerp_, foreach_mul_scalar_,
    foreach_mul_tensor_, foreach_norm, foreach_zero_,
};
