//! `kind: waves`: generated sums of sine waves.

use std::f64::consts::TAU;

use hymba_plus::{component_config, register};

use super::{Counter, DataError, Dataset, Description, Fingerprint, Series, SplitRows};
use crate::slot::{DatasetSpec, Resolve, dataset};

/// A generated time series: each channel is a sum of sine waves with the given periods, each with a phase and a strength
/// of its own, and noise. Nothing is read.
#[component_config]
pub struct Waves {
    /// Number of channels.
    #[default(1)]
    #[schemars(range(min = 1, max = 65_536))]
    pub channels: i64,
    /// Rows of each wave's turn.
    #[default(vec![24.0])]
    #[schemars(length(min = 1), inner(range(min = 1.0)))]
    pub periods: Vec<f64>,
    /// Standard deviation of the noise; a wave's strength is between 0.5 and 1.
    #[default(0.1)]
    #[schemars(range(min = 0.0))]
    pub noise: f64,
    /// First rows, to learn from.
    #[schemars(range(min = 1, max = 1_073_741_824))]
    pub train_rows: usize,
    /// Rows after those, to choose a model by.
    #[default(0)]
    #[schemars(range(max = 1_073_741_824))]
    pub validation_rows: usize,
    /// Rows after those, to measure it on in the end.
    #[default(0)]
    #[schemars(range(max = 1_073_741_824))]
    pub test_rows: usize,
    /// Seed of phases, strengths and noise.
    #[default(0)]
    pub seed: u64,
}

register!(dataset "waves" => Waves);

impl Waves {
    fn rows(&self) -> SplitRows {
        SplitRows { train: self.train_rows, validation: self.validation_rows, test: self.test_rows }
    }
}

impl DatasetSpec for Waves {
    fn describe(&self, _resolve: Resolve<'_>) -> Result<Description, DataError> {
        Ok(Description::Series { channels: self.channels, rows: self.rows() })
    }

    fn load(&self, _resolve: Resolve<'_>) -> Result<Dataset, DataError> {
        let (width, rows) = (self.channels as usize, self.rows().total());
        let mut values = vec![0.0; width * rows];
        for channel in 0..width {
            let mut random = Counter::new(self.seed, channel as u64);
            let waves: Vec<(f64, f64, f64)> = self
                .periods
                .iter()
                .map(|period| (*period, random.uniform(0.0, TAU), random.uniform(0.5, 1.0)))
                .collect();
            for row in 0..rows {
                let turn = |&(period, phase, strength): &(f64, f64, f64)| {
                    strength * (TAU * row as f64 / period + phase).sin()
                };
                let value = waves.iter().map(turn).sum::<f64>() + self.noise * random.normal_pair().0;
                values[row * width + channel] = value;
            }
        }
        let settings = serde_json::to_string(self).unwrap_or_default();
        let names = (0..width).map(|channel| format!("wave_{channel}")).collect();
        let fingerprint = Fingerprint::default().with("waves", settings);
        Ok(Dataset::Series(Series::new(names, values, self.rows(), false, fingerprint)?))
    }

    fn holds_out(&self) -> bool {
        self.validation_rows > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wave_comes_back_after_its_period() {
        let waves: Waves =
            serde_json::from_value(serde_json::json!({ "train_rows": 60, "noise": 0.0, "channels": 2 }))
                .unwrap();
        let Dataset::Series(series) = waves.load(&|path| path.as_str().into()).unwrap() else { panic!() };
        for row in 0..36 {
            let (now, later) = (series.rows(row..row + 1), series.rows(row + 24..row + 25));
            assert!(now.iter().zip(later).all(|(a, b)| (a - b).abs() < 1e-9));
        }
        assert!((series.rows(0..1)[0] - series.rows(0..1)[1]).abs() > 1e-3);
    }
}
