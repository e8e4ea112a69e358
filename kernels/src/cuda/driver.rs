//! The CUDA driver: contexts, modules, launches. Present wherever a GPU is usable; opened at run time.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::ptr::null_mut;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::library::{self, functions};

const LIBRARY: &str = "libcuda.so.1";

/// Numbers of `CUdevice_attribute`.
const COMPUTE_CAPABILITY_MAJOR: c_int = 75;
const COMPUTE_CAPABILITY_MINOR: c_int = 76;
const MULTIPROCESSORS: c_int = 16;
const SHARED_BYTES_OF_A_BLOCK: c_int = 97;
/// Number of `CUfunction_attribute`: dynamic shared memory that a block may have.
const DYNAMIC_SHARED_BYTES: c_int = 8;
/// What a block may have without asking.
const SHARED_BYTES_UNASKED: u32 = 48 << 10;

type Context = *mut c_void;

functions! {
    struct Functions {
        init = b"cuInit\0": fn(c_uint);
        error_name = b"cuGetErrorName\0": fn(c_int, *mut *const c_char);
        error_string = b"cuGetErrorString\0": fn(c_int, *mut *const c_char);
        device = b"cuDeviceGet\0": fn(*mut c_int, c_int);
        attribute = b"cuDeviceGetAttribute\0": fn(*mut c_int, c_int, c_int);
        retain_primary = b"cuDevicePrimaryCtxRetain\0": fn(*mut Context, c_int);
        current = b"cuCtxGetCurrent\0": fn(*mut Context);
        push = b"cuCtxPushCurrent_v2\0": fn(Context);
        pop = b"cuCtxPopCurrent_v2\0": fn(*mut Context);
        load = b"cuModuleLoadData\0": fn(*mut *mut c_void, *const c_void);
        function = b"cuModuleGetFunction\0": fn(*mut *mut c_void, *mut c_void, *const c_char);
        global = b"cuModuleGetGlobal_v2\0": fn(*mut u64, *mut usize, *mut c_void, *const c_char);
        copy_to_host = b"cuMemcpyDtoH_v2\0": fn(*mut c_void, u64, usize);
        parameter = b"cuFuncGetParamInfo\0": fn(*mut c_void, usize, *mut usize, *mut usize);
        set_attribute = b"cuFuncSetAttribute\0": fn(*mut c_void, c_int, c_int);
        launch = b"cuLaunchKernel\0": fn(
            *mut c_void, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, *mut c_void, *mut *mut c_void,
            *mut *mut c_void,
        );
    }
}

/// The driver, open.
pub(super) struct Driver {
    functions: Functions,
}

/// One GPU, through the context that libtorch uses too.
pub(super) struct Gpu {
    driver: &'static Driver,
    context: Context,
    /// 90 for compute capability 9.0.
    pub(super) capability: i32,
    /// Streaming multiprocessors.
    pub(super) multiprocessors: u32,
    /// Shared memory that a block may ask for, in bytes.
    pub(super) shared_bytes: u32,
}

// SAFETY: a context is a handle that any thread may use; the driver locks for itself.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

/// A kernel of a loaded module.
pub(super) struct Kernel {
    handle: *mut c_void,
    /// Size of each parameter, in bytes.
    parameters: Vec<usize>,
    /// Dynamic shared memory that it may have by now.
    allowed: Mutex<u32>,
}

// SAFETY: a handle that any thread may launch; the driver locks for itself.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// A loaded module. It stays loaded for the life of the process, so its kernels do too.
pub(super) struct Module {
    gpu: &'static Gpu,
    handle: *mut c_void,
}

// SAFETY: a handle that any thread may ask for kernels; the driver locks for itself.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// How many blocks of how many threads, with how much dynamic shared memory each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    /// In bytes.
    pub(crate) shared: u32,
}

