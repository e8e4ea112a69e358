//! All that libtorch has and [`tch`] hides.
//!
//! tch is the tensor-operation binding of this project and no more. Whatever else of libtorch 2.11 is needed comes
//! through here, and nothing above this crate holds an `unsafe` block for libtorch's sake (the compute kernels hold
//! their own). The crate knows tensors, devices and operators; it knows no models.
//!
//! | module | what it opens |
//! |---|---|
//! | [`cuda`] | finding and opening `libtorch_cuda.so` at run time, so that one binary serves every machine |
//! | [`ops`] | any registered operator by name, through the boxed dispatcher |
//! | [`autograd`] | differentiable functions written in Rust; gradients of graphs |
//! | [`panics`] | panics of tch's operators as errors |
//! | [`guards`] | grad mode, inference mode, autocast and thread count as panic-safe guards |
//! | [`rng`] | the state of random generators, and generators of one's own |
//! | [`optim`] | the fused AdamW step, operations over lists of tensors, gradient clipping without a host sync |
//! | [`memory`] | what a device or the process has allocated |
//! | [`device`] | synchronisation, streams, threads, determinism, precision |
//! | [`parallel`] | work on libtorch's own threads |
//! | [`mapped`] | files mapped into memory |
//! | [`tensors`] | bytes in and out, and checked typed slices for kernels |
//!
//! # Invariants
//!
//! * No C++ exception crosses a Rust frame and no panic crosses a C++ frame. Both become an [`Error`], without a C++
//!   backtrace.
//! * A fallible call returns [`Result`]; a panic in this crate is a bug.
//! * Guards restore what they found when they drop, also while a panic unwinds, and cannot leave their thread.
//!
//! # What comes later
//!
//! Collective communication (c10d with Gloo and NCCL, the DDP reducer) and CUDA graphs. Both need more than the C++
//! headers of the CPU library and will live in their own translation units; the operators of c10d are already in
//! reach of [`ops::call`], with process groups as [`ops::Opaque`] values.

pub mod autograd;
mod codes;
pub mod cuda;
pub mod device;
mod error;
mod ffi;
pub mod guards;
pub mod mapped;
pub mod memory;
pub mod ops;
pub mod optim;
pub mod panics;
pub mod parallel;
pub mod profiler;
pub mod rng;
pub mod tensors;

pub use error::{Error, Result};
