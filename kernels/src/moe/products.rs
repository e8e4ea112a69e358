//! A matrix product for each expert over its block of rows.
//!
//! The two products are each other's gradients, so gradients of any order are made of them.

use tch::{Device, Kind, Tensor};
use torch_bridge::autograd::{self, Function, Saved};
use torch_bridge::{Error, Result};

use super::grouping::{Ends, one};

/// How the products are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    /// One product after the other, their sizes read by the host.
    OneByOne,
    /// libtorch's grouped product, for which the sizes stay on the device.
    Grouped,
}

/// What libtorch's grouped product takes: rows that are multiples of 16 bytes, and 16-bit floats to be fast. On the CPU
/// it is no faster than products one by one, which take everything.
fn route(a: &Tensor, widths: [i64; 2]) -> Route {
    let half = matches!(a.kind(), Kind::BFloat16 | Kind::Half);
    let aligned = widths.iter().all(|width| width % 8 == 0);
    if a.device() != Device::Cpu && half && aligned { Route::Grouped } else { Route::OneByOne }
}

/// `y_i = matrices_e x_i` for each row `i` of expert `e`: `x [rows, in]`, `matrices [n_experts, out, in]` to
/// `[rows, out]`.
pub(super) fn linear(x: &Tensor, matrices: &Tensor, ends: &Ends) -> Result<Tensor> {
    let size = matrices.size();
    let function = Linear { ends: ends.share(), route: route(x, [size[1], size[2]]) };
    one(autograd::apply("experts: linear", function, &[x, matrices])?)
}

/// `m_e = sum_i a_i b_i^T` over the rows of expert `e`: `a [rows, out]`, `b [rows, in]` to `[n_experts, out, in]`.
fn outer(a: &Tensor, b: &Tensor, ends: &Ends) -> Result<Tensor> {
    let function = Outer { ends: ends.share(), route: route(a, [a.size()[1], b.size()[1]]) };
    one(autograd::apply("experts: outer", function, &[a, b])?)
}

struct Linear {
    ends: Ends,
    route: Route,
}

impl Function for Linear {
    fn forward(&mut self, saved: &mut Saved, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let [x, matrices] = inputs else { return Err(Error::other("experts: operands are missing")) };
        saved.save(x);
        saved.save(matrices);
        Ok(vec![linear_forward(self.route, x, matrices, &self.ends)?])
    }

    fn backward(&mut self, saved: &[Tensor], grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let Some(grad) = grads.first().and_then(Option::as_ref) else { return Ok(vec![None, None]) };
        let of_x = linear(grad, &saved[1].f_transpose(1, 2)?, &self.ends)?;
        Ok(vec![Some(of_x), Some(outer(grad, &saved[0], &self.ends)?)])
    }
}

struct Outer {
    ends: Ends,
    route: Route,
}

impl Function for Outer {
    fn forward(&mut self, saved: &mut Saved, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let [a, b] = inputs else { return Err(Error::other("experts: operands are missing")) };
        saved.save(a);
        saved.save(b);
        Ok(vec![outer_forward(self.route, a, b, &self.ends)?])
    }

    fn backward(&mut self, saved: &[Tensor], grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let Some(grad) = grads.first().and_then(Option::as_ref) else { return Ok(vec![None, None]) };
        let of_a = linear(&saved[1], grad, &self.ends)?;
        Ok(vec![Some(of_a), Some(linear(&saved[0], &grad.f_transpose(1, 2)?, &self.ends)?)])
    }
}

fn linear_forward(route: Route, x: &Tensor, matrices: &Tensor, ends: &Ends) -> Result<Tensor> {
    if route == Route::Grouped {
        let (x, none) = (x.f_contiguous()?, None::<&Tensor>);
        return Ok(x.f_internal_grouped_mm(&matrices.f_transpose(1, 2)?, Some(&ends.tensor), none, None)?);
    }
    let y = Tensor::f_empty([x.size()[0], matrices.size()[1]], (x.kind(), x.device()))?;
    for (expert, (start, count)) in ends.ranges()?.into_iter().enumerate() {
        if count > 0 {
            let matrix = matrices.f_select(0, expert as i64)?.f_transpose(0, 1)?;
            let _ = x.f_narrow(0, start, count)?.f_mm_out(&y.f_narrow(0, start, count)?, &matrix)?;
        }
    }
    Ok(y)
}

fn outer_forward(route: Route, a: &Tensor, b: &Tensor, ends: &Ends) -> Result<Tensor> {
    if route == Route::Grouped {
        let (a, b, none) = (a.f_contiguous()?.f_transpose(0, 1)?, b.f_contiguous()?, None::<&Tensor>);
        return Ok(a.f_internal_grouped_mm(&b, Some(&ends.tensor), none, None)?);
    }
    let ranges = ends.ranges()?;
    let m = Tensor::f_zeros([ranges.len() as i64, a.size()[1], b.size()[1]], (a.kind(), a.device()))?;
    for (expert, (start, count)) in ranges.into_iter().enumerate() {
        if count > 0 {
            let a = a.f_narrow(0, start, count)?.f_transpose(0, 1)?;
            let _ = a.f_mm_out(&m.f_select(0, expert as i64)?, &b.f_narrow(0, start, count)?)?;
        }
    }
    Ok(m)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// libtorch's grouped product is what the products one by one are, also where an expert has no row.
    #[test]
    fn both_routes_give_the_same() {
        let options = (Kind::BFloat16, Device::Cpu);
        let ends = Ends::new(Tensor::from_slice(&[3_i32, 3, 10, 21]));
        let (x, a) = (Tensor::randn([21, 16], options), Tensor::randn([21, 24], options));
        let matrices = Tensor::randn([4, 24, 16], options);
        for matrices in [matrices.shallow_clone(), matrices.transpose(1, 2).contiguous().transpose(1, 2)] {
            let [one, other] = [Route::OneByOne, Route::Grouped]
                .map(|route| linear_forward(route, &x, &matrices, &ends).unwrap());
            assert!(one.allclose(&other, 1e-2, 1e-2, false));
        }
        let [one, other] =
            [Route::OneByOne, Route::Grouped].map(|route| outer_forward(route, &a, &x, &ends).unwrap());
        assert!(one.allclose(&other, 1e-2, 1e-2, false));
        assert!(other.select(0, 1).equal(&Tensor::zeros([24, 16], options)));
    }
}
