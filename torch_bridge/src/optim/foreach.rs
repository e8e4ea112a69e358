//! One operation over a list of tensors. An empty list is allowed everywhere and does nothing.

use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::guards::NoGrad;
use crate::ops::{Argument, Operator, Value};

/// The `ord`-norm of each tensor, as scalars of its kind on its device.
///
/// # Errors
/// A tensor is not of a floating or complex kind.
pub fn foreach_norm(tensors: &[Tensor], ord: f64) -> Result<Vec<Tensor>> {
    foreach_norm_as(tensors, ord, None)
}

/// As [`foreach_norm`], accumulated and returned in a wider kind.
pub(super) fn foreach_norm_as(tensors: &[Tensor], ord: f64, kind: Option<Kind>) -> Result<Vec<Tensor>> {
    if tensors.is_empty() {
        return Ok(Vec::new());
    }
    let kind = kind.map_or(Argument::None, Argument::Kind);
    let results =
        without_grad("_foreach_norm", "Scalar", &[Argument::Tensors(tensors), Argument::Double(ord), kind])?;
    results.into_iter().next().unwrap_or(Value::None).into_tensors()
}

/// Multiplies each tensor by a number.
///
/// # Errors
/// A tensor cannot be written in place.
pub fn foreach_mul_scalar_(tensors: &[Tensor], factor: f64) -> Result<()> {
    in_place("_foreach_mul_", "Scalar", tensors, &[Argument::Double(factor)])
}

/// Multiplies each tensor by a scalar tensor `[]`, which stays on its device: nothing waits for its value.
///
/// # Errors
/// `factor` has more than one element or lies on another device.
pub fn foreach_mul_tensor_(tensors: &[Tensor], factor: &Tensor) -> Result<()> {
    in_place("_foreach_mul_", "Tensor", tensors, &[Argument::Tensor(factor)])
}

/// Adds `alpha * others[i]` to each tensor.
///
/// # Errors
/// The lists differ in length, or a pair in shape.
pub fn foreach_add_(tensors: &[Tensor], others: &[Tensor], alpha: f64) -> Result<()> {
    same_length("foreach_add_", tensors, others)?;
    in_place("_foreach_add_", "List", tensors, &[Argument::Tensors(others), Argument::Double(alpha)])
}

/// Adds a number to each tensor.
///
/// # Errors
/// A tensor cannot be written in place.
pub fn foreach_add_scalar_(tensors: &[Tensor], number: f64) -> Result<()> {
    in_place("_foreach_add_", "Scalar", tensors, &[Argument::Double(number)])
}

/// Sets each tensor to zero.
///
/// # Errors
/// A tensor cannot be written in place.
pub fn foreach_zero_(tensors: &[Tensor]) -> Result<()> {
    in_place("_foreach_zero_", "", tensors, &[])
}

/// Copies `sources[i]` into each tensor, converting the kind and crossing devices where they differ.
///
/// # Errors
/// The lists differ in length, or a pair in shape.
pub fn foreach_copy_(tensors: &[Tensor], sources: &[Tensor]) -> Result<()> {
    same_length("foreach_copy_", tensors, sources)?;
    in_place("_foreach_copy_", "", tensors, &[Argument::Tensors(sources)])
}

/// Moves each tensor towards `ends[i]`: `t += weight * (end - t)`.
///
/// # Errors
/// The lists differ in length, or a pair in shape or kind.
pub fn foreach_lerp_(tensors: &[Tensor], ends: &[Tensor], weight: f64) -> Result<()> {
    same_length("foreach_lerp_", tensors, ends)?;
    in_place("_foreach_lerp_", "Scalar", tensors, &[Argument::Tensors(ends), Argument::Double(weight)])
}

fn in_place(name: &str, overload: &str, tensors: &[Tensor], rest: &[Argument<'_>]) -> Result<()> {
    if tensors.is_empty() {
        return Ok(());
    }
    let mut arguments = Vec::with_capacity(rest.len() + 1);
    arguments.push(Argument::Tensors(tensors));
    arguments.extend_from_slice(rest);
    without_grad(name, overload, &arguments).map(drop)
}

fn without_grad(name: &str, overload: &str, arguments: &[Argument<'_>]) -> Result<Vec<Value>> {
    let _no_grad = NoGrad::new();
    Operator::find(name, overload)?.call_with(arguments)
}

/// Checked here because an empty list never reaches libtorch.
fn same_length(operation: &str, tensors: &[Tensor], others: &[Tensor]) -> Result<()> {
    if tensors.len() == others.len() {
        return Ok(());
    }
    let expected = format!("lists of one length, {} as the first", tensors.len());
    Err(Error::mismatch(operation, expected, others.len().to_string()))
}
