//! What goes into an operator and comes out of it.

use std::ffi::c_void;
use std::fmt;
use std::ptr::NonNull;

use tch::{Device, Kind, Tensor};

use super::argument::Argument;
use super::operator::collect;
use crate::error::{Error, Result};
use crate::ffi::{self, tag};

/// An owned argument or result of an operator.
///
/// A tensor in it is a handle, as everywhere in torch: building a `Value` from `&Tensor` copies no data. Conversions
/// that lose nothing are made for the schema's sake: an int is taken where a float or a scalar is wanted, a list of
/// ints where a list of floats is, a list of tensors where a list of optional tensors is.
#[derive(Debug)]
pub enum Value {
    /// Nothing; as an argument, an optional one that is not given.
    None,
    /// A tensor.
    Tensor(Tensor),
    /// `Tensor[]`.
    TensorList(Vec<Tensor>),
    /// `Tensor?[]`, as indexing takes it.
    OptionalTensorList(Vec<Option<Tensor>>),
    /// An integer, or a scalar that is one.
    Int(i64),
    /// A float, or a scalar that is one.
    Double(f64),
    /// A bool.
    Bool(bool),
    /// `int[]`.
    IntList(Vec<i64>),
    /// `float[]`.
    DoubleList(Vec<f64>),
    /// `bool[]`.
    BoolList(Vec<bool>),
    /// A string.
    String(String),
    /// A dtype. As a result it comes back as [`Value::Int`].
    ScalarType(Kind),
    /// A device. As a result it comes back as [`Value::Opaque`].
    Device(Device),
    /// Anything else that libtorch can hold: a generator, a process group, a dictionary.
    Opaque(Opaque),
}

impl Value {
    /// The tensor.
    ///
    /// # Errors
    /// It is something else.
    pub fn into_tensor(self) -> Result<Tensor> {
        match self {
            Self::Tensor(tensor) => Ok(tensor),
            other => Err(other.is_not("a tensor")),
        }
    }

    /// The tensor, or `None` for a result that is left undefined.
    ///
    /// # Errors
    /// It is something else.
    pub fn into_optional_tensor(self) -> Result<Option<Tensor>> {
        match self {
            Self::Tensor(tensor) => Ok(Some(tensor)),
            Self::None => Ok(None),
            other => Err(other.is_not("a tensor or None")),
        }
    }

    /// The list of tensors.
    ///
    /// # Errors
    /// It is something else.
    pub fn into_tensors(self) -> Result<Vec<Tensor>> {
        match self {
            Self::TensorList(list) => Ok(list),
            other => Err(other.is_not("a list of tensors")),
        }
    }

    /// The integer.
    ///
    /// # Errors
    /// It is something else.
    pub fn into_int(self) -> Result<i64> {
        match self {
            Self::Int(number) => Ok(number),
            other => Err(other.is_not("an int")),
        }
    }

    /// The float; an integer is converted.
    ///
    /// # Errors
    /// It is something else.
    pub fn into_double(self) -> Result<f64> {
        match self {
            Self::Double(number) => Ok(number),
            Self::Int(number) => Ok(number as f64),
            other => Err(other.is_not("a float")),
        }
    }

    /// The bool.
    ///
    /// # Errors
    /// It is something else.
    pub fn into_bool(self) -> Result<bool> {
        match self {
            Self::Bool(flag) => Ok(flag),
            other => Err(other.is_not("a bool")),
        }
    }

    /// The string.
    ///
    /// # Errors
    /// It is something else.
    pub fn into_string(self) -> Result<String> {
        match self {
            Self::String(text) => Ok(text),
            other => Err(other.is_not("a string")),
        }
    }

    /// The list of ints.
    ///
    /// # Errors
    /// It is something else.
    pub fn into_ints(self) -> Result<Vec<i64>> {
        match self {
            Self::IntList(list) => Ok(list),
            other => Err(other.is_not("a list of ints")),
        }
    }

    /// The list of floats.
    ///
    /// # Errors
    /// It is something else.
    pub fn into_doubles(self) -> Result<Vec<f64>> {
        match self {
            Self::DoubleList(list) => Ok(list),
            other => Err(other.is_not("a list of floats")),
        }
    }

