//! NVRTC, NVIDIA's compiler of CUDA C++ as a library: source in, machine code for one architecture out. It needs no
//! GPU and no driver.

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use super::library::{self, functions};

/// The name that the loader knows it by; CUDA 13, as libtorch.
const LIBRARY: &str = "libnvrtc.so.13";
/// What it opens by itself when it compiles, and would look for on the loader's path only.
const BUILTINS: &str = "libnvrtc-builtins.so.";

type Program = *mut c_void;

functions! {
    struct Functions {
        version = b"nvrtcVersion\0": fn(*mut c_int, *mut c_int);
        count_architectures = b"nvrtcGetNumSupportedArchs\0": fn(*mut c_int);
        architectures = b"nvrtcGetSupportedArchs\0": fn(*mut c_int);
        create = b"nvrtcCreateProgram\0": fn(
            *mut Program, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char,
        );
        destroy = b"nvrtcDestroyProgram\0": fn(*mut Program);
        compile = b"nvrtcCompileProgram\0": fn(Program, c_int, *const *const c_char);
        log_size = b"nvrtcGetProgramLogSize\0": fn(Program, *mut usize);
        log = b"nvrtcGetProgramLog\0": fn(Program, *mut c_char);
        cubin_size = b"nvrtcGetCUBINSize\0": fn(Program, *mut usize);
        cubin = b"nvrtcGetCUBIN\0": fn(Program, *mut c_char);
    }
}

/// The compiler, open.
pub(super) struct Nvrtc {
    functions: Functions,
    /// Major and minor.
    pub(super) version: (i32, i32),
    /// The file it was opened from.
    pub(super) path: PathBuf,
    /// The architectures it compiles for, ascending: 90 for sm_90.
    pub(super) architectures: Vec<i32>,
}

/// One compilation.
#[derive(Clone, Debug)]
pub(super) struct Unit<'a> {
    /// What messages call the file.
    pub(super) name: &'a str,
    /// Its text.
    pub(super) text: &'a str,
    /// Name, as an `#include` gives it, and text of every header.
    pub(super) headers: &'a [(&'a str, &'a str)],
    /// As on NVRTC's command line, the architecture among them.
    pub(super) options: &'a [String],
}

/// What came of one.
#[derive(Debug)]
pub(super) struct Compiled {
    /// Machine code.
    pub(super) cubin: Vec<u8>,
    /// The compiler's warnings; mostly empty.
    pub(super) log: String,
}

impl Nvrtc {
    /// The compiler of this process, or what is missing. Looked for once: beside libtorch, then on the loader's path.
    pub(super) fn get() -> Result<&'static Self, &'static str> {
        static NVRTC: OnceLock<Result<Nvrtc, String>> = OnceLock::new();
        NVRTC.get_or_init(Self::find).as_ref().map_err(String::as_str)
    }

    fn find() -> Result<Self, String> {
        // A CUDA toolkit on the loader's path may be older than libtorch's own, so it comes last.
        let beside = torch_bridge::cuda::library_directories().unwrap_or_default();
        let folders = beside.iter().flat_map(|lib| [lib.join("../../nvidia/cu13/lib"), lib.clone()]);
        let mut files: Vec<PathBuf> =
            folders.map(|folder| folder.join(LIBRARY)).filter(|file| file.exists()).collect();
        files.push(LIBRARY.into());
        let mut reasons = Vec::new();
        for file in files {
            match Self::open(&file) {
                Ok(nvrtc) => return Ok(nvrtc),
                Err(reason) => reasons.push(reason),
            }
        }
        Err(format!(
            "no NVRTC ({}); `cargo xtask setup --nvrtc`, or pip's nvidia-cuda-nvrtc, brings it",
            reasons.join("; ")
        ))
    }

    fn open(file: &Path) -> Result<Self, String> {
        let library = library::open(file)?;
        open_builtins(file);
        let functions = Functions::of(library)?;
        let (mut major, mut minor, mut count) = (0, 0, 0);
        // SAFETY: the out-pointers are writable.
        let codes = unsafe {
            [
                (functions.version)(&raw mut major, &raw mut minor),
                (functions.count_architectures)(&raw mut count),
            ]
        };
        let mut architectures = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: there is room for as many numbers as the library has said.
        let listed = unsafe { (functions.architectures)(architectures.as_mut_ptr()) };
        if codes != [0, 0] || listed != 0 {
            return Err(format!("{}: it cannot say its version", file.display()));
        }
        architectures.sort_unstable();
        Ok(Self { functions, version: (major, minor), path: file.to_owned(), architectures })
    }

