//! Forecasts that need no network: repeating the last value, and a linear map of the window.

use tch::{Device, Kind, Tensor};
use training::{
    TaskError,
    data::{SeriesBatch, Weighted, Windows, in_order},
};

/// Mean errors over all windows, steps and channels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Errors {
    /// Squared error.
    pub mse: f64,
    /// Absolute error.
    pub mae: f64,
}

/// Windows at a time.
const BATCH: usize = 256;

/// Measures what `forecast` makes of each batch's inputs `[batch, input_length, channels]`.
///
/// # Errors
/// When libtorch refuses.
pub fn errors(
    windows: &Windows,
    forecast: impl Fn(&Tensor) -> Result<Tensor, TaskError>,
) -> Result<Errors, TaskError> {
    let (mut squared, mut absolute, mut count) = (0.0, 0.0, 0);
    for batch in in_order(windows, BATCH, Device::Cpu) {
        let batch = batch?;
        count += batch.target_tokens();
        let error = forecast(&batch.inputs)?.f_sub(&batch.targets)?;
        squared += f64::try_from(&error.f_square()?.f_sum(Kind::Double)?)?;
        absolute += f64::try_from(&error.f_abs()?.f_sum(Kind::Double)?)?;
    }
    let count = count.max(1) as f64;
    Ok(Errors { mse: squared / count, mae: absolute / count })
}

/// The last value of each channel, `horizon` times.
///
/// # Errors
/// When libtorch refuses.
pub fn repeat_last(inputs: &Tensor, horizon: i64) -> Result<Tensor, TaskError> {
    Ok(last(inputs)?.f_repeat([1, horizon, 1])?)
}

/// `[batch, 1, channels]`
fn last(inputs: &Tensor) -> Result<Tensor, TaskError> {
    Ok(inputs.f_narrow(1, inputs.size()[1] - 1, 1)?)
}

/// NLinear (Zeng et al. 2023): one linear map with a bias from a channel's window to its next steps, the same for all
/// channels; the window's last value is subtracted before and added after. Fitted by least squares in closed form,
/// where the paper uses Adam.
#[derive(Debug)]
pub struct LinearForecaster {
    /// `[input_length + 1, horizon]`, the bias last, `Double`.
    weight: Tensor,
    /// What the squares of the weights were punished with, for each squared error.
    pub ridge: f64,
}

/// What is tried for the ridge; the validation windows choose.
const RIDGES: [f64; 6] = [1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];

