//! Devices and libtorch's process-wide settings.

use std::ffi::c_void;

use tch::Device;

use crate::codes;
use crate::error::{Error, Result};
use crate::ffi;

/// Waits until all work that was given to the device is done. The CPU has always done its own.
///
/// # Errors
/// There is no such device, or work that was given to it has failed.
pub fn synchronize(device: Device) -> Result<()> {
    if device == Device::Cpu {
        return Ok(());
    }
    // SAFETY: plain numbers.
    ffi::check(unsafe { ffi::hb_synchronize(codes::of_device(device)) }, || "synchronize")
}

/// The stream on which this thread's operations run: its native handle (`cudaStream_t`; null is the default stream)
/// and libtorch's id.
///
/// Ask again before each launch: guards and graph capture change it.
///
/// # Errors
/// There is no such device, or it is the CPU, which has no streams.
pub fn current_stream(device: Device) -> Result<(*mut c_void, i64)> {
    let (mut native, mut id) = (std::ptr::null_mut(), 0);
    // SAFETY: both out-pointers are writable.
    let code = unsafe { ffi::hb_current_stream(codes::of_device(device), &raw mut native, &raw mut id) };
    ffi::check(code, || "current_stream")?;
    Ok((native, id))
}

/// How many threads libtorch uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threads {
    /// Within an operator.
    pub intra: usize,
    /// Between operators.
    pub inter: usize,
}

/// The number of threads in use.
///
/// # Errors
/// None that is known of.
pub fn threads() -> Result<Threads> {
    let (mut intra, mut inter) = (0, 0);
    // SAFETY: both out-pointers are writable.
    ffi::check(unsafe { ffi::hb_threads(&raw mut intra, &raw mut inter) }, || "threads")?;
    let count = |number: i32| usize::try_from(number).unwrap_or(1);
    Ok(Threads { intra: count(intra), inter: count(inter) })
}

/// Sets the number of threads within an operator and between operators.
///
/// Sums are split by the number of threads, so results are equal bit for bit only at equal `intra`. The number
/// `inter` can be set once, before the first use.
///
/// # Errors
/// A number is zero, or `inter` is to change after its first use.
pub fn set_threads(intra: usize, inter: usize) -> Result<()> {
    set_intra_threads(intra)?;
    let inter = positive("set_threads", inter)?;
    if threads()?.inter == inter as usize {
        return Ok(());
    }
    // SAFETY: plain numbers.
    ffi::check(unsafe { ffi::hb_set_inter_threads(inter) }, || "set_threads")
}

/// Sets the number of threads within an operator only; see [`set_threads`].
///
/// # Errors
/// The number is zero.
pub fn set_intra_threads(intra: usize) -> Result<()> {
    let intra = positive("set_intra_threads", intra)?;
    // SAFETY: plain numbers.
    ffi::check(unsafe { ffi::hb_set_intra_threads(intra) }, || "set_intra_threads")
}

fn positive(operation: &str, count: usize) -> Result<i32> {
    i32::try_from(count)
        .ok()
        .filter(|count| *count > 0)
        .ok_or_else(|| Error::mismatch(operation, "at least one thread", count.to_string()))
}

/// What happens when an operator has no deterministic implementation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Determinism {
    /// It runs.
    Off,
    /// It fails.
    Required,
    /// It runs, with a warning on standard error.
    Warned,
}

/// Makes operators pick deterministic implementations, and those that have none fail (or warn, with `warn_only`).
///
/// # Errors
/// None that is known of.
pub fn deterministic_algorithms(enabled: bool, warn_only: bool) -> Result<()> {
    // SAFETY: plain numbers.
    ffi::check(
        unsafe { ffi::hb_set_deterministic(enabled.into(), warn_only.into()) },
        || "deterministic_algorithms",
    )
}

/// What [`deterministic_algorithms`] has set.
pub fn determinism() -> Determinism {
    // SAFETY: only reads a setting.
    match unsafe { ffi::hb_deterministic() } {
        0 => Determinism::Off,
        1 => Determinism::Required,
        _ => Determinism::Warned,
    }
}