impl Driver {
    /// The driver of this process, or what is missing.
    pub(super) fn get() -> Result<&'static Self, &'static str> {
        static DRIVER: OnceLock<Result<Driver, String>> = OnceLock::new();
        DRIVER.get_or_init(Self::open).as_ref().map_err(String::as_str)
    }

    fn open() -> Result<Self, String> {
        let library =
            library::open(Path::new(LIBRARY)).map_err(|reason| format!("no CUDA driver ({reason})"))?;
        let driver = Self { functions: Functions::of(library)? };
        // SAFETY: 0 is the one value that is allowed.
        driver.check("cuInit", unsafe { (driver.functions.init)(0) })?;
        Ok(driver)
    }

    /// The GPU of this index, in the order of libtorch.
    pub(super) fn gpu(&'static self, index: usize) -> Result<Gpu, String> {
        let (mut device, mut context) = (0, null_mut());
        let wanted = c_int::try_from(index).unwrap_or(c_int::MAX);
        // SAFETY: the out-pointer is writable.
        self.check("cuDeviceGet", unsafe { (self.functions.device)(&raw mut device, wanted) })?;
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: the out-pointer is writable.
            let code = unsafe { (self.functions.attribute)(&raw mut value, which, device) };
            self.check("cuDeviceGetAttribute", code).map(|()| value)
        };
        let capability = attribute(COMPUTE_CAPABILITY_MAJOR)? * 10 + attribute(COMPUTE_CAPABILITY_MINOR)?;
        let multiprocessors = attribute(MULTIPROCESSORS)?.unsigned_abs();
        let shared_bytes = attribute(SHARED_BYTES_OF_A_BLOCK)?.unsigned_abs();
        // The primary context is the one that the CUDA runtime, and so libtorch, uses. Retained for good.
        // SAFETY: the out-pointer is writable and the device exists.
        let code = unsafe { (self.functions.retain_primary)(&raw mut context, device) };
        self.check("cuDevicePrimaryCtxRetain", code)?;
        Ok(Gpu { driver: self, context, capability, multiprocessors, shared_bytes })
    }

    fn check(&self, call: &str, code: c_int) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        let text = |get: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int| {
            let mut text = std::ptr::null();
            // SAFETY: the out-pointer is writable; what comes is null or a text of the library's own.
            (unsafe { get(code, &raw mut text) } == 0 && !text.is_null())
                .then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
        };
        let name = text(self.functions.error_name).unwrap_or_else(|| format!("code {code}"));
        let reason = text(self.functions.error_string).unwrap_or_default();
        Err(format!("{call}: {name}: {reason}"))
    }
}

impl Gpu {
    /// Loads machine code.
    pub(super) fn load(&'static self, cubin: &[u8]) -> Result<Module, String> {
        let mut handle = null_mut();
        self.inside(|driver| {
            // SAFETY: the out-pointer is writable, and the machine code, an ELF file that says its own length, is
            // copied by the driver.
            let code = unsafe { (driver.functions.load)(&raw mut handle, cubin.as_ptr().cast()) };
            driver.check("cuModuleLoadData", code)
        })?;
        Ok(Module { gpu: self, handle })
    }

    /// Runs `body` with this GPU's context current on this thread.
    fn inside<R>(&self, body: impl FnOnce(&Driver) -> Result<R, String>) -> Result<R, String> {
        let (driver, mut current) = (self.driver, null_mut());
        // SAFETY: the out-pointer is writable.
        driver.check("cuCtxGetCurrent", unsafe { (driver.functions.current)(&raw mut current) })?;
        if current == self.context {
            return body(driver);
        }
        // SAFETY: the context is retained for good.
        driver.check("cuCtxPushCurrent", unsafe { (driver.functions.push)(self.context) })?;
        let result = body(driver);
        // SAFETY: what was pushed above is on top; the out-pointer is writable.
        let popped = unsafe { (driver.functions.pop)(&raw mut current) };
        result.and_then(|value| driver.check("cuCtxPopCurrent", popped).map(|()| value))
    }
}

