//! The checks every operation makes before it computes, and the wording of a refusal.

use tch::{Device, Kind, Tensor};
use torch_bridge::{Error, Result};

/// Checks operands of one operation against each other: all on one device, shapes and dtypes as documented.
pub(crate) struct Operands {
    operation: &'static str,
    device: Device,
}

impl Operands {
    /// The checks for `operation`, whose operands must all be where `first` is.
    pub(crate) fn of(operation: &'static str, first: &Tensor) -> Self {
        Self { operation, device: first.device() }
    }

    /// The sizes of an operand that has exactly `N` dimensions, called `names` in a refusal.
    pub(crate) fn sizes<const N: usize>(&self, operand: &str, x: &Tensor, names: &str) -> Result<[i64; N]> {
        let sizes = x.size();
        sizes.as_slice().try_into().map_err(|_| self.refusal(operand, names, &format!("{sizes:?}")))
    }

    /// A floating operand that may be half precision.
    pub(crate) fn activation(&self, operand: &str, x: &Tensor, shape: &[i64]) -> Result<()> {
        self.kind(operand, x, &[Kind::Float, Kind::Double, Kind::BFloat16, Kind::Half])?;
        self.shape(operand, x, shape)
    }

    /// A floating operand that is shared by all rows of the batch.
    pub(crate) fn parameter(&self, operand: &str, x: &Tensor, shape: &[i64]) -> Result<()> {
        self.activation(operand, x, shape)
    }

    /// A floating operand `[batch, ..]` that may be `[1, ..]` instead, shared by all rows.
    pub(crate) fn state(&self, operand: &str, x: &Tensor, shape: &[i64]) -> Result<()> {
        let mut shared = shape.to_vec();
        shared[0] = 1;
        if x.size() == shared {
            self.activation(operand, x, &shared)
        } else {
            self.activation(operand, x, shape)
        }
    }

    /// A bool operand.
    pub(crate) fn mask(&self, operand: &str, x: &Tensor, shape: &[i64]) -> Result<()> {
        self.kind(operand, x, &[Kind::Bool])?;
        self.shape(operand, x, shape)
    }

    /// An int64 operand.
    pub(crate) fn indices(&self, operand: &str, x: &Tensor, shape: &[i64]) -> Result<()> {
        self.kind(operand, x, &[Kind::Int64])?;
        self.shape(operand, x, shape)
    }

    /// An optional operand that must be there when another one is.
    pub(crate) fn present_with(
        &self,
        operand: &str,
        x: Option<&Tensor>,
        other: &str,
        given: Option<&Tensor>,
    ) -> Result<()> {
        if given.is_some() && x.is_none() {
            return Err(self.refusal(operand, &format!("a tensor, because `{other}` is given"), "none"));
        }
        Ok(())
    }

    /// The error "operation: expected .. for `operand`, got ..".
    pub(crate) fn refusal(&self, operand: &str, expected: &str, got: &str) -> Error {
        Error::Mismatch {
            operation: self.operation.to_owned(),
            expected: format!("{expected} for `{operand}`"),
            got: got.to_owned(),
        }
    }

    fn kind(&self, operand: &str, x: &Tensor, allowed: &[Kind]) -> Result<()> {
        if x.device() != self.device {
            return Err(self.refusal(operand, &format!("{:?}", self.device), &format!("{:?}", x.device())));
        }
        if !allowed.contains(&x.kind()) {
            let allowed: Vec<_> = allowed.iter().map(|kind| format!("{kind:?}")).collect();
            return Err(self.refusal(operand, &allowed.join(" or "), &format!("{:?}", x.kind())));
        }
        Ok(())
    }

    fn shape(&self, operand: &str, x: &Tensor, shape: &[i64]) -> Result<()> {
        if x.size() != shape {
            return Err(self.refusal(operand, &format!("{shape:?}"), &format!("{:?}", x.size())));
        }
        Ok(())
    }
}

/// The precision an operation computes in: f64 for f64 inputs, f32 for all others.
pub(crate) fn compute_kind(x: &Tensor) -> Kind {
    if x.kind() == Kind::Double { Kind::Double } else { Kind::Float }
}
