//! Any operator that libtorch has registered, by name.
//!
//! tch binds some 2,600 operators and leaves out the fused optimizers, the `_foreach_*` family, everything with a
//! generator, the low-level attention kernels and all of c10d. They are all in libtorch's dispatcher, and so here.
//! Autograd, autocast and device placement work as in any other call.
//!
//! ```no_run
//! # fn main() -> torch_bridge::Result<()> {
//! use torch_bridge::{ops, values};
//! let x = tch::Tensor::rand([4, 4], tch::kind::FLOAT_CPU);
//! // addmm(Tensor self, Tensor mat1, Tensor mat2, *, Scalar beta=1, Scalar alpha=1): what is left out is default.
//! let y = ops::call_tensor("addmm", "", &values![&x, &x, &x, 0.5])?;
//! # Ok(()) }
//! ```

mod argument;
mod operator;
mod value;

pub(crate) use argument::Argument;
pub use operator::Operator;
pub use value::{Opaque, Value};

use tch::Tensor;

use crate::error::{Error, Result};

/// Calls the operator `name.overload` and returns its results in order.
///
/// `name` may leave out the namespace `aten::`; `overload` is empty for the default one. Arguments are in the order
/// of the schema, keyword-only ones included; trailing ones that have defaults may be left out. An in-place operator
/// writes its argument and returns it again.
///
/// # Errors
/// There is no such operator, an argument is of the wrong type or missing (the message shows the schema), or
/// libtorch refuses the call.
pub fn call(name: &str, overload: &str, arguments: &[Value]) -> Result<Vec<Value>> {
    Operator::find(name, overload)?.call(arguments)
}

/// As [`call`], for an operator whose one result is a tensor.
///
/// # Errors
/// As [`call`], and if the operator returns something else.
pub fn call_tensor(name: &str, overload: &str, arguments: &[Value]) -> Result<Tensor> {
    let operator = Operator::find(name, overload)?;
    let mut results = operator.call(arguments)?;
    match (results.pop(), results.is_empty()) {
        (Some(value), true) => value.into_tensor(),
        (_, _) => {
            Err(Error::mismatch(operator.to_string(), "an operator with one result", operator.schema()?))
        }
    }
}

/// An array of [`Value`]s from anything that converts into one.
///
/// ```
/// let values = torch_bridge::values![1, 2.5, true, "mean", (), vec![1i64, 2]];
/// assert_eq!(values.len(), 6);
/// ```
#[macro_export]
macro_rules! values {
    ($($value:expr),* $(,)?) => {
        [$($crate::ops::Value::from($value)),*]
    };
}
