//! Time series with several channels, and windows of them.

use std::{ops::Range, sync::Arc};

use tch::{Device, Kind, Tensor};

use super::{DataError, FileRecord, Fingerprint, Recordable, Samples, Weighted, to_device};

/// Rows of a series that belong to each split, one after the other from the first row on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitRows {
    /// To learn from.
    pub train: usize,
    /// To choose a model by.
    pub validation: usize,
    /// To measure it on in the end.
    pub test: usize,
}

impl SplitRows {
    /// Rows of all three.
    pub fn total(self) -> usize {
        self.train + self.validation + self.test
    }

    /// The rows of the three splits.
    pub fn ranges(self) -> [Range<usize>; 3] {
        let (validation, test) = (self.train, self.train + self.validation);
        [0..validation, validation..test, test..self.total()]
    }
}

/// A time series with several channels: what a `dataset` of series gives.
#[derive(Debug, Clone)]
pub struct Series {
    /// What each channel is called.
    pub channels: Vec<String>,
    /// The values `[rows, channels]`, row by row; rows follow each other in time.
    pub values: Arc<Vec<f64>>,
    /// What was subtracted from each channel's raw values.
    pub mean: Vec<f64>,
    /// What each channel's raw values were divided by, after that.
    pub scale: Vec<f64>,
    /// Rows of each split.
    pub rows: SplitRows,
    /// What decides the values.
    pub fingerprint: Fingerprint,
    /// The files they were read from.
    pub files: Vec<FileRecord>,
}

impl Series {
    /// A series of raw values `[rows, channels]`. With `standardise`, each channel has mean 0 and standard deviation 1
    /// over the training rows afterwards (a channel that does not change there is only moved).
    ///
    /// # Errors
    /// When there are fewer rows than the splits have together.
    pub fn new(
        channels: Vec<String>,
        mut values: Vec<f64>,
        rows: SplitRows,
        standardise: bool,
        fingerprint: Fingerprint,
    ) -> Result<Self, DataError> {
        let width = channels.len().max(1);
        let have = values.len() / width;
        if have < rows.total() || rows.train == 0 {
            return Err(DataError::SeriesRows { have, wanted: rows.total() });
        }
        let (mut mean, mut scale) = (vec![0.0; width], vec![1.0; width]);
        if standardise {
            for channel in 0..width {
                let train = || values[..rows.train * width].iter().skip(channel).step_by(width);
                let (count, first) = (rows.train as f64, values[channel]);
                // A sum of equal values is not exact: its rounding would pass for a scale.
                if train().all(|value| value.to_bits() == first.to_bits()) {
                    mean[channel] = first;
                    continue;
                }
                mean[channel] = train().sum::<f64>() / count;
                let variance = train().map(|value| (value - mean[channel]).powi(2)).sum::<f64>() / count;
                scale[channel] = variance.sqrt();
            }
            for row in values.chunks_mut(width) {
                for ((value, mean), scale) in row.iter_mut().zip(&mean).zip(&scale) {
                    *value = (*value - mean) / scale;
                }
            }
        }
        let fingerprint = fingerprint
            .with("channels", channels.join(","))
            .with("split rows", format!("{}, {}, {}", rows.train, rows.validation, rows.test))
            .with("standardise", standardise);
        Ok(Self { channels, values: Arc::new(values), mean, scale, rows, fingerprint, files: Vec::new() })
    }

    /// The same, said to come from files.
    #[must_use]
    pub fn with_files(self, files: Vec<FileRecord>) -> Self {
        Self { files, ..self }
    }

    /// The values of some rows, `[rows, channels]`, row by row.
    pub fn rows(&self, rows: Range<usize>) -> &[f64] {
        let width = self.channels.len();
        &self.values[rows.start * width..rows.end * width]
    }

    /// Every window of `input_length` rows and the `horizon` rows after it whose horizon lies in `rows`. Inputs of the
    /// first windows lie before it, as the literature has it: a forecast may look at what was before its split.
    ///
    /// # Errors
    /// When there is no such window.
    pub fn windows(
        &self,
        split: &'static str,
        rows: &Range<usize>,
        input_length: usize,
        horizon: usize,
    ) -> Result<Windows, DataError> {
        let first = rows.start.saturating_sub(input_length);
        let len = (rows.end - first + 1).saturating_sub(input_length + horizon);
        if len == 0 || input_length == 0 || horizon == 0 {
            let rows = rows.end - first;
            return Err(DataError::SeriesTooShort { split, rows, input_length, horizon });
        }
        let width = self.channels.len() as i64;
        let values = Tensor::f_from_slice(self.rows(first..rows.end))?.f_view([-1, width])?;
        let fingerprint =
            self.fingerprint.clone().with("input_length", input_length).with("horizon", horizon);
        Ok(Windows { values, len: len as u64, input_length, horizon, fingerprint })
    }
}

/// Windows of one split of a series.
#[derive(Debug)]
pub struct Windows {
    /// `[rows, channels]`, `Double`, on the CPU.
    values: Tensor,
    len: u64,
    input_length: usize,
    horizon: usize,
    fingerprint: Fingerprint,
}

/// What was, and what came after it.
#[derive(Debug)]
pub struct SeriesBatch {
    /// `[batch, input_length, channels]`, `Double`.
    pub inputs: Tensor,
    /// `[batch, horizon, channels]`, `Double`.
    pub targets: Tensor,
}

