//! What is allocated, on a device and in the process.

use tch::Device;

use crate::codes;
use crate::error::{Error, Result};
use crate::ffi;

/// Bytes in use now and at most since the last [`reset_peak`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryStats {
    /// Held by living tensors. For the CPU: the resident set of the process.
    pub allocated: u64,
    /// The most that `allocated` has been.
    pub allocated_peak: u64,
    /// Taken from the device by the caching allocator. For the CPU as `allocated`.
    pub reserved: u64,
    /// The most that `reserved` has been.
    pub reserved_peak: u64,
}

/// The memory of a device in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Not taken by any process.
    pub free: u64,
    /// All there is.
    pub total: u64,
}

/// What is allocated: on an accelerator by libtorch in this process, on the CPU by the process as a whole.
///
/// # Errors
/// There is no such device, or `/proc` cannot be read.
pub fn stats(device: Device) -> Result<MemoryStats> {
    if device == Device::Cpu {
        return process();
    }
    let mut raw = ffi::Memory::default();
    // SAFETY: the out-pointer is writable.
    ffi::check(unsafe { ffi::hb_memory_stats(codes::of_device(device), &raw mut raw) }, || "memory::stats")?;
    let bytes = |number: i64| u64::try_from(number).unwrap_or(0);
    Ok(MemoryStats {
        allocated: bytes(raw.allocated),
        allocated_peak: bytes(raw.allocated_peak),
        reserved: bytes(raw.reserved),
        reserved_peak: bytes(raw.reserved_peak),
    })
}

/// Starts the peaks again from what is allocated now.
///
/// # Errors
/// There is no such device. For the CPU: the system does not let a process reset its peak.
pub fn reset_peak(device: Device) -> Result<()> {
    if device == Device::Cpu {
        // 5 resets the peak of the resident set: proc(5).
        const PATH: &str = "/proc/self/clear_refs";
        return std::fs::write(PATH, "5").map_err(|source| Error::Io { path: PATH.to_owned(), source });
    }
    // SAFETY: plain numbers.
    ffi::check(unsafe { ffi::hb_memory_reset_peak(codes::of_device(device)) }, || "memory::reset_peak")
}

/// Free and total memory of an accelerator.
///
/// # Errors
/// There is no such device, or it is the CPU.
pub fn capacity(device: Device) -> Result<Capacity> {
    let (mut free, mut total) = (0, 0);
    // SAFETY: both out-pointers are writable.
    let code = unsafe { ffi::hb_memory_capacity(codes::of_device(device), &raw mut free, &raw mut total) };
    ffi::check(code, || "memory::capacity")?;
    Ok(Capacity { free, total })
}

/// Gives memory that the caching allocator holds without using it back to the device. Nothing to do on the CPU.
///
/// # Errors
/// There is no such device.
pub fn empty_cache(device: Device) -> Result<()> {
    if device == Device::Cpu {
        return Ok(());
    }
    // SAFETY: plain numbers.
    ffi::check(unsafe { ffi::hb_memory_empty_cache(codes::of_device(device)) }, || "memory::empty_cache")
}

fn process() -> Result<MemoryStats> {
    const PATH: &str = "/proc/self/status";
    let status =
        std::fs::read_to_string(PATH).map_err(|source| Error::Io { path: PATH.to_owned(), source })?;
    let bytes = |field: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(field)?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
            .map(|kibibytes| kibibytes * 1024)
            .ok_or_else(|| Error::mismatch(PATH, format!("a line `{field} ... kB`"), "none"))
    };
    let (now, peak) = (bytes("VmRSS:")?, bytes("VmHWM:")?);
    Ok(MemoryStats { allocated: now, allocated_peak: peak, reserved: now, reserved_peak: peak })
}