    fn is_not(&self, expected: &str) -> Error {
        Error::mismatch("the result of an operator", expected, self.describe())
    }

    fn describe(&self) -> String {
        match self {
            Self::None => "None".to_owned(),
            Self::Tensor(_) => "a tensor".to_owned(),
            Self::TensorList(list) => format!("a list of {} tensors", list.len()),
            Self::OptionalTensorList(list) => format!("a list of {} optional tensors", list.len()),
            Self::Int(number) => format!("the int {number}"),
            Self::Double(number) => format!("the float {number}"),
            Self::Bool(flag) => format!("the bool {flag}"),
            Self::IntList(list) => format!("a list of {} ints", list.len()),
            Self::DoubleList(list) => format!("a list of {} floats", list.len()),
            Self::BoolList(list) => format!("a list of {} bools", list.len()),
            Self::String(text) => format!("the string {text:?}"),
            Self::ScalarType(kind) => format!("the dtype {kind:?}"),
            Self::Device(device) => format!("the device {device:?}"),
            Self::Opaque(opaque) => format!("{opaque:?}"),
        }
    }

    pub(super) fn as_argument(&self) -> Argument<'_> {
        match self {
            Self::None => Argument::None,
            Self::Tensor(tensor) => Argument::Tensor(tensor),
            Self::TensorList(list) => Argument::Tensors(list),
            Self::OptionalTensorList(list) => Argument::OptionalTensors(list),
            Self::Int(number) => Argument::Int(*number),
            Self::Double(number) => Argument::Double(*number),
            Self::Bool(flag) => Argument::Bool(*flag),
            Self::IntList(list) => Argument::Ints(list),
            Self::DoubleList(list) => Argument::Doubles(list),
            Self::BoolList(list) => Argument::Bools(list),
            Self::String(text) => Argument::String(text),
            Self::ScalarType(kind) => Argument::Kind(*kind),
            Self::Device(device) => Argument::Device(*device),
            Self::Opaque(opaque) => Argument::Opaque(opaque),
        }
    }

    /// Takes over what the C interface delivers.
    ///
    /// # Safety
    /// `raw` is a valid result, and this is the one place that takes its tensors and opaque value over.
    pub(super) unsafe fn from_raw(raw: &ffi::Value) -> Self {
        match raw.tag {
            tag::TENSOR => {
                // SAFETY: a new tensor that is ours.
                Self::Tensor(unsafe { Tensor::from_ptr(raw.data.cast_mut().cast()) })
            }
            tag::TENSOR_LIST => {
                // SAFETY: the elements are pointers to tensors,
                let pointers = unsafe { slice::<*mut ffi::C_tensor>(raw) };
                // SAFETY: each of them new and ours.
                Self::TensorList(pointers.iter().map(|tensor| unsafe { Tensor::from_ptr(*tensor) }).collect())
            }
            tag::INT => Self::Int(raw.integer),
            tag::DOUBLE => Self::Double(raw.real),
            tag::BOOL => Self::Bool(raw.integer != 0),
            // SAFETY: the elements are ints.
            tag::INT_LIST => Self::IntList(unsafe { slice(raw) }.to_vec()),
            // SAFETY: the elements are doubles.
            tag::DOUBLE_LIST => Self::DoubleList(unsafe { slice(raw) }.to_vec()),
            // SAFETY: the elements are bytes.
            tag::BOOL_LIST => {
                Self::BoolList(unsafe { slice::<u8>(raw) }.iter().map(|byte| *byte != 0).collect())
            }
            // SAFETY: the elements are bytes.
            tag::STRING => Self::String(String::from_utf8_lossy(unsafe { slice::<u8>(raw) }).into_owned()),
            tag::OPAQUE => {
                NonNull::new(raw.data.cast_mut().cast()).map_or(Self::None, |raw| Self::Opaque(Opaque(raw)))
            }
            _ => Self::None,
        }
    }
}

/// The elements that a raw value points at.
///
/// # Safety
/// `raw.data` points at `raw.length` elements of type `T`, or the length is zero.
unsafe fn slice<T>(raw: &ffi::Value) -> &[T] {
    if raw.length == 0 {
        return &[];
    }
    // SAFETY: by the caller's promise.
    unsafe { std::slice::from_raw_parts(raw.data.cast(), raw.length) }
}

