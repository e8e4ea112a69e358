//! Arguments as they are borrowed for the length of one call.

use std::ffi::c_void;

use tch::{Device, Kind, Tensor};

use super::Opaque;
use crate::codes;
use crate::ffi::{self, tag};

/// A borrowed [`Value`](super::Value).
#[derive(Clone, Copy)]
pub(crate) enum Argument<'a> {
    None,
    Tensor(&'a Tensor),
    Tensors(&'a [Tensor]),
    OptionalTensors(&'a [Option<Tensor>]),
    Int(i64),
    Double(f64),
    Bool(bool),
    Ints(&'a [i64]),
    Doubles(&'a [f64]),
    Bools(&'a [bool]),
    String(&'a str),
    Kind(Kind),
    Device(Device),
    Opaque(&'a Opaque),
}

/// An argument in the form of the C interface, with the list of pointers that lists of tensors need.
pub(super) struct Lowered {
    value: ffi::Value,
    pointers: Option<Vec<*const ffi::C_tensor>>,
}

impl Lowered {
    /// The value, which points into `self` and into the argument it was made of.
    pub(super) fn value(&self) -> ffi::Value {
        match &self.pointers {
            Some(list) => ffi::Value { data: list.as_ptr().cast(), length: list.len(), ..self.value },
            None => self.value,
        }
    }
}

impl Argument<'_> {
    pub(super) fn lower(&self) -> Lowered {
        let plain = |tag, integer, real| Lowered {
            value: ffi::Value { tag, integer, real, data: std::ptr::null(), length: 0 },
            pointers: None,
        };
        let slice = |tag, data: *const c_void, length| Lowered {
            value: ffi::Value { tag, integer: 0, real: 0.0, data, length },
            pointers: None,
        };
        match *self {
            // An undefined tensor stands for "none" wherever torch allows one.
            Self::Tensor(tensor) if !tensor.defined() => plain(tag::NONE, 0, 0.0),
            Self::None => plain(tag::NONE, 0, 0.0),
            Self::Tensor(tensor) => slice(tag::TENSOR, ffi::raw(tensor).cast(), 1),
            Self::Tensors(list) => Lowered {
                pointers: Some(list.iter().map(ffi::raw).collect()),
                ..plain(tag::TENSOR_LIST, 0, 0.0)
            },
            Self::OptionalTensors(list) => Lowered {
                pointers: Some(
                    list.iter().map(|item| item.as_ref().map_or(std::ptr::null(), ffi::raw)).collect(),
                ),
                ..plain(tag::OPTIONAL_TENSOR_LIST, 0, 0.0)
            },
            Self::Int(number) => plain(tag::INT, number, 0.0),
            Self::Double(number) => plain(tag::DOUBLE, 0, number),
            Self::Bool(flag) => plain(tag::BOOL, flag.into(), 0.0),
            Self::Ints(list) => slice(tag::INT_LIST, list.as_ptr().cast(), list.len()),
            Self::Doubles(list) => slice(tag::DOUBLE_LIST, list.as_ptr().cast(), list.len()),
            Self::Bools(list) => slice(tag::BOOL_LIST, list.as_ptr().cast(), list.len()),
            Self::String(text) => slice(tag::STRING, text.as_ptr().cast(), text.len()),
            Self::Kind(kind) => plain(tag::SCALAR_TYPE, codes::of_kind(kind).into(), 0.0),
            Self::Device(device) => plain(tag::DEVICE, codes::of_device(device).into(), 0.0),
            Self::Opaque(opaque) => slice(tag::OPAQUE, opaque.as_ptr().cast(), 1),
        }
    }
}
