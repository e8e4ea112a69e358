//! A profile of what operators and GPU kernels cost, as libtorch's own profiler takes it.

use std::ffi::{CString, c_void};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use tch::Device;

use crate::error::{Error, Result};
use crate::{device, ffi};

static ACTIVE: AtomicBool = AtomicBool::new(false);

/// Names what this thread does until it is dropped, for the profiler: work that no operator of libtorch is.
#[derive(Debug)]
pub struct Span(*mut c_void);

impl Span {
    /// A span, if a profile is being taken; `name` is not asked for otherwise.
    pub fn enter(name: impl FnOnce() -> String) -> Option<Self> {
        if !ACTIVE.load(Ordering::Relaxed) {
            return None;
        }
        let name = CString::new(name()).ok()?;
        let mut span = std::ptr::null_mut();
        // SAFETY: the name is a terminated string, the out-pointer writable.
        let code = unsafe { ffi::hb_profiler_enter(name.as_ptr(), &raw mut span) };
        (code == 0).then_some(Self(span))
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        // SAFETY: it came from `hb_profiler_enter` and is not used again.
        unsafe { ffi::hb_profiler_leave(self.0) }
    }
}

/// A profile that is being taken; it slows the process down. [`finish`](Self::finish) it, or it is lost.
#[derive(Debug)]
pub struct Profile {
    device: Device,
    running: bool,
}

impl Profile {
    /// Begins with what this thread and the autograd threads do from now on, and with the device's kernels if it is a
    /// GPU.
    ///
    /// # Errors
    /// A profile is being taken already, or the device has failed.
    pub fn start(device: Device) -> Result<Self> {
        device::synchronize(device)?;
        let gpu = matches!(device, Device::Cuda(_));
        // SAFETY: a plain number.
        ffi::check(unsafe { ffi::hb_profiler_start(gpu.into()) }, || "profiler")?;
        ACTIVE.store(true, Ordering::Relaxed);
        Ok(Self { device, running: true })
    }

    /// Waits for the device and writes a Chrome trace (JSON, for `chrome://tracing` or Perfetto).
    ///
    /// # Errors
    /// The device has failed, or the file cannot be written.
    pub fn finish(mut self, path: &Path) -> Result<()> {
        device::synchronize(self.device)?;
        self.stop(path)
    }

    fn stop(&mut self, path: &Path) -> Result<()> {
        self.running = false;
        ACTIVE.store(false, Ordering::Relaxed);
        let name = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| Error::other(format!("{} has a zero byte in its name", path.display())))?;
        // SAFETY: the path is a terminated string.
        ffi::check(unsafe { ffi::hb_profiler_stop(name.as_ptr()) }, || "profiler")
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        if self.running {
            // Whatever interrupted it counts, not that there is no file.
            let _ = self.stop(Path::new("/dev/null"));
        }
    }
}