/// A value of libtorch that has no form of its own here, to be passed on to another operator.
pub struct Opaque(NonNull<ffi::RawOpaque>);

// SAFETY: an IValue is a value or a counted reference with an atomic count; it is owned by one thread at a time.
unsafe impl Send for Opaque {}

impl Opaque {
    /// # Safety
    /// `raw` is a new `IValue` that nobody else frees.
    pub(crate) unsafe fn from_raw(raw: *mut ffi::RawOpaque) -> Option<Self> {
        NonNull::new(raw).map(Self)
    }

    pub(crate) fn as_ptr(&self) -> *const ffi::RawOpaque {
        self.0.as_ptr()
    }

    /// libtorch's name for the type, as schemas write it.
    ///
    /// # Errors
    /// libtorch cannot describe it.
    pub fn type_name(&self) -> Result<String> {
        let mut results: Vec<Value> = Vec::new();
        // SAFETY: the value is alive; the sink gets the vector that it expects.
        let code =
            unsafe { ffi::hb_opaque_describe(self.as_ptr(), collect, (&raw mut results).cast::<c_void>()) };
        ffi::check(code, || "the type of a value")?;
        results.pop().unwrap_or(Value::None).into_string()
    }
}

impl Clone for Opaque {
    /// Another handle on the same object.
    fn clone(&self) -> Self {
        // SAFETY: the value is alive.
        let copy = unsafe { ffi::hb_opaque_clone(self.as_ptr()) };
        // SAFETY: the copy is new, and C++'s `new` does not return null.
        Self(unsafe { NonNull::new_unchecked(copy) })
    }
}

impl Drop for Opaque {
    fn drop(&mut self) {
        // SAFETY: the value is ours and freed once.
        unsafe { ffi::hb_opaque_free(self.0.as_ptr()) }
    }
}

impl fmt::Debug for Opaque {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Opaque({})", self.type_name().unwrap_or_else(|_| "?".to_owned()))
    }
}

macro_rules! from {
    ($($from:ty: $value:ident => $to:expr;)*) => {
        $(impl From<$from> for Value {
            fn from($value: $from) -> Self {
                $to
            }
        })*
    };
}

from! {
    (): _nothing => Self::None;
    Tensor: tensor => Self::Tensor(tensor);
    &Tensor: tensor => Self::Tensor(tensor.shallow_clone());
    Option<Tensor>: tensor => tensor.map_or(Self::None, Self::Tensor);
    Option<&Tensor>: tensor => tensor.map_or(Self::None, Self::from);
    Vec<Tensor>: list => Self::TensorList(list);
    &[Tensor]: list => Self::TensorList(list.iter().map(Tensor::shallow_clone).collect());
    &Vec<Tensor>: list => Self::from(list.as_slice());
    Vec<Option<Tensor>>: list => Self::OptionalTensorList(list);
    i64: number => Self::Int(number);
    i32: number => Self::Int(number.into());
    Option<i64>: number => number.map_or(Self::None, Self::Int);
    f64: number => Self::Double(number);
    f32: number => Self::Double(number.into());
    Option<f64>: number => number.map_or(Self::None, Self::Double);
    bool: flag => Self::Bool(flag);
    Vec<i64>: list => Self::IntList(list);
    &[i64]: list => Self::IntList(list.to_vec());
    Vec<f64>: list => Self::DoubleList(list);
    &[f64]: list => Self::DoubleList(list.to_vec());
    Vec<bool>: list => Self::BoolList(list);
    String: text => Self::String(text);
    &str: text => Self::String(text.to_owned());
    Kind: kind => Self::ScalarType(kind);
    Option<Kind>: kind => kind.map_or(Self::None, Self::ScalarType);
    Device: device => Self::Device(device);
    Opaque: opaque => Self::Opaque(opaque);
    &Opaque: opaque => Self::Opaque(opaque.clone());
}

impl<const N: usize> From<[i64; N]> for Value {
    fn from(list: [i64; N]) -> Self {
        Self::IntList(list.to_vec())
    }
}

impl<const N: usize> From<&[Tensor; N]> for Value {
    fn from(list: &[Tensor; N]) -> Self {
        Self::from(list.as_slice())
    }
}
