//! Programs on GPUs: each is compiled and loaded once per device, and stays.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tch::Device;
use torch_bridge::{Error, Result};

use super::compiler::Compiler;
use super::driver::{Driver, Gpu, Kernel, Module};
use super::launch::{Launch, index};
use super::program::{Define, Program};

/// Why a kernel cannot run here: something is missing or does not compile. Not an error of the call.
#[derive(Clone, Debug)]
pub(crate) struct Unavailable(pub(super) Arc<str>);

impl From<&str> for Unavailable {
    fn from(reason: &str) -> Self {
        Self(reason.into())
    }
}

impl From<String> for Unavailable {
    fn from(reason: String) -> Self {
        Self(reason.into())
    }
}

/// A program with certain macros, on one GPU.
pub(crate) struct Loaded {
    program: &'static Program,
    device: Device,
    module: Module,
    kernels: Mutex<HashMap<&'static str, &'static Kernel>>,
    constants: Mutex<HashMap<&'static str, i32>>,
}

/// A program is known by its address: it is a static.
type Key = (usize, Vec<Define>, usize);
type Table<K, V> = Mutex<HashMap<K, Result<&'static V, Unavailable>>>;

impl Program {
    /// This program with these macros, ready to launch on `device`; compiled and loaded at the first call, which takes
    /// a moment and must not come while a graph is captured.
    pub(crate) fn on(
        &'static self,
        device: Device,
        defines: &[Define],
    ) -> Result<&'static Loaded, Unavailable> {
        static LOADED: OnceLock<Table<Key, Loaded>> = OnceLock::new();
        let device_index = index(device).ok_or("CUDA kernels run on CUDA devices")?;
        let key = (std::ptr::from_ref(self).addr(), defines.to_vec(), device_index);
        let mut loaded = lock(LOADED.get_or_init(Mutex::default));
        loaded
            .entry(key)
            .or_insert_with(|| {
                let (gpu, compiler, architecture) = architecture(device)?;
                let compiled = compiler.compile(self, defines, architecture)?;
                let module = gpu.load(&compiled.cubin)?;
                let loaded = Loaded {
                    program: self,
                    device,
                    module,
                    kernels: Mutex::default(),
                    constants: Mutex::default(),
                };
                Ok(Box::leak(Box::new(loaded)))
            })
            .clone()
    }
}

impl Loaded {
    /// A launch of the kernel of this name, without arguments yet.
    ///
    /// # Errors
    /// The program has no such kernel.
    pub(crate) fn kernel<'a>(&'static self, name: &'static str) -> Result<Launch<'a>> {
        let mut kernels = lock(&self.kernels);
        let kernel = if let Some(kernel) = kernels.get(name) {
            kernel
        } else {
            let kernel = self.named(name, Module::kernel)?;
            kernels.entry(name).or_insert(Box::leak(Box::new(kernel)))
        };
        Ok(Launch::new(self, name, kernel))
    }

    /// The value of the source's global `extern "C" int` of this name.
    ///
    /// # Errors
    /// The program has no such global.
    pub(crate) fn constant(&self, name: &'static str) -> Result<i32> {
        let mut constants = lock(&self.constants);
        if let Some(value) = constants.get(name) {
            return Ok(*value);
        }
        let value = self.named(name, Module::constant)?;
        constants.insert(name, value);
        Ok(value)
    }

    fn named<R>(&self, name: &str, get: impl FnOnce(&Module, &CStr) -> Result<R, String>) -> Result<R> {
        let terminated = CString::new(name).map_err(Error::other)?;
        get(&self.module, &terminated)
            .map_err(|reason| Error::other(format!("{name} of kernels/src/{}: {reason}", self.program.path)))
    }

    /// Streaming multiprocessors of the GPU.
    pub(crate) fn multiprocessors(&self) -> i64 {
        self.module.gpu().multiprocessors.into()
    }

    /// Dynamic shared memory that a block may have, in bytes.
    pub(crate) fn shared_bytes(&self) -> u32 {
        self.module.gpu().shared_bytes
    }

    pub(super) fn program(&self) -> &'static Program {
        self.program
    }

    pub(super) fn device(&self) -> Device {
        self.device
    }

    pub(super) fn module(&self) -> &Module {
        &self.module
    }
}

/// A device, the compiler, and what it compiles for.
pub(super) fn architecture(device: Device) -> Result<(&'static Gpu, &'static Compiler, i32), Unavailable> {
    let index = index(device).ok_or("CUDA kernels run on CUDA devices")?;
    let (gpu, compiler) = (gpu(index)?, compiler()?);
    Ok((gpu, compiler, compiler.architecture(gpu.capability)?))
}

fn compiler() -> Result<&'static Compiler, Unavailable> {
    static COMPILER: OnceLock<Result<Compiler, String>> = OnceLock::new();
    COMPILER.get_or_init(Compiler::of_user).as_ref().map_err(|reason| reason.as_str().into())
}

fn gpu(index: usize) -> Result<&'static Gpu, Unavailable> {
    static GPUS: OnceLock<Table<usize, Gpu>> = OnceLock::new();
    let mut gpus = lock(GPUS.get_or_init(Mutex::default));
    gpus.entry(index).or_insert_with(|| Ok(Box::leak(Box::new(Driver::get()?.gpu(index)?)))).clone()
}

/// A panic while the lock was held has left the table as it was before or after, both of which are good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