/// The determinism of the libraries that libtorch calls: oneDNN, and cuDNN with its choice of algorithms by timing.
///
/// # Errors
/// None that is known of.
pub fn set_backend_determinism(mkldnn: bool, cudnn: bool, cudnn_benchmark: bool) -> Result<()> {
    // SAFETY: plain numbers.
    let code =
        unsafe { ffi::hb_set_backend_determinism(mkldnn.into(), cudnn.into(), cudnn_benchmark.into()) };
    ffi::check(code, || "set_backend_determinism")
}

/// How exact a product of `float32` matrices is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatmulPrecision {
    /// Full `float32`.
    Highest,
    /// TF32 (10 bits of mantissa) where the device has it.
    High,
    /// Also bfloat16 where the device has it.
    Medium,
}

/// Sets how exact a product of `float32` matrices is.
///
/// # Errors
/// None that is known of.
pub fn set_matmul_precision(precision: MatmulPrecision) -> Result<()> {
    let name = match precision {
        MatmulPrecision::Highest => c"highest",
        MatmulPrecision::High => c"high",
        MatmulPrecision::Medium => c"medium",
    };
    // SAFETY: the name is a terminated string.
    ffi::check(unsafe { ffi::hb_set_matmul_precision(name.as_ptr()) }, || "set_matmul_precision")
}

/// How exact a product of `float32` matrices is.
///
/// # Errors
/// The precision was set backend by backend to something that has no name here.
pub fn matmul_precision() -> Result<MatmulPrecision> {
    let mut level = 0;
    // SAFETY: the out-pointer is writable.
    ffi::check(unsafe { ffi::hb_matmul_precision(&raw mut level) }, || "matmul_precision")?;
    Ok(match level {
        0 => MatmulPrecision::Highest,
        1 => MatmulPrecision::High,
        _ => MatmulPrecision::Medium,
    })
}

/// Whether cuDNN may compute `float32` convolutions in TF32 (it may, unless told otherwise).
///
/// # Errors
/// None that is known of.
pub fn set_cudnn_tf32(allowed: bool) -> Result<()> {
    // SAFETY: plain numbers.
    ffi::check(unsafe { ffi::hb_set_cudnn_tf32(allowed.into()) }, || "set_cudnn_tf32")
}

/// Which kernels `scaled_dot_product_attention` may choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "four independent switches, as libtorch has them")]
pub struct AttentionBackends {
    /// Flash attention. Its backward is not deterministic unless [`deterministic_algorithms`] is on.
    pub flash: bool,
    /// Memory-efficient attention.
    pub memory_efficient: bool,
    /// The plain one, in terms of matrix products.
    pub math: bool,
    /// cuDNN's.
    pub cudnn: bool,
}

/// The attention kernels that are allowed.
pub fn attention_backends() -> AttentionBackends {
    let mut raw = ffi::AttentionBackends::default();
    // SAFETY: the out-pointer is writable.
    unsafe { ffi::hb_attention(&raw mut raw) };
    AttentionBackends {
        flash: raw.flash != 0,
        memory_efficient: raw.memory_efficient != 0,
        math: raw.math != 0,
        cudnn: raw.cudnn != 0,
    }
}

/// Allows these attention kernels and no others.
///
/// # Errors
/// None that is known of.
pub fn set_attention_backends(backends: AttentionBackends) -> Result<()> {
    let raw = ffi::AttentionBackends {
        flash: backends.flash.into(),
        memory_efficient: backends.memory_efficient.into(),
        math: backends.math.into(),
        cudnn: backends.cudnn.into(),
    };
    // SAFETY: the pointer is valid for the call.
    ffi::check(unsafe { ffi::hb_set_attention(&raw const raw) }, || "set_attention_backends")
}

/// The instruction set that libtorch's CPU kernels use here, such as `AVX2` or `AVX512`. Results depend on it.
pub fn cpu_capability() -> String {
    ffi::text(ffi::hb_cpu_capability)
}

/// The version of libtorch that the bridge was compiled for, such as `2.11.0`.
pub fn libtorch_version() -> String {
    ffi::text(ffi::hb_libtorch_version)
}
