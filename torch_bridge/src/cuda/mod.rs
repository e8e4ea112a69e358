//! Opening the CUDA half of libtorch at run time.
//!
//! No binary of the project links `libtorch_cuda.so`. [`open`] loads it where it exists, so one binary runs on a
//! machine without a GPU and, unchanged, on one with.

pub mod graph;

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// What came of opening `libtorch_cuda.so`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CudaStatus {
    /// Whether the library is open. A GPU may still be missing: that is `tch::Cuda::is_available`'s question.
    pub opened: bool,
    /// The file that was opened, or that would have been.
    pub path: Option<PathBuf>,
    /// Why it was not opened.
    pub reason: Option<String>,
}

const LIBRARY: &str = "libtorch_cuda.so";
const VARIABLE: &str = "HYMBA_LIBTORCH";

const CUBLAS_WORKSPACE: &str = "CUBLAS_WORKSPACE_CONFIG";

static STATUS: OnceLock<CudaStatus> = OnceLock::new();

/// Opens `libtorch_cuda.so`, once; later calls return the first outcome. Never fatal: the CPU path goes on.
///
/// Call it first thing in `main`. libtorch looks for its CUDA half at its first need and remembers the answer, so a
/// library that is opened after the first torch call stays unused.
///
/// The file is looked for in the directory that `HYMBA_LIBTORCH` names (libtorch's root or its `lib`), else beside
/// the `libtorch_cpu.so` that this process runs with. Both must be of one build.
pub fn open() -> CudaStatus {
    STATUS.get_or_init(try_open).clone()
}

/// The outcome of [`open`], without opening anything.
pub fn status() -> CudaStatus {
    STATUS.get().cloned().unwrap_or_else(|| CudaStatus {
        opened: false,
        path: None,
        reason: Some("torch_bridge::cuda::open has not been called".to_owned()),
    })
}

fn try_open() -> CudaStatus {
    // cuBLAS is reproducible only with a workspace of fixed size, which it reads from the environment when a handle
    // is made; a user's own setting stands.
    if std::env::var_os(CUBLAS_WORKSPACE).is_none() {
        // SAFETY: `open` is the first thing in `main`, so no other thread reads the environment yet.
        unsafe { std::env::set_var(CUBLAS_WORKSPACE, ":4096:8") };
    }
    let refused = |path, reason| CudaStatus { opened: false, path, reason: Some(reason) };
    let directories = match library_directories() {
        Ok(directories) => directories,
        Err(reason) => return refused(None, reason),
    };
    let Some(path) = directories.iter().map(|directory| directory.join(LIBRARY)).find(|path| path.exists())
    else {
        let looked: Vec<_> = directories.iter().map(|directory| directory.display().to_string()).collect();
        return refused(
            None,
            format!("no {LIBRARY} in {}: this is a CPU build of libtorch", looked.join(" or ")),
        );
    };
    // SAFETY: the initialisers of libtorch_cuda register its kernels and hooks and are meant to run on loading; the
    // symbols must be global because libtorch's own plug-ins look for them.
    match unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) } {
        Ok(library) => {
            // The registered kernels point into it for the life of the process.
            std::mem::forget(library);
            CudaStatus { opened: true, path: Some(path), reason: None }
        }
        Err(error) => refused(Some(path), error.to_string()),
    }
}

/// The directories of this process' libtorch, in the order of trust: where its CUDA half and the libraries that belong
/// to it may lie.
///
/// # Errors
/// `HYMBA_LIBTORCH` names no directory, or nobody can tell which `libtorch_cpu.so` is loaded.
pub fn library_directories() -> Result<Vec<PathBuf>, String> {
    if let Some(root) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
        let root = PathBuf::from(root);
        if !root.is_dir() {
            return Err(format!("{VARIABLE} names {}, which is no directory", root.display()));
        }
        return Ok(vec![root.join("lib"), root]);
    }
    let cpu = libtorch_cpu().ok_or_else(|| "cannot tell where libtorch_cpu.so was loaded from".to_owned())?;
    let mut found: Vec<PathBuf> = cpu.parent().map(Path::to_path_buf).into_iter().collect();
    // It may have been loaded through a link from a directory that holds no more than the link.
    if let Some(real) = cpu.canonicalize().ok().and_then(|real| real.parent().map(Path::to_path_buf))
        && !found.contains(&real)
    {
        found.push(real);
    }
    Ok(found)
}

/// The file of the `libtorch_cpu.so` that runs in this process.
fn libtorch_cpu() -> Option<PathBuf> {
    // `at::get_num_threads()`, which only libtorch_cpu defines.
    const SYMBOL: &CStr = c"_ZN2at15get_num_threadsEv";
    // SAFETY: the name is a terminated string; a missing symbol gives null.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, SYMBOL.as_ptr()) };
    if address.is_null() {
        return None;
    }
    // SAFETY: all fields of Dl_info are pointers, for which zero is a valid value.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is writable and the address is of a loaded library.
    if unsafe { libc::dladdr(address, &raw mut info) } == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: dladdr gave a terminated string that lives as long as the library.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    Some(PathBuf::from(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name.to_bytes())))
}
