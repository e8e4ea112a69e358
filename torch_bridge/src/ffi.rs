//! The C interface of `cpp/`, and the few wrappers that make it safe to hold.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::NonNull;

use tch::Tensor;
pub(crate) use torch_sys::C_tensor;

use crate::error::{Error, Result};

/// What a [`Value`] of the C interface is; the same numbers as `Tag` in `dispatch.cpp`.
pub(crate) mod tag {
    pub(crate) const NONE: i32 = 0;
    pub(crate) const TENSOR: i32 = 1;
    pub(crate) const INT: i32 = 2;
    pub(crate) const DOUBLE: i32 = 3;
    pub(crate) const BOOL: i32 = 4;
    pub(crate) const STRING: i32 = 5;
    pub(crate) const TENSOR_LIST: i32 = 6;
    pub(crate) const OPTIONAL_TENSOR_LIST: i32 = 7;
    pub(crate) const INT_LIST: i32 = 8;
    pub(crate) const DOUBLE_LIST: i32 = 9;
    pub(crate) const BOOL_LIST: i32 = 10;
    pub(crate) const SCALAR_TYPE: i32 = 11;
    pub(crate) const DEVICE: i32 = 12;
    pub(crate) const OPAQUE: i32 = 13;
}

/// One argument or result of an operator; which fields count depends on the tag.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Value {
    pub(crate) tag: i32,
    pub(crate) integer: i64,
    pub(crate) real: f64,
    pub(crate) data: *const c_void,
    pub(crate) length: usize,
}

/// A growable list of tensors, owned by C++.
#[repr(C)]
pub(crate) struct RawTensors {
    _private: [u8; 0],
}

/// A `c10::OperatorHandle`.
#[repr(C)]
pub(crate) struct RawOperator {
    _private: [u8; 0],
}

/// A `c10::IValue`.
#[repr(C)]
pub(crate) struct RawOpaque {
    _private: [u8; 0],
}

/// A `c10::InferenceMode`.
#[repr(C)]
pub(crate) struct RawInference {
    _private: [u8; 0],
}

#[repr(C)]
pub(crate) struct ForwardFrame {
    pub(crate) inputs: *const RawTensors,
    pub(crate) needs_grad: *const u8,
    pub(crate) outputs: *mut RawTensors,
    pub(crate) saved: *mut RawTensors,
    pub(crate) non_differentiable: *mut RawTensors,
}

