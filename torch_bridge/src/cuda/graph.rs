//! CUDA graphs: a sequence of launches, recorded once and given to the device in one call.
//!
//! What is recorded reads and writes the same addresses at every replay. Memory that it allocates comes from a pool of
//! its own and stays valid as long as the graph lives; random numbers go on with the device's generator. Recording
//! fails where the host waits for the device or copies from memory that is not pinned.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::ptr::NonNull;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use tch::Device;

use crate::error::{Error, Result};

/// `cuda/graph.cpp`, compiled.
const LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libhymba_cuda_graph.so"));

/// The functions of [`LIBRARY`]; it stays open for the life of the process.
struct Functions {
    error: unsafe extern "C" fn() -> *const c_char,
    side_stream: unsafe extern "C" fn(c_int) -> c_int,
    pool: unsafe extern "C" fn(*mut u64, *mut u64) -> c_int,
    new: unsafe extern "C" fn() -> *mut c_void,
    begin: unsafe extern "C" fn(*mut c_void, u64, u64) -> c_int,
    end: unsafe extern "C" fn(*mut c_void) -> c_int,
    replay: unsafe extern "C" fn(*mut c_void) -> c_int,
    free: unsafe extern "C" fn(*mut c_void),
}

fn functions() -> Result<&'static Functions> {
    static FUNCTIONS: OnceLock<Result<Functions, String>> = OnceLock::new();
    let functions = FUNCTIONS.get_or_init(|| {
        let status = super::status();
        if !status.opened {
            let reason = status.reason.unwrap_or_else(|| "libtorch's CUDA half is not open".to_owned());
            return Err(reason);
        }
        open().map_err(|error| error.to_string())
    });
    functions.as_ref().map_err(|reason| Error::other(format!("CUDA graphs: {reason}")))
}

fn open() -> Result<Functions, Box<dyn std::error::Error>> {
    // A file without a name: nothing to clean up, nothing that a full or read-only disk can refuse.
    // SAFETY: the name is a terminated string.
    let fd = unsafe { libc::memfd_create(c"hymba_cuda_graph".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(Box::new(std::io::Error::last_os_error()));
    }
    // SAFETY: the descriptor is new and nobody else's.
    let mut file = unsafe { std::fs::File::from_raw_fd(fd) };
    file.write_all(LIBRARY)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // SAFETY: the library has no initialisers beside those of the C++ runtime.
    let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) }?;
    // SAFETY: the names are those of `cuda/graph.cpp`, the types are its signatures.
    let functions = unsafe {
        Functions {
            error: *library.get(b"hb_graph_error\0")?,
            side_stream: *library.get(b"hb_graph_side_stream\0")?,
            pool: *library.get(b"hb_graph_pool\0")?,
            new: *library.get(b"hb_graph_new\0")?,
            begin: *library.get(b"hb_graph_begin\0")?,
            end: *library.get(b"hb_graph_end\0")?,
            replay: *library.get(b"hb_graph_replay\0")?,
            free: *library.get(b"hb_graph_free\0")?,
        }
    };
    std::mem::forget(library);
    Ok(functions)
}

impl Functions {
    fn check(&self, code: c_int, operation: &str) -> Result<()> {
        if code == 0 { Ok(()) } else { Err(self.last_error(operation)) }
    }

    fn last_error(&self, operation: &str) -> Error {
        // SAFETY: the text is terminated and stays until this thread's next call.
        let text = unsafe { CStr::from_ptr((self.error)()) };
        Error::torch(operation, &text.to_string_lossy())
    }
}

/// Whether graphs can be recorded in this process, or why not.
///
/// # Errors
/// libtorch's CUDA half is not open, or does not fit the bridge.
pub fn available() -> Result<()> {
    functions().map(drop)
}

/// Makes the device this thread's current one, and there a stream beside the default one, on which graphs can be recorded;
/// waits for the device once.
/// Everything that this thread computes on the device from then on runs there.
///
/// # Errors
/// Graphs are not available, or the device is no GPU.
pub fn use_side_stream(device: Device) -> Result<()> {
    let functions = functions()?;
    let Device::Cuda(index) = device else {
        return Err(Error::mismatch("use_side_stream", "a CUDA device", format!("{device:?}")));
    };
    let index = c_int::try_from(index)
        .map_err(|_| Error::mismatch("use_side_stream", "a device number", index.to_string()))?;
    // SAFETY: a plain number.
    functions.check(unsafe { (functions.side_stream)(index) }, "use_side_stream")
}

/// Memory that graphs share which are never replayed at the same time, and of whose results none is needed after
/// another was replayed.
#[derive(Debug, Clone, Copy)]
pub struct Pool(u64, u64);

impl Pool {
    /// A new one.
    ///
    /// # Errors
    /// Graphs are not available.
    pub fn new() -> Result<Self> {
        let functions = functions()?;
        let (mut first, mut second) = (0, 0);
        // SAFETY: both out-pointers are writable.
        functions.check(unsafe { (functions.pool)(&raw mut first, &raw mut second) }, "graph_pool")?;
        Ok(Self(first, second))
    }
}

/// A recorded sequence of launches.
#[derive(Debug)]
pub struct Graph {
    handle: NonNull<c_void>,
}

impl Graph {
    /// Records what `work` gives to this thread's stream, backward passes among it, without running any of it; gives the
    /// graph and what `work` gave. Tensors among that hold nothing before the first [`replay`](Self::replay).
    ///
    /// `work` must have run before (kernels are compiled and workspaces made at the first call), on a stream of
    /// [`use_side_stream`].
    ///
    /// # Errors
    /// `work` fails, or does something that cannot be recorded. Graphs that were recorded before and draw random numbers
    /// are then to be dropped: their numbers no longer follow the device's generator.
    pub fn record<T, E: From<Error>>(
        pool: Pool,
        work: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<(Self, T), E> {
        let functions = functions()?;
        // SAFETY: takes nothing.
        let handle = NonNull::new(unsafe { (functions.new)() })
            .ok_or_else(|| functions.last_error("CUDAGraph::CUDAGraph"))?;
        let graph = Self { handle };
        // SAFETY: the handle is alive.
        let code = unsafe { (functions.begin)(handle.as_ptr(), pool.0, pool.1) };
        functions.check(code, "CUDAGraph::capture_begin")?;
        let mut recording = Recording { functions, handle: Some(handle) };
        let outcome = work();
        // What went wrong in `work` says more than what that did to the recording.
        let ended = recording.end();
        let outcome = outcome?;
        ended?;
        Ok((graph, outcome))
    }

    /// Gives the recorded launches to this thread's stream.
    ///
    /// # Errors
    /// The device refuses.
    pub fn replay(&self) -> Result<()> {
        let functions = functions()?;
        // SAFETY: the handle is alive.
        functions.check(unsafe { (functions.replay)(self.handle.as_ptr()) }, "CUDAGraph::replay")
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Ok(functions) = functions() {
            // SAFETY: the handle is alive and not used again.
            unsafe { (functions.free)(self.handle.as_ptr()) }
        }
    }
}

/// Ends a recording also where `work` panics: a stream that goes on recording would refuse everything.
struct Recording {
    functions: &'static Functions,
    handle: Option<NonNull<c_void>>,
}

impl Recording {
    fn end(&mut self) -> Result<()> {
        let Some(handle) = self.handle.take() else { return Ok(()) };
        // SAFETY: the graph outlives its recording.
        self.functions.check(unsafe { (self.functions.end)(handle.as_ptr()) }, "CUDAGraph::capture_end")
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let _ = self.end();
    }
}
