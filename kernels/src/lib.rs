//! Fused operations: one folder each, with its definition in plain tensor operations (`reference.rs`), its
//! fast paths, and one differentiable function that picks among them.

pub mod attention;
pub mod causal_conv1d;
pub mod cuda;
pub mod kv_quant;
pub mod linear_cross_entropy;
pub mod mlstm;
pub mod moe;
mod operands;
mod parallel;
pub mod policy;
pub mod rms_norm;
pub mod rms_norm_sum;
pub mod rotary;
mod second;
pub mod selective_scan;
mod simd;
pub mod slstm;
pub mod ssd;
pub mod swiglu;
pub mod weight_only_linear;
