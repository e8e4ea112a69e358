//! The costs of a trace added up by operation.

use std::{collections::BTreeMap, fmt, path::Path};

use serde::Serialize;

use super::{
    Ceilings, TraceError,
    trace::{self, Cost},
    work::Work,
};

/// An operation in all its runs of a step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Its name: an operator of libtorch without `aten::`, or a kernel of ours.
    pub operation: String,
    /// The kernel that took the longest; none on the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Runs per step.
    pub calls: f64,
    /// Milliseconds per step.
    pub ms: f64,
    /// Share of all.
    pub share: f64,
    /// Least bytes moved per second, in GB/s, where shapes tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gb_per_s: Option<f64>,
    /// Floating-point operations per second, in TFLOP/s, where shapes tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tflop_per_s: Option<f64>,
    /// The least time that the device's rates allow, as a share of the time taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor_share: Option<f64>,
}

/// A profile by operation, most expensive first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Table {
    /// Whether the times are a GPU's.
    pub on_device: bool,
    /// Milliseconds per step of all rows.
    pub ms: f64,
    /// The rows.
    pub rows: Vec<Row>,
}

/// Least share of a row that is shown by itself.
const SHOWN: f64 = 2e-3;

#[derive(Default)]
struct Sum {
    runs: u64,
    seconds: f64,
    bytes: Option<f64>,
    flops: Option<f64>,
    floor: Option<f64>,
    kernel: Option<(f64, String)>,
}

impl Table {
    /// Adds up a trace of so many steps.
    ///
    /// # Errors
    /// When the file is no trace.
    pub fn read(trace: &Path, steps: u64, ceilings: &Ceilings) -> Result<Self, TraceError> {
        let (on_device, costs) = trace::read(trace)?;
        Ok(Self::of(on_device, &costs, steps, ceilings))
    }

    fn of(on_device: bool, costs: &[Cost], steps: u64, ceilings: &Ceilings) -> Self {
        let steps = steps.max(1) as f64;
        let mut sums: BTreeMap<&str, Sum> = BTreeMap::new();
        for cost in costs {
            let sum = sums.entry(&cost.operation).or_default();
            sum.runs += 1;
            sum.seconds += cost.seconds;
            let Work { bytes, flops } = cost.work;
            let add = |to: &mut Option<f64>, more: Option<f64>| {
                if let Some(more) = more {
                    *to.get_or_insert(0.0) += more;
                }
            };
            add(&mut sum.bytes, bytes);
            add(&mut sum.flops, flops);
            let least = ceilings.floor(bytes.unwrap_or(0.0), flops.unwrap_or(0.0));
            add(&mut sum.floor, (bytes.is_some() || flops.is_some()).then_some(least));
            if let Some(kernel) = &cost.kernel
                && sum.kernel.as_ref().is_none_or(|(seconds, _)| cost.seconds > *seconds)
            {
                sum.kernel = Some((cost.seconds, kernel.clone()));
            }
        }
        let total: f64 = sums.values().map(|sum| sum.seconds).sum();
        let row = |(operation, sum): (&str, Sum)| {
            let per_second = |amount: f64| if sum.seconds > 0.0 { amount / sum.seconds } else { 0.0 };
            Row {
                operation: operation.to_owned(),
                kernel: sum.kernel.as_ref().map(|(_, name)| name.clone()),
                calls: sum.runs as f64 / steps,
                ms: sum.seconds * 1e3 / steps,
                share: if total > 0.0 { sum.seconds / total } else { 0.0 },
                gb_per_s: sum.bytes.map(|bytes| per_second(bytes) * 1e-9),
                tflop_per_s: sum.flops.map(|flops| per_second(flops) * 1e-12),
                floor_share: sum.floor.map(per_second),
            }
        };
        let mut rows: Vec<Row> = sums.into_iter().map(row).collect();
        rows.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        Self { on_device, ms: total * 1e3 / steps, rows }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|row| row.operation.chars().count()).max().unwrap_or(0).clamp(9, 44);
        let titles = ["calls", "ms/step", "share", "GB/s", "TFLOP/s", "of floor"];
        let [calls, ms, share, gb, tflop, floor] = titles;
        writeln!(
            f,
            "{:<width$}  {calls:>7}  {ms:>9}  {share:>6}  {gb:>7}  {tflop:>8}  {floor:>8}",
            "operation"
        )?;
        let (shown, rest): (Vec<&Row>, Vec<&Row>) = self.rows.iter().partition(|row| row.share >= SHOWN);
        for row in shown {
            let name: String = row.operation.chars().take(width).collect();
            let number = |value: Option<f64>, digits: usize| {
                value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
            };
            let floor =
                row.floor_share.map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", share * 100.0));
            writeln!(
                f,
                "{name:<width$}  {:>7.0}  {:>9.3}  {:>4.1} %  {:>7}  {:>8}  {floor:>8}",
                row.calls,
                row.ms,
                row.share * 100.0,
                number(row.gb_per_s, 0),
                number(row.tflop_per_s, 1),
            )?;
        }
        if !rest.is_empty() {
            let (calls, ms) =
                rest.iter().fold((0.0, 0.0), |(calls, ms), row| (calls + row.calls, ms + row.ms));
            let (name, share) = (format!("({} others)", rest.len()), ms / self.ms.max(1e-12) * 100.0);
            writeln!(f, "{name:<width$}  {calls:>7.0}  {ms:>9.3}  {share:>4.1} %")?;
        }
        write!(f, "{:<width$}  {:>7}  {:>9.3}", "all", "", self.ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_an_operation_are_added_and_measured_against_the_floor() {
        let cost = |operation: &str, seconds: f64, bytes: Option<f64>, flops: Option<f64>| Cost {
            operation: operation.to_owned(),
            kernel: Some(format!("{operation} in {seconds}")),
            seconds,
            launches: 1,
            work: Work { bytes, flops },
        };
        let costs = [
            cost("add", 0.2, Some(1e9), None),
            cost("mm", 0.5, Some(1e9), Some(1e12)),
            cost("add", 0.3, Some(1e9), None),
            cost("sort", 0.1, None, None),
        ];
        let ceilings = Ceilings { bytes_per_second: 1e10, flops_per_second: 4e12 };
        let table = Table::of(true, &costs, 2, &ceilings);
        let names: Vec<_> = table.rows.iter().map(|row| row.operation.as_str()).collect();
        assert_eq!((names, table.ms.round()), (vec!["add", "mm", "sort"], 550.0));
        let (add, mm, sort) = (&table.rows[0], &table.rows[1], &table.rows[2]);
        assert_eq!((add.calls, add.ms.round(), add.kernel.as_deref()), (1.0, 250.0, Some("add in 0.3")));
        assert!((add.gb_per_s.unwrap() - 4.0).abs() < 1e-9 && (add.floor_share.unwrap() - 0.4).abs() < 1e-9);
        assert!((mm.floor_share.unwrap() - 0.5).abs() < 1e-9 && (mm.tflop_per_s.unwrap() - 2.0).abs() < 1e-9);
        assert_eq!((sort.gb_per_s, sort.floor_share), (None, None));
        let shown = table.to_string();
        assert!(shown.lines().count() == 5 && shown.contains("40 %") && shown.contains("45.5 %"), "{shown}");
    }
}