#[repr(C)]
pub(crate) struct BackwardFrame {
    pub(crate) saved: *const RawTensors,
    pub(crate) grads: *const RawTensors,
    pub(crate) input_grads: *mut RawTensors,
    pub(crate) inputs: usize,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct TensorFacts {
    pub(crate) defined: i32,
    pub(crate) plain: i32,
    pub(crate) contiguous: i32,
    pub(crate) on_cpu: i32,
    pub(crate) scalar_type: i32,
    pub(crate) elements: i64,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) allocated: i64,
    pub(crate) allocated_peak: i64,
    pub(crate) reserved: i64,
    pub(crate) reserved_peak: i64,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct AttentionBackends {
    pub(crate) flash: i32,
    pub(crate) memory_efficient: i32,
    pub(crate) math: i32,
    pub(crate) cudnn: i32,
}

pub(crate) type Sink = extern "C" fn(*mut c_void, *const Value);
pub(crate) type ForwardFn = extern "C" fn(*mut c_void, *const ForwardFrame) -> c_int;
pub(crate) type BackwardFn = extern "C" fn(*mut c_void, *const BackwardFrame) -> c_int;
pub(crate) type DropFn = extern "C" fn(*mut c_void);

unsafe extern "C" {
    // errors
    fn hb_last_error() -> *const c_char;
    fn hb_set_error(text: *const c_char, length: usize);

    // lists of tensors
    fn hb_tensors_new(capacity: usize) -> *mut RawTensors;
    fn hb_tensors_free(list: *mut RawTensors);
    fn hb_tensors_length(list: *const RawTensors) -> usize;
    fn hb_tensors_push(list: *mut RawTensors, tensor: *const C_tensor);
    fn hb_tensors_get(list: *const RawTensors, index: usize) -> *mut C_tensor;

    // operators
    pub(crate) fn hb_operator_find(
        name: *const c_char,
        overload: *const c_char,
        out: *mut *const RawOperator,
    ) -> c_int;
    pub(crate) fn hb_operator_schema(op: *const RawOperator, sink: Sink, context: *mut c_void) -> c_int;
    pub(crate) fn hb_operator_call(
        op: *const RawOperator,
        arguments: *const Value,
        count: usize,
        sink: Sink,
        context: *mut c_void,
    ) -> c_int;
    pub(crate) fn hb_opaque_free(value: *mut RawOpaque);
    pub(crate) fn hb_opaque_clone(value: *const RawOpaque) -> *mut RawOpaque;
    pub(crate) fn hb_opaque_describe(value: *const RawOpaque, sink: Sink, context: *mut c_void) -> c_int;

    // autograd
    pub(crate) fn hb_function_apply(
        name: *const c_char,
        state: *mut c_void,
        forward: ForwardFn,
        backward: BackwardFn,
        drop: DropFn,
        inputs: *const RawTensors,
        outputs: *mut RawTensors,
    ) -> c_int;
    pub(crate) fn hb_grad(
        outputs: *const RawTensors,
        inputs: *const RawTensors,
        grad_outputs: *const RawTensors,
        retain_graph: c_int,
        create_graph: c_int,
        allow_unused: c_int,
        grads: *mut RawTensors,
    ) -> c_int;
    pub(crate) fn hb_backward(
        tensors: *const RawTensors,
        grad_tensors: *const RawTensors,
        retain_graph: c_int,
    ) -> c_int;

    // tensors
    pub(crate) fn hb_tensor_inspect(tensor: *const C_tensor, facts: *mut TensorFacts) -> c_int;
    pub(crate) fn hb_tensor_data(tensor: *const C_tensor, writable: c_int, data: *mut *mut c_void) -> c_int;
    pub(crate) fn hb_tensor_bump_version(tensor: *const C_tensor) -> c_int;

    // modes
    pub(crate) fn hb_grad_mode() -> c_int;
    pub(crate) fn hb_set_grad_mode(enabled: c_int);
    pub(crate) fn hb_inference_enter() -> *mut RawInference;
    pub(crate) fn hb_inference_leave(mode: *mut RawInference);
    pub(crate) fn hb_autocast_get(device: i32, enabled: *mut i32, scalar_type: *mut i32) -> c_int;
    pub(crate) fn hb_autocast_set(device: i32, enabled: c_int, scalar_type: i32) -> c_int;
    pub(crate) fn hb_autocast_enter();
    pub(crate) fn hb_autocast_leave();

    // random numbers
    pub(crate) fn hb_rng_get_state(device: i32, state: *mut *mut C_tensor) -> c_int;
    pub(crate) fn hb_rng_set_state(device: i32, state: *const C_tensor) -> c_int;
    pub(crate) fn hb_rng_seed(device: i32, seed: u64) -> c_int;
    pub(crate) fn hb_generator_new(device: i32, seed: u64, out: *mut *mut RawOpaque) -> c_int;
    pub(crate) fn hb_generator_get_state(generator: *const RawOpaque, state: *mut *mut C_tensor) -> c_int;
    pub(crate) fn hb_generator_set_state(generator: *const RawOpaque, state: *const C_tensor) -> c_int;

    // accelerators
    pub(crate) fn hb_profiler_start(with_cuda: c_int) -> c_int;
    pub(crate) fn hb_profiler_enter(name: *const c_char, span: *mut *mut c_void) -> c_int;
    pub(crate) fn hb_profiler_leave(span: *mut c_void);
    pub(crate) fn hb_profiler_stop(path: *const c_char) -> c_int;

    pub(crate) fn hb_memory_stats(device: i32, out: *mut Memory) -> c_int;
    pub(crate) fn hb_memory_reset_peak(device: i32) -> c_int;
    pub(crate) fn hb_memory_capacity(device: i32, free: *mut u64, total: *mut u64) -> c_int;
    pub(crate) fn hb_memory_empty_cache(device: i32) -> c_int;
    pub(crate) fn hb_synchronize(device: i32) -> c_int;
    pub(crate) fn hb_current_stream(device: i32, native: *mut *mut c_void, id: *mut i64) -> c_int;

    // threads
    pub(crate) fn hb_parallel_for(
        count: i64,
        grain: i64,
        body: extern "C" fn(*mut c_void, i64, i64),
        user: *mut c_void,
    );

    // settings
    pub(crate) fn hb_threads(intra: *mut i32, inter: *mut i32) -> c_int;
    pub(crate) fn hb_set_intra_threads(count: i32) -> c_int;
    pub(crate) fn hb_set_inter_threads(count: i32) -> c_int;
    pub(crate) fn hb_set_deterministic(enabled: c_int, warn_only: c_int) -> c_int;
    pub(crate) fn hb_deterministic() -> c_int;
    pub(crate) fn hb_set_backend_determinism(mkldnn: c_int, cudnn: c_int, cudnn_benchmark: c_int) -> c_int;
    pub(crate) fn hb_set_matmul_precision(name: *const c_char) -> c_int;
    pub(crate) fn hb_matmul_precision(level: *mut i32) -> c_int;
    pub(crate) fn hb_set_cudnn_tf32(allowed: c_int) -> c_int;
    pub(crate) fn hb_attention(out: *mut AttentionBackends);
    pub(crate) fn hb_set_attention(backends: *const AttentionBackends) -> c_int;
    pub(crate) fn hb_cpu_capability() -> *const c_char;
    pub(crate) fn hb_libtorch_version() -> *const c_char;
}

/// Turns a return code into a result; `operation` names what was called.
pub(crate) fn check<S: Into<String>>(code: c_int, operation: impl FnOnce() -> S) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(Error::torch(operation(), &last_error())) }
}