impl Weighted for SeriesBatch {
    const TARGETS: &'static str = "values";

    fn target_tokens(&self) -> i64 {
        self.targets.size().iter().product()
    }
}

impl Recordable for SeriesBatch {
    fn tensors(&self) -> Vec<&Tensor> {
        vec![&self.inputs, &self.targets]
    }

    fn with_tensors(&self, tensors: Vec<Tensor>) -> Self {
        let mut tensors = tensors.into_iter();
        let mut next = |mine: &Tensor| tensors.next().unwrap_or_else(|| mine.shallow_clone());
        Self { inputs: next(&self.inputs), targets: next(&self.targets) }
    }
}

impl Samples for Windows {
    type Batch = SeriesBatch;

    fn len(&self) -> u64 {
        self.len
    }

    fn batch(&self, indices: &[u64], device: Device) -> Result<SeriesBatch, DataError> {
        let starts: Vec<i64> = indices.iter().map(|&index| index as i64).collect();
        let (length, horizon) = (self.input_length as i64, self.horizon as i64);
        let offsets = Tensor::f_arange(length + horizon, (Kind::Int64, Device::Cpu))?;
        let rows = Tensor::f_from_slice(&starts)?.f_unsqueeze(1)?.f_add(&offsets)?;
        let shape = [indices.len() as i64, length + horizon, self.values.size()[1]];
        let all = to_device(&self.values.f_index_select(0, &rows.f_view(-1)?)?.f_view(shape)?, device)?;
        Ok(SeriesBatch { inputs: all.f_narrow(1, 0, length)?, targets: all.f_narrow(1, length, horizon)? })
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::in_order;

    /// Channel `a` counts rows, `b` is its negative.
    fn series(rows: SplitRows, standardise: bool) -> Series {
        let values = (0..rows.total()).flat_map(|row| [row as f64, -(row as f64)]).collect();
        let channels = vec!["a".to_owned(), "b".to_owned()];
        Series::new(channels, values, rows, standardise, Fingerprint::default()).unwrap()
    }

    #[test]
    fn every_row_of_a_split_is_forecast_by_every_window_that_can() {
        let rows = SplitRows { train: 10, validation: 4, test: 6 };
        let series = series(rows, false);
        let first_and_last = |split: usize| {
            let windows = series.windows("", &rows.ranges()[split], 3, 2).unwrap();
            let batches: Vec<_> = in_order(&windows, 4, Device::Cpu).map(Result::unwrap).collect();
            let channel = |tensor: &Tensor| Vec::<Vec<f64>>::try_from(tensor.select(2, 0)).unwrap();
            let inputs: Vec<_> = batches.iter().flat_map(|batch| channel(&batch.inputs)).collect();
            let targets: Vec<_> = batches.iter().flat_map(|batch| channel(&batch.targets)).collect();
            assert_eq!(inputs.len() as u64, windows.len());
            (inputs[0].clone(), targets[0].clone(), targets[targets.len() - 1].clone())
        };
        assert_eq!(first_and_last(0), (vec![0., 1., 2.], vec![3., 4.], vec![8., 9.]));
        assert_eq!(first_and_last(1), (vec![7., 8., 9.], vec![10., 11.], vec![12., 13.]));
        assert_eq!(first_and_last(2), (vec![11., 12., 13.], vec![14., 15.], vec![18., 19.]));
        let batch = series.windows("", &rows.ranges()[0], 3, 2).unwrap().batch(&[4, 1], Device::Cpu).unwrap();
        assert_eq!(batch.inputs.size(), [2, 3, 2]);
        assert_eq!(batch.target_tokens(), 2 * 2 * 2);
        assert_eq!(Vec::<f64>::try_from(batch.targets.select(0, 1).select(1, 1)).unwrap(), [-4., -5.]);
        let error = series.windows("test", &rows.ranges()[2], 14, 7).unwrap_err().to_string();
        assert!(error.contains("test split has 20 rows") && error.contains("21"), "{error}");
    }

    #[test]
    fn training_rows_alone_decide_mean_and_scale() {
        let rows = SplitRows { train: 4, validation: 2, test: 2 };
        let series = series(rows, true);
        // 0, 1, 2, 3: mean 1.5, variance 1.25.
        assert_eq!(series.mean, [1.5, -1.5]);
        assert!((series.scale[0] - 1.25_f64.sqrt()).abs() < 1e-15);
        let expected = (7.0 - 1.5) / 1.25_f64.sqrt();
        assert_eq!(series.rows(7..8), [expected, -expected]);
        for value in [2.0, 0.1] {
            let rows = SplitRows { train: 8640, validation: 1, test: 1 };
            let mut values = vec![value; rows.total()];
            values[rows.total() - 1] = 21.7;
            let flat = Series::new(vec!["c".into()], values, rows, true, Fingerprint::default()).unwrap();
            assert_eq!((flat.scale[0], flat.rows(0..1)), (1.0, &[0.0][..]));
            assert_eq!(flat.rows(rows.total() - 1..rows.total()), [21.7 - value]);
        }
        let error = Series::new(vec!["c".into()], vec![2.0; 7], rows, true, Fingerprint::default());
        assert!(error.unwrap_err().to_string().contains("7 rows"));
    }
}
