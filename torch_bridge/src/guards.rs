//! Modes of the current thread as guards.
//!
//! Each guard restores what it found when it drops, also while a panic unwinds, and belongs to its thread. Guards of
//! one mode must drop in the reverse order of their making, which scopes do by themselves. Bind them to a name:
//! `let _ = NoGrad::new()` drops at once.

use std::marker::PhantomData;

use tch::{Device, Kind};

use crate::{codes, device, ffi};

/// Not `Send`, not `Sync`: the state that a guard restores is its thread's.
type ThreadBound = PhantomData<*const ()>;

/// Sets the grad mode and puts it back.
#[derive(Debug)]
struct GradMode {
    before: bool,
    _thread: ThreadBound,
}

impl GradMode {
    fn set(enabled: bool) -> Self {
        // SAFETY: both only read and write a flag of this thread.
        let before = unsafe { ffi::hb_grad_mode() } != 0;
        // SAFETY: as above.
        unsafe { ffi::hb_set_grad_mode(enabled.into()) };
        Self { before, _thread: PhantomData }
    }
}

impl Drop for GradMode {
    fn drop(&mut self) {
        // SAFETY: only writes a flag of this thread.
        unsafe { ffi::hb_set_grad_mode(self.before.into()) }
    }
}

/// Whether operations on this thread are recorded for gradients.
pub fn is_grad_enabled() -> bool {
    // SAFETY: only reads a flag of this thread.
    unsafe { ffi::hb_grad_mode() != 0 }
}

/// While it lives, nothing on this thread is recorded for gradients.
#[derive(Debug)]
#[must_use = "the mode ends when the guard drops"]
pub struct NoGrad {
    _mode: GradMode,
}

impl NoGrad {
    /// Switches gradients off.
    #[expect(clippy::new_without_default, reason = "a guard that appears by default would be a trap")]
    pub fn new() -> Self {
        Self { _mode: GradMode::set(false) }
    }
}

/// While it lives, operations are recorded for gradients, also within a [`NoGrad`].
#[derive(Debug)]
#[must_use = "the mode ends when the guard drops"]
pub struct EnableGrad {
    _mode: GradMode,
}

impl EnableGrad {
    /// Switches gradients on.
    #[expect(clippy::new_without_default, reason = "a guard that appears by default would be a trap")]
    pub fn new() -> Self {
        Self { _mode: GradMode::set(true) }
    }
}

/// While it lives, this thread is in inference mode: no gradients and no version counters.
///
/// Tensors made in it can never take part in a graph that is recorded later; use [`NoGrad`] where they may have to.
#[derive(Debug)]
#[must_use = "the mode ends when the guard drops"]
pub struct Inference {
    mode: *mut ffi::RawInference,
    _thread: ThreadBound,
}

impl Inference {
    /// Enters inference mode.
    #[expect(clippy::new_without_default, reason = "a guard that appears by default would be a trap")]
    pub fn new() -> Self {
        // SAFETY: makes an object that `drop` deletes on the same thread.
        Self { mode: unsafe { ffi::hb_inference_enter() }, _thread: PhantomData }
    }
}

impl Drop for Inference {
    fn drop(&mut self) {
        // SAFETY: the object is ours, and this is the thread that made it.
        unsafe { ffi::hb_inference_leave(self.mode) }
    }
}

/// While it lives, eligible operations on one kind of device run in a lower precision, or (`enabled: false`) do not.
///
/// The cache of cast weights is cleared when the outermost guard ends; end it before the weights change.
#[derive(Debug)]
#[must_use = "the mode ends when the guard drops"]
pub struct Autocast {
    device: i32,
    /// Enabled and dtype as found; `None` where the device has no autocast.
    before: Option<(i32, i32)>,
    _thread: ThreadBound,
}

impl Autocast {
    /// Sets autocast for the devices of `device`'s type; its index does not matter.
    ///
    /// `kind` is `BFloat16` or `Half`. With any other, or on a device that has no autocast, operations run as they
    /// would without it.
    pub fn new(device: Device, kind: Kind, enabled: bool) -> Self {
        let device = match device {
            Device::Cuda(_) => codes::of_device(Device::Cuda(0)),
            other => codes::of_device(other),
        };
        let lowers = matches!(kind, Kind::BFloat16 | Kind::Half);
        let (mut before_enabled, mut before_kind) = (0, 0);
        // SAFETY: both out-pointers are writable.
        let known =
            unsafe { ffi::hb_autocast_get(device, &raw mut before_enabled, &raw mut before_kind) } == 0;
        let before = known.then_some((before_enabled, before_kind));
        // SAFETY: only counts the regions of this thread; `drop` counts back.
        unsafe { ffi::hb_autocast_enter() };
        if before.is_some() {
            let kind = if lowers { codes::of_kind(kind) } else { before_kind };
            // SAFETY: only writes state of this thread, for a device type that has just been read without an error.
            unsafe { ffi::hb_autocast_set(device, (enabled && lowers).into(), kind) };
        }
        Self { device, before, _thread: PhantomData }
    }

    /// The kind in which eligible operations run on `device` now; `None` where autocast is off.
    pub fn current(device: Device) -> Option<Kind> {
        let (mut enabled, mut kind) = (0, 0);
        // SAFETY: both out-pointers are writable.
        let code = unsafe { ffi::hb_autocast_get(codes::of_device(device), &raw mut enabled, &raw mut kind) };
        (code == 0 && enabled != 0).then(|| codes::to_kind(kind)).flatten()
    }
}

impl Drop for Autocast {
    fn drop(&mut self) {
        // SAFETY: pairs the count of `new`.
        unsafe { ffi::hb_autocast_leave() };
        if let Some((enabled, kind)) = self.before {
            // SAFETY: only writes state of this thread, to what it was.
            unsafe { ffi::hb_autocast_set(self.device, enabled, kind) };
        }
    }
}

/// While it lives, an operator uses this many threads.
#[derive(Debug)]
#[must_use = "the mode ends when the guard drops"]
pub struct ThreadCount {
    before: usize,
    _thread: ThreadBound,
}

impl ThreadCount {
    /// Sets the number of threads within an operator; see [`device::set_threads`].
    ///
    /// # Errors
    /// The number is zero.
    pub fn new(intra: usize) -> crate::Result<Self> {
        let before = device::threads()?.intra;
        device::set_intra_threads(intra)?;
        Ok(Self { before, _thread: PhantomData })
    }
}

impl Drop for ThreadCount {
    fn drop(&mut self) {
        // What was accepted before is accepted again.
        let _ = device::set_intra_threads(self.before);
    }
}
