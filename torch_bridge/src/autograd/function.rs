//! Functions with a backward of their own.

use std::ffi::{CString, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::Tensor;

use crate::error::{Error, Result};
use crate::ffi::{self, BackwardFrame, ForwardFrame, TensorList};
use crate::panics;

/// A function with its own backward: `outputs = f(inputs)`, `input_grads = df(saved, output_grads)`.
///
/// The value itself is the state of one call. It lives as long as the node in the graph and is dropped exactly once,
/// on whichever thread lets the graph go. Small things (shapes, flags, a closure) belong into its fields; tensors that
/// the backward reads belong into [`Saved`], because only those are freed with the graph after the backward and
/// checked for having been changed in place meanwhile.
///
/// ```no_run
/// use tch::Tensor;
/// use torch_bridge::{Result, autograd::{self, Function, Saved}};
///
/// struct Square;
///
/// impl Function for Square {
///     fn forward(&mut self, saved: &mut Saved, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
///         saved.save(&inputs[0]);
///         Ok(vec![inputs[0].f_square()?])
///     }
///     fn backward(&mut self, saved: &[Tensor], grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
///         let Some(grad) = &grads[0] else { return Ok(vec![None]) };
///         Ok(vec![Some(grad.f_mul(&saved[0])?.f_mul_scalar(2.0)?)])
///     }
/// }
///
/// # fn main() -> Result<()> {
/// # let x = Tensor::zeros([2], tch::kind::DOUBLE_CPU);
/// let y = autograd::apply("square", Square, &[&x])?;
/// # Ok(()) }
/// ```
pub trait Function: Send + 'static {
    /// Computes the outputs, with gradients off. An output may be an input; integer outputs carry no gradient.
    ///
    /// # Errors
    /// Whatever the function cannot do; [`apply`] returns it with the function's name before it. A panic becomes an
    /// error too.
    fn forward(&mut self, context: &mut Saved, inputs: &[Tensor]) -> Result<Vec<Tensor>>;

    /// Computes the gradient of each input, in order: `None` where there is none to give.
    ///
    /// `grads` has one entry per output, `None` where nothing flowed back. Each gradient must have the shape of its
    /// input, or one that sums down to it. With `create_graph` gradients are on, and a backward made of differentiable
    /// operations can be differentiated again. On a GPU this runs on the autograd thread of the device: thread-local
    /// state of the caller is not there.
    ///
    /// # Errors
    /// Whatever the function cannot do; the call that ran the backward returns it. A panic becomes an error too.
    fn backward(&mut self, saved: &[Tensor], grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>>;
}

/// What a forward leaves for its backward, and what it may ask.
#[derive(Debug)]
pub struct Saved {
    tensors: Vec<Tensor>,
    non_differentiable: Vec<usize>,
    needs_grad: Vec<bool>,
}

impl Saved {
    /// Keeps a tensor for the backward, which gets them in the order of the calls: inputs, outputs or intermediates.
    pub fn save(&mut self, tensor: &Tensor) {
        self.tensors.push(tensor.shallow_clone());
    }

    /// Declares that the output of this index carries no gradient.
    pub fn mark_non_differentiable(&mut self, output: usize) {
        self.non_differentiable.push(output);
    }

    /// Whether a gradient can be asked of the input of this index. When it is `false` for all, nothing that is saved
    /// will be read.
    pub fn needs_grad(&self, input: usize) -> bool {
        self.needs_grad.get(input).copied().unwrap_or(false)
    }

    /// [`needs_grad`](Self::needs_grad) of every input; copy it into the function if its backward can save work by it.
    pub fn needs_grads(&self) -> &[bool] {
        &self.needs_grad
    }

    /// Whether any input needs a gradient.
    pub fn needs_any_grad(&self) -> bool {
        self.needs_grad.contains(&true)
    }
}

/// Runs `function` on `inputs` and records it in the graph if an input requires a gradient. `name` is for messages.
///
/// # Errors
/// The forward returns an error, panics, or marks an output that it does not have.
pub fn apply<F: Function>(name: &str, function: F, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
    // Only a name with a zero byte in it cannot cross; what it says is for messages alone.
    let name = CString::new(name.replace('\0', " ")).map_err(Error::other)?;
    let inputs = TensorList::new(inputs.iter().map(|input| Some(*input)));
    let outputs = TensorList::empty();
    let state = Box::into_raw(Box::new(function)).cast::<c_void>();
    // SAFETY: the name is terminated and the lists are alive; C++ takes `state` over and hands it back to the three
    // callbacks of its own type, to `release` exactly once.
    let code = unsafe {
        ffi::hb_function_apply(
            name.as_ptr(),
            state,
            forward::<F>,
            backward::<F>,
            release::<F>,
            inputs.as_ptr(),
            outputs.as_mut_ptr(),
        )
    };
    ffi::check(code, || "autograd function")?;
    Ok(defined_or_empty(outputs.to_vec()))
}

/// An undefined tensor stays one: tch has a value for it.
fn defined_or_empty(tensors: Vec<Option<Tensor>>) -> Vec<Tensor> {
    tensors.into_iter().map(|tensor| tensor.unwrap_or_else(Tensor::new)).collect()
}

extern "C" fn forward<F: Function>(state: *mut c_void, frame: *const ForwardFrame) -> c_int {
    report(|| {
        // SAFETY: C++ passes the frame of this call, whose lists live until we return.
        let frame = unsafe { &*frame };
        // SAFETY: the state is the `F` of `apply`, and no node runs twice at a time.
        let function = unsafe { &mut *state.cast::<F>() };
        // SAFETY: the list of inputs is alive and not changed.
        let inputs = defined_or_empty(unsafe { ffi::read(frame.inputs) });
        let needs_grad = if inputs.is_empty() {
            Vec::new()
        } else {
            // SAFETY: there is one byte per input.
            unsafe { std::slice::from_raw_parts(frame.needs_grad, inputs.len()) }
                .iter()
                .map(|byte| *byte != 0)
                .collect()
        };
        let mut saved = Saved { tensors: Vec::new(), non_differentiable: Vec::new(), needs_grad };
        let outputs = function.forward(&mut saved, &inputs)?;
        for &index in &saved.non_differentiable {
            let output = outputs.get(index).ok_or_else(|| {
                Error::mismatch(
                    "mark_non_differentiable",
                    format!("an index below {}", outputs.len()),
                    index.to_string(),
                )
            })?;
            // SAFETY: the list is alive and only we touch it.
            unsafe { ffi::push(frame.non_differentiable, Some(output)) }
        }
        for output in &outputs {
            // SAFETY: the list is alive and only we touch it.
            unsafe { ffi::push(frame.outputs, Some(output)) }
        }
        for tensor in &saved.tensors {
            // SAFETY: the list is alive and only we touch it.
            unsafe { ffi::push(frame.saved, Some(tensor)) }
        }
        Ok(())
    })
}

extern "C" fn backward<F: Function>(state: *mut c_void, frame: *const BackwardFrame) -> c_int {
    report(|| {
        // SAFETY: C++ passes the frame of this call, whose lists live until we return.
        let frame = unsafe { &*frame };
        // SAFETY: the state is the `F` of `apply`, and the node's lock keeps a second run out.
        let function = unsafe { &mut *state.cast::<F>() };
        // SAFETY: both lists are alive and not changed.
        let (saved, grads) = unsafe { (defined_or_empty(ffi::read(frame.saved)), ffi::read(frame.grads)) };
        let input_grads = function.backward(&saved, &grads)?;
        if input_grads.len() != frame.inputs {
            let got = format!("{} gradients", input_grads.len());
            return Err(Error::mismatch(
                "the number of gradients",
                format!("{}, one per input", frame.inputs),
                got,
            ));
        }
        for grad in &input_grads {
            // SAFETY: the list is alive and only we touch it.
            unsafe { ffi::push(frame.input_grads, grad.as_ref()) }
        }
        Ok(())
    })
}

extern "C" fn release<F: Function>(state: *mut c_void) {
    // SAFETY: the state came from `Box::into_raw` in `apply`, and C++ calls this once.
    let function = unsafe { Box::from_raw(state.cast::<F>()) };
    // A destructor has nobody to report to: a panic in it ends here (the panic hook has shown it).
    let _ = catch_unwind(AssertUnwindSafe(|| drop(function)));
}

/// Runs the body of a callback; errors and panics become -1 and a message for C++.
fn report(body: impl FnOnce() -> Result<()>) -> c_int {
    let message = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return 0,
        Ok(Err(error)) => error.to_string(),
        Err(payload) => format!("panic: {}", panics::message(payload.as_ref())),
    };
    ffi::set_error(&message);
    -1
}