/// The message of this thread's last failed call.
pub(crate) fn last_error() -> String {
    // SAFETY: the pointer is to a thread-local string that lives until this thread's next failing call.
    unsafe { CStr::from_ptr(hb_last_error()) }.to_string_lossy().into_owned()
}

/// Leaves a message for the C++ caller of the callback that we are in.
pub(crate) fn set_error(message: &str) {
    // SAFETY: the text is copied before the call returns.
    unsafe { hb_set_error(message.as_ptr().cast(), message.len()) }
}

/// A static text of the library.
pub(crate) fn text(of: unsafe extern "C" fn() -> *const c_char) -> String {
    // SAFETY: only functions that return a static, terminated string are passed in.
    unsafe { CStr::from_ptr(of()) }.to_string_lossy().into_owned()
}

/// The C++ tensor behind `tensor`, borrowed.
pub(crate) fn raw(tensor: &Tensor) -> *const C_tensor {
    tensor.as_ptr()
}

/// Asks for one tensor by an out-pointer.
pub(crate) fn tensor_out(
    operation: &'static str,
    call: impl FnOnce(*mut *mut C_tensor) -> c_int,
) -> Result<Tensor> {
    let mut out = std::ptr::null_mut();
    check(call(&raw mut out), || operation)?;
    // SAFETY: after success the pointer is a new tensor that is ours.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// An owned list of tensors for the C interface.
pub(crate) struct TensorList(NonNull<RawTensors>);

impl TensorList {
    pub(crate) fn new<'a>(tensors: impl ExactSizeIterator<Item = Option<&'a Tensor>>) -> Self {
        // SAFETY: `hb_tensors_new` returns a new list that nobody else has.
        let list = unsafe { hb_tensors_new(tensors.len()) };
        let Some(owned) = NonNull::new(list) else {
            std::alloc::handle_alloc_error(std::alloc::Layout::new::<usize>())
        };
        let owned = Self(owned);
        for tensor in tensors {
            // SAFETY: the list is alive and ours.
            unsafe { push(owned.as_mut_ptr(), tensor) };
        }
        owned
    }

    pub(crate) fn empty() -> Self {
        Self::new(std::iter::empty())
    }

    pub(crate) fn as_ptr(&self) -> *const RawTensors {
        self.0.as_ptr()
    }

    pub(crate) fn as_mut_ptr(&self) -> *mut RawTensors {
        self.0.as_ptr()
    }

    pub(crate) fn to_vec(&self) -> Vec<Option<Tensor>> {
        // SAFETY: the list is alive.
        unsafe { read(self.as_ptr()) }
    }
}

impl Drop for TensorList {
    fn drop(&mut self) {
        // SAFETY: the list was made by `hb_tensors_new` and is freed once.
        unsafe { hb_tensors_free(self.0.as_ptr()) }
    }
}

/// Appends a tensor, or an undefined one.
///
/// # Safety
/// `list` is alive and used by nobody else.
pub(crate) unsafe fn push(list: *mut RawTensors, tensor: Option<&Tensor>) {
    // SAFETY: by the caller's promise; the tensor is copied as a handle.
    unsafe { hb_tensors_push(list, tensor.map_or(std::ptr::null(), raw)) }
}

/// New handles on all tensors of a list, `None` for undefined ones.
///
/// # Safety
/// `list` is alive and not changed meanwhile.
pub(crate) unsafe fn read(list: *const RawTensors) -> Vec<Option<Tensor>> {
    // SAFETY: by the caller's promise.
    let length = unsafe { hb_tensors_length(list) };
    (0..length)
        .map(|index| {
            // SAFETY: the index is in range; the result is null or a new tensor that is ours.
            let tensor = unsafe { hb_tensors_get(list, index) };
            // SAFETY: as above.
            (!tensor.is_null()).then(|| unsafe { Tensor::from_ptr(tensor) })
        })
        .collect()
}
