//! A generator of one's own, which neither reads nor moves the default one.

use tch::{Device, Kind, Tensor};

use crate::codes;
use crate::error::{Error, Result};
use crate::ffi;
use crate::guards::NoGrad;
use crate::ops::{Argument, Opaque, Operator, Value};

/// A random generator on a device: the same seed gives the same numbers, whatever else the program draws.
///
/// Fillings are done with gradients off, so that a parameter can be initialised in place.
#[derive(Debug)]
pub struct Generator {
    raw: Opaque,
    device: Device,
}

impl Generator {
    /// A new generator.
    ///
    /// # Errors
    /// There is no such device.
    pub fn new(device: Device, seed: u64) -> Result<Self> {
        let mut out = std::ptr::null_mut();
        // SAFETY: the out-pointer is writable.
        ffi::check(
            unsafe { ffi::hb_generator_new(codes::of_device(device), seed, &raw mut out) },
            || "Generator",
        )?;
        // SAFETY: after success it is a new value that is ours.
        let raw = unsafe { Opaque::from_raw(out) };
        let raw = raw.ok_or_else(|| Error::mismatch("Generator", "a generator", "nothing"))?;
        Ok(Self { raw, device })
    }

    /// Where it draws; a tensor that it fills must be on this device.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The state, `uint8 [bytes]` on the CPU.
    ///
    /// # Errors
    /// libtorch cannot read it.
    pub fn state(&self) -> Result<Tensor> {
        // SAFETY: the generator is alive; on success the out-pointer holds a new tensor.
        ffi::tensor_out("Generator::state", |out| unsafe {
            ffi::hb_generator_get_state(self.raw.as_ptr(), out)
        })
    }

    /// Puts it into a state that [`state`](Self::state) gave.
    ///
    /// # Errors
    /// The tensor is no state of such a generator.
    pub fn set_state(&mut self, state: &Tensor) -> Result<()> {
        // SAFETY: both are alive; the tensor is only read.
        let code = unsafe { ffi::hb_generator_set_state(self.raw.as_ptr(), ffi::raw(state)) };
        ffi::check(code, || "Generator::set_state")
    }

    /// The generator as an argument for [`ops::call`](crate::ops::call).
    pub fn value(&self) -> Value {
        Value::from(&self.raw)
    }

    /// Fills with normally distributed numbers.
    ///
    /// # Errors
    /// The tensor is on another device or not of a floating kind, or `std` is negative.
    pub fn normal_(&mut self, tensor: &mut Tensor, mean: f64, std: f64) -> Result<()> {
        self.fill("normal_", "", tensor, &[Argument::Double(mean), Argument::Double(std)])
    }

    /// Fills with numbers uniform in `[from, to)`.
    ///
    /// # Errors
    /// The tensor is on another device or not of a floating kind, or the range is empty or not finite.
    pub fn uniform_(&mut self, tensor: &mut Tensor, from: f64, to: f64) -> Result<()> {
        self.fill("uniform_", "", tensor, &[Argument::Double(from), Argument::Double(to)])
    }

    /// Fills with ones at this probability and zeros otherwise.
    ///
    /// # Errors
    /// The tensor is on another device, or the probability is outside `[0, 1]`.
    pub fn bernoulli_(&mut self, tensor: &mut Tensor, probability: f64) -> Result<()> {
        self.fill("bernoulli_", "float", tensor, &[Argument::Double(probability)])
    }

    /// Fills with integers uniform in `[from, to)`.
    ///
    /// # Errors
    /// The tensor is on another device, or the range is empty or too wide for its kind.
    pub fn random_(&mut self, tensor: &mut Tensor, from: i64, to: i64) -> Result<()> {
        self.fill("random_", "from", tensor, &[Argument::Int(from), Argument::Int(to)])
    }

    /// A random permutation of `0..n`, `int64 [n]`.
    ///
    /// # Errors
    /// `n` is negative.
    pub fn permutation(&mut self, n: i64) -> Result<Tensor> {
        let arguments = [
            Argument::Int(n),
            Argument::Opaque(&self.raw),
            Argument::Kind(Kind::Int64),
            Argument::None,
            Argument::Device(self.device),
        ];
        let results = Operator::find("randperm", "generator")?.call_with(&arguments)?;
        results.into_iter().next().unwrap_or(Value::None).into_tensor()
    }

    /// Calls an in-place operator whose arguments are the tensor, `numbers` and the generator.
    fn fill(
        &mut self,
        name: &str,
        overload: &str,
        tensor: &mut Tensor,
        numbers: &[Argument<'_>],
    ) -> Result<()> {
        let _no_grad = NoGrad::new();
        let mut arguments = Vec::with_capacity(numbers.len() + 2);
        arguments.push(Argument::Tensor(tensor));
        arguments.extend_from_slice(numbers);
        arguments.push(Argument::Opaque(&self.raw));
        Operator::find(name, overload)?.call_with(&arguments).map(drop)
    }
}
