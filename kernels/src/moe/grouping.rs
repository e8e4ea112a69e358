//! Pairs of token and choice, sorted by expert.

use std::sync::{Arc, OnceLock};

use tch::{Device, Kind, Tensor};
use torch_bridge::autograd::{self, Function, Saved};
use torch_bridge::{Error, Result};

/// Where each expert's rows end, on the device and, when someone asked, on the host.
#[derive(Debug)]
pub(super) struct Ends {
    /// `[n_experts]` int32.
    pub(super) tensor: Tensor,
    host: Arc<OnceLock<Vec<i64>>>,
}

impl Ends {
    pub(super) fn new(tensor: Tensor) -> Self {
        Self { tensor, host: Arc::default() }
    }

    pub(super) fn share(&self) -> Self {
        Self { tensor: self.tensor.shallow_clone(), host: Arc::clone(&self.host) }
    }

    /// First row and number of rows of each expert.
    pub(super) fn ranges(&self) -> Result<Vec<(i64, i64)>> {
        let ends = if let Some(ends) = self.host.get() {
            ends
        } else {
            let ends = self.tensor.f_to_kind(Kind::Int64)?.f_to_device(Device::Cpu)?;
            let ends = Vec::<i64>::try_from(ends)?;
            self.host.get_or_init(|| ends)
        };
        let starts = std::iter::once(0).chain(ends.iter().copied());
        Ok(starts.zip(ends).map(|(start, &end)| (start, end - start)).collect())
    }
}

/// The order of pairs: an expert after the other, its tokens in their order.
#[derive(Debug)]
pub(super) struct Groups {
    top_k: i64,
    /// The pair (`token * top_k + choice`) in each row, `[pairs]`.
    order: Tensor,
    /// The row of each pair, `[pairs]`.
    inverse: Tensor,
    /// Where each expert's rows end.
    pub(super) ends: Ends,
}

impl Groups {
    /// Sorts `choice [tokens, top_k]`.
    pub(super) fn new(choice: &Tensor, n_experts: i64) -> Result<Self> {
        let (size, device) = (choice.size(), choice.device());
        let (sorted, order) = choice.f_reshape([-1])?.f_sort_stable(true, 0, false)?;
        let rows = Tensor::f_arange(size[0] * size[1], (Kind::Int64, device))?;
        let inverse = order.f_zeros_like()?.f_scatter(0, &order, &rows)?;
        let experts = Tensor::f_arange(n_experts, (Kind::Int64, device))?;
        let ends = experts.f_searchsorted(&sorted, true, true, "right", None::<&Tensor>)?;
        Ok(Self { top_k: size[1], order, inverse, ends: Ends::new(ends) })
    }

    /// The token of each row: `[tokens, d]` to `[pairs, d]`.
    pub(super) fn gather(&self, x: &Tensor) -> Result<Tensor> {
        one(autograd::apply(
            "experts: gather",
            Gather { top_k: self.top_k },
            &[x, &self.order, &self.inverse],
        )?)
    }

    /// The rows of each token: `[pairs, d]` to `[tokens, top_k, d]`.
    pub(super) fn scatter(&self, rows: &Tensor) -> Result<Tensor> {
        let pairs = one(autograd::apply("experts: scatter", Permute, &[rows, &self.inverse, &self.order])?)?;
        Ok(pairs.f_reshape([-1, self.top_k, rows.size()[1]])?)
    }
}

pub(super) fn one(outputs: Vec<Tensor>) -> Result<Tensor> {
    let [output] = outputs.try_into().map_err(|_| Error::other("experts: not one output"))?;
    Ok(output)
}

/// Rows of tokens, each `top_k` times. The gradient of a token is gathered from its rows, always in the same order,
/// where that of an indexing would be scattered.
struct Gather {
    top_k: i64,
}

impl Function for Gather {
    fn forward(&mut self, saved: &mut Saved, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let [x, order, inverse] = inputs else { return Err(Error::other("experts: operands are missing")) };
        saved.save(inverse);
        let tokens = order.f_divide_scalar_mode(self.top_k, "floor")?;
        Ok(vec![x.f_index_select(0, &tokens)?])
    }

    fn backward(&mut self, saved: &[Tensor], grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let Some(grad) = grads.first().and_then(Option::as_ref) else { return Ok(vec![None, None, None]) };
        let pairs = grad.f_index_select(0, &saved[0])?.f_reshape([-1, self.top_k, grad.size()[1]])?;
        let sum = pairs.f_sum_dim_intlist([1i64].as_slice(), false, grad.kind())?;
        Ok(vec![Some(sum), None, None])
    }
}

/// Rows in another order: `y_i = x_{to_i}`, from `x`, `to` and its inverse.
struct Permute;

impl Function for Permute {
    fn forward(&mut self, saved: &mut Saved, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let [x, to, inverse] = inputs else { return Err(Error::other("experts: operands are missing")) };
        saved.save(inverse);
        Ok(vec![x.f_index_select(0, to)?])
    }

    fn backward(&mut self, saved: &[Tensor], grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let grad = grads.first().and_then(Option::as_ref);
        Ok(vec![grad.map(|grad| grad.f_index_select(0, &saved[0])).transpose()?, None, None])
    }
}