impl LinearForecaster {
    /// Fits the map to `train`, with the ridge that gives the smallest squared error on `validation`, or the smallest one
    /// when there are no such windows.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn fit(train: &Windows, validation: Option<&Windows>) -> Result<Self, TaskError> {
        // (X'X / n + ridge I) W = X'Y / n, summed over batches
        let mut sums: Option<(Tensor, Tensor)> = None;
        let mut rows = 0;
        for batch in in_order(train, BATCH, Device::Cpu) {
            let (x, y) = Self::rows(&batch?)?;
            rows += x.size()[0];
            let transposed = x.f_transpose(0, 1)?;
            let (xx, xy) = (transposed.f_matmul(&x)?, transposed.f_matmul(&y)?);
            sums = Some(match sums {
                Some((all_xx, all_xy)) => (all_xx.f_add(&xx)?, all_xy.f_add(&xy)?),
                None => (xx, xy),
            });
        }
        let (xx, xy) = sums.ok_or("there are no training windows")?;
        let (xx, xy) = (xx / rows as f64, xy / rows as f64);
        let solve = |ridge: f64| -> Result<Self, TaskError> {
            let eye = Tensor::f_eye(xx.size()[0], (Kind::Double, Device::Cpu))?;
            let weight = Tensor::f_linalg_solve(&(&xx + eye * ridge), &xy, true)?;
            Ok(Self { weight, ridge })
        };
        let Some(validation) = validation else { return solve(RIDGES[0]) };
        let mut best: Option<(f64, Self)> = None;
        for ridge in RIDGES {
            let candidate = solve(ridge)?;
            let mse = errors(validation, |inputs| candidate.forecast(inputs))?.mse;
            if best.as_ref().is_none_or(|(so_far, _)| mse < *so_far) {
                best = Some((mse, candidate));
            }
        }
        best.map(|(_, best)| best).ok_or_else(|| "no ridge was tried".into())
    }

    /// A row for each channel of each window: inputs with a 1 at the end, and targets.
    fn rows(batch: &SeriesBatch) -> Result<(Tensor, Tensor), TaskError> {
        let last = last(&batch.inputs)?;
        let flat = |tensor: &Tensor| tensor.f_sub(&last)?.f_transpose(1, 2)?.f_flatten(0, 1);
        let x = flat(&batch.inputs)?;
        Ok((Tensor::f_cat(&[&x, &x.f_narrow(1, 0, 1)?.f_ones_like()?], 1)?, flat(&batch.targets)?))
    }

    /// `[batch, input_length, channels]` to `[batch, horizon, channels]`.
    ///
    /// # Errors
    /// When the windows have another length.
    pub fn forecast(&self, inputs: &Tensor) -> Result<Tensor, TaskError> {
        let last = last(inputs)?;
        let length = self.weight.size()[0] - 1;
        let (map, bias) = (self.weight.f_narrow(0, 0, length)?, self.weight.f_select(0, length)?);
        let y = inputs.f_sub(&last)?.f_transpose(1, 2)?.f_matmul(&map)?.f_add(&bias)?;
        Ok(y.f_transpose(1, 2)?.f_add(&last)?)
    }

    /// Numbers that were learnt.
    pub fn parameter_count(&self) -> u64 {
        self.weight.size().iter().product::<i64>().unsigned_abs()
    }
}

#[cfg(test)]
mod tests {
    use training::data::{Fingerprint, Samples, Series, SplitRows};

    use super::*;

    /// Two channels that follow `x[t] = 1.6 x[t - 1] - 0.8 x[t - 2] + 0.2`, pushed at one place each.
    fn series() -> Series {
        let rows = SplitRows { train: 60, validation: 20, test: 20 };
        let mut values: Vec<f64> = vec![0.0, 1.0, 0.5, -1.0];
        for t in 2..rows.total() {
            for channel in 0..2 {
                values.push(1.6 * values[2 * t - 2 + channel] - values[2 * t - 4 + channel] + 0.2);
            }
        }
        Series::new(vec!["a".into(), "b".into()], values, rows, false, Fingerprint::default()).unwrap()
    }

    #[test]
    fn a_linear_recurrence_is_learnt_exactly() {
        let series = series();
        let [train, validation, test] = series.rows.ranges();
        let windows = |rows| series.windows("", rows, 4, 3).unwrap();
        let linear = LinearForecaster::fit(&windows(&train), Some(&windows(&validation))).unwrap();
        assert!((linear.ridge - 1e-6).abs() < 1e-18);
        assert_eq!(linear.parameter_count(), 5 * 3);
        let linear = errors(&windows(&test), |inputs| linear.forecast(inputs)).unwrap();
        let repeat = errors(&windows(&test), |inputs| repeat_last(inputs, 3)).unwrap();
        assert!(linear.mse < 1e-3 * repeat.mse, "{linear:?} {repeat:?}");
    }

    #[test]
    fn repeating_by_hand() {
        let series = series();
        let windows = series.windows("", &series.rows.ranges()[2], 4, 3).unwrap();
        let batch = windows.batch(&[5], Device::Cpu).unwrap();
        let by_hand: f64 = (0..3)
            .flat_map(|step| [0, 1].map(|channel| (step, channel)))
            .map(|(step, channel)| {
                let last = series.rows(80 + 5 - 1..80 + 5)[channel];
                (series.rows(80 + 5 + step..80 + 6 + step)[channel] - last).abs()
            })
            .sum();
        let forecast = repeat_last(&batch.inputs, 3).unwrap();
        let error = (forecast - &batch.targets).abs().sum(Kind::Double).double_value(&[]);
        assert!((error - by_hand).abs() < 1e-12);
    }
}