    /// The architecture to compile for when a card has compute capability `capability` (90 for 9.0): its own, or the
    /// newest older one of the same generation, whose code it runs too.
    pub(super) fn architecture(&self, capability: i32) -> Option<i32> {
        let same =
            |architecture: &&i32| **architecture / 10 == capability / 10 && **architecture <= capability;
        self.architectures.iter().rfind(same).copied()
    }

    /// Compiles, or gives the compiler's messages, which name file and line.
    pub(super) fn compile(&self, unit: &Unit<'_>) -> Result<Compiled, String> {
        let text =
            |text: &str| CString::new(text).map_err(|_| format!("{}: a zero byte in the text", unit.name));
        let pointers = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).collect::<Vec<_>>();
        let (source, name) = (text(unit.text)?, text(unit.name)?);
        let names = unit.headers.iter().map(|(name, _)| text(name)).collect::<Result<Vec<_>, _>>()?;
        let headers = unit.headers.iter().map(|(_, header)| text(header)).collect::<Result<Vec<_>, _>>()?;
        let options = unit.options.iter().map(|option| text(option)).collect::<Result<Vec<_>, _>>()?;
        let (names, headers, options) = (pointers(&names), pointers(&headers), pointers(&options));

        let mut program = null_mut();
        // SAFETY: all texts are terminated and alive, and there is one name per header.
        let created = unsafe {
            (self.functions.create)(
                &raw mut program,
                source.as_ptr(),
                name.as_ptr(),
                headers.len() as c_int,
                if headers.is_empty() { null() } else { headers.as_ptr() },
                if names.is_empty() { null() } else { names.as_ptr() },
            )
        };
        if created != 0 {
            return Err(format!("{}: NVRTC refuses the program (code {created})", unit.name));
        }
        let program = Destroyed { functions: &self.functions, program };
        // SAFETY: the program is alive and the options are terminated texts.
        let code =
            unsafe { (self.functions.compile)(program.program, options.len() as c_int, options.as_ptr()) };
        let log = program.bytes(self.functions.log_size, self.functions.log)?;
        let log = String::from_utf8_lossy(&log).trim_end_matches('\0').trim_end().to_owned();
        if code != 0 {
            let log = if log.is_empty() { format!("NVRTC gives code {code} and no reason") } else { log };
            return Err(log);
        }
        let cubin = program.bytes(self.functions.cubin_size, self.functions.cubin)?;
        if cubin.is_empty() {
            return Err(format!(
                "{}: NVRTC made no machine code; the options name a virtual architecture",
                unit.name
            ));
        }
        Ok(Compiled { cubin, log })
    }
}

/// A program of NVRTC's, destroyed when it drops.
struct Destroyed<'a> {
    functions: &'a Functions,
    program: Program,
}

impl Destroyed<'_> {
    /// What a pair of functions gives: its size, then its bytes.
    fn bytes(
        &self,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        get: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ) -> Result<Vec<u8>, String> {
        let mut length = 0;
        // SAFETY: the program is alive and the out-pointer writable.
        let sized = unsafe { size(self.program, &raw mut length) };
        let mut bytes = vec![0; length];
        // SAFETY: there is room for as many bytes as the library has said.
        let got = unsafe { get(self.program, bytes.as_mut_ptr().cast()) };
        if sized != 0 || got != 0 { Err("NVRTC gives no result".to_owned()) } else { Ok(bytes) }
    }
}

impl Drop for Destroyed<'_> {
    fn drop(&mut self) {
        // SAFETY: it was created, and nobody uses it any more. What could fail here has no one to be told.
        unsafe { (self.functions.destroy)(&raw mut self.program) };
    }
}

/// Opens the library of built-ins that lies beside NVRTC, so that NVRTC finds it open already.
fn open_builtins(nvrtc: &Path) {
    let Some(folder) = nvrtc.parent().filter(|folder| folder.is_dir()) else { return };
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for file in files.filter(|file| file.file_name().to_string_lossy().starts_with(BUILTINS)) {
        // If it does not open, NVRTC says so when it compiles.
        let _ = library::open(&file.path());
    }
}