impl Module {
    pub(super) fn gpu(&self) -> &'static Gpu {
        self.gpu
    }

    /// The kernel of this name, which the source declares `extern "C"`.
    pub(super) fn kernel(&self, name: &CStr) -> Result<Kernel, String> {
        let mut handle = null_mut();
        self.gpu.inside(|driver| {
            // SAFETY: the module is loaded, the name terminated and the out-pointer writable.
            let code = unsafe { (driver.functions.function)(&raw mut handle, self.handle, name.as_ptr()) };
            driver.check("cuModuleGetFunction", code)
        })?;
        let parameter = |index| {
            let (mut offset, mut size) = (0, 0);
            let get = self.gpu.driver.functions.parameter;
            // SAFETY: the kernel is loaded and the out-pointers are writable; beyond the last parameter comes an error.
            (unsafe { get(handle, index, &raw mut offset, &raw mut size) } == 0).then_some(size)
        };
        let parameters = (0..).map_while(parameter).collect();
        Ok(Kernel { handle, parameters, allowed: Mutex::new(SHARED_BYTES_UNASKED) })
    }

    /// The value of a global `int` of the source, which declares it `extern "C"`.
    pub(super) fn constant(&self, name: &CStr) -> Result<i32, String> {
        let (mut address, mut bytes, mut value) = (0, 0, 0i32);
        self.gpu.inside(|driver| {
            // SAFETY: the module is loaded, the name terminated and the out-pointers writable.
            let found = unsafe {
                (driver.functions.global)(&raw mut address, &raw mut bytes, self.handle, name.as_ptr())
            };
            driver.check("cuModuleGetGlobal", found)?;
            if bytes != size_of::<i32>() {
                return Err(format!("the global has {bytes} bytes and is no int"));
            }
            // SAFETY: the global has as many bytes as the value that it is copied to.
            let copied = unsafe { (driver.functions.copy_to_host)((&raw mut value).cast(), address, bytes) };
            driver.check("cuMemcpyDtoH", copied)
        })?;
        Ok(value)
    }

    /// Gives a kernel of this module to a stream of its GPU.
    ///
    /// # Safety
    /// `arguments` must point to one value per parameter of the kernel, of its type, and what they point to on the
    /// GPU must be as large as the kernel takes it to be.
    pub(super) unsafe fn launch(
        &self,
        kernel: &Kernel,
        shape: Shape,
        stream: *mut c_void,
        arguments: &mut [*mut c_void],
    ) -> Result<(), String> {
        let ([gx, gy, gz], [bx, by, bz]) = (shape.grid, shape.block);
        self.gpu.inside(|driver| {
            kernel.allow(driver, shape.shared)?;
            // SAFETY: the kernel is loaded on this context and the arguments are what the caller promises; their
            // values are copied before the call returns.
            let code = unsafe {
                (driver.functions.launch)(
                    kernel.handle,
                    gx,
                    gy,
                    gz,
                    bx,
                    by,
                    bz,
                    shape.shared,
                    stream,
                    arguments.as_mut_ptr(),
                    null_mut(),
                )
            };
            driver.check("cuLaunchKernel", code)
        })
    }
}

impl Kernel {
    /// Size of each parameter, in bytes.
    pub(super) fn parameters(&self) -> &[usize] {
        &self.parameters
    }

    /// Asks for more shared memory than every block may have.
    fn allow(&self, driver: &Driver, bytes: u32) -> Result<(), String> {
        let mut allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes > *allowed {
            // SAFETY: the kernel is loaded on the current context.
            let code = unsafe {
                (driver.functions.set_attribute)(self.handle, DYNAMIC_SHARED_BYTES, bytes.cast_signed())
            };
            driver.check("cuFuncSetAttribute", code)?;
            *allowed = bytes;
        }
        Ok(())
    }
}
