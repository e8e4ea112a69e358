//! What the suite found, for people and for programs.

use std::fmt::Write;

use serde::Serialize;

use super::{case::Case, judge::Deviation, layout::Layout};
use crate::plan::Law;

/// The smallest example that was found to break a law.
#[derive(Debug, Clone, Serialize)]
pub struct Counterexample {
    /// Batch, meta tokens, calls, padding and document starts.
    pub example: Layout,
    /// What was off, where, and by how much.
    pub deviation: Deviation,
    /// Smaller examples that were tried on the way.
    pub shrunk: usize,
}

/// What became of a law.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It holds.
    Holds {
        /// The worst error of all examples.
        error: f64,
        /// How many examples were tried.
        examples: usize,
    },
    /// The component declares that it cannot keep it.
    Exempt {
        /// Why.
        reason: String,
        /// The error within which it was promised to hold, and does.
        within: Option<f64>,
        /// The error that was measured.
        error: f64,
        /// Whether the law is broken without the exemption.
        needed: bool,
    },
    /// It is broken.
    Broken(Box<Counterexample>),
    /// It says nothing about this component.
    DoesNotApply {
        /// Why.
        reason: &'static str,
    },
}

/// A law and what became of it.
#[derive(Debug, Clone, Serialize)]
pub struct LawReport {
    /// The law.
    pub law: Law,
    /// Its statement.
    pub statement: &'static str,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Seconds that it took.
    pub seconds: f64,
}

/// What the suite found of one case.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The component and its configuration.
    pub case: Case,
    /// Every law.
    pub laws: Vec<LawReport>,
    /// Seconds that it took.
    pub seconds: f64,
}

impl Report {
    /// Whether no law is broken.
    pub fn passed(&self) -> bool {
        self.broken().next().is_none()
    }

    /// The laws that are broken.
    pub fn broken(&self) -> impl Iterator<Item = Law> + '_ {
        self.laws.iter().filter(|law| matches!(law.outcome, Outcome::Broken(_))).map(|law| law.law)
    }

    /// What became of a law.
    pub fn outcome(&self, law: Law) -> Option<&Outcome> {
        self.laws.iter().find(|report| report.law == law).map(|report| &report.outcome)
    }

    /// The report as text: a line for the case, then what is broken or exempt, and with `every` all other laws too.
    pub fn render(&self, every: bool) -> String {
        let mut text = String::new();
        let held = self.laws.iter().filter(|law| matches!(law.outcome, Outcome::Holds { .. })).count();
        let broken = self.broken().count();
        let verdict = if broken == 0 { "ok" } else { "BROKEN" };
        let mut counts = format!("{held} laws hold");
        if broken > 0 {
            let _ = write!(counts, ", {broken} broken");
        }
        let title = self.case.title();
        let _ = writeln!(text, "{verdict:<6} {title}   ({counts}, {:.1} s)", self.seconds);
        let mut given = "";
        for report in &self.laws {
            let law = report.law;
            match &report.outcome {
                Outcome::Holds { error, examples } if every => {
                    let _ = writeln!(text, "  {law:<22} holds, {examples} examples, {}", size(*error));
                }
                Outcome::DoesNotApply { reason } if every => {
                    let _ = writeln!(text, "  {law:<22} does not apply: {reason}");
                }
                Outcome::Holds { .. } | Outcome::DoesNotApply { .. } => {}
                Outcome::Exempt { reason, within, error, needed } => {
                    let promise = within.map_or_else(String::new, |e| format!(" within {e:e}"));
                    let because = if reason == given { "the same reason" } else { reason.as_str() };
                    given = reason;
                    let _ = writeln!(text, "  {law:<22} exempt{promise}, {}: {because}", size(*error));
                    if !needed {
                        let _ = writeln!(text, "  {:<22} the law holds here without the exemption", "note");
                    }
                }
                Outcome::Broken(counterexample) => {
                    let _ = writeln!(text, "  {law:<22} BROKEN: {}", report.statement);
                    counterexample.render(&mut text);
                }
            }
        }
        text
    }
}

impl Counterexample {
    fn render(&self, text: &mut String) {
        let deviation = &self.deviation;
        let place = match (deviation.row, deviation.token) {
            (Some(row), Some(token)) => format!(" at row {row}, token {token}"),
            (Some(row), None) => format!(" at row {row}"),
            _ => String::new(),
        };
        let _ = writeln!(text, "    smallest example  {}", self.example);
        let _ = writeln!(text, "    what is off       {}{place}: {}", deviation.tensor, deviation.detail);
        if deviation.error.is_finite() {
            let (error, tolerance) = (deviation.error, deviation.tolerance);
            let _ =
                writeln!(text, "    how far           {error:.1e} of its size, tolerance {tolerance:.1e}");
        }
    }
}

fn size(error: f64) -> String {
    if error == 0.0 { "exact".to_owned() } else { format!("error at most {error:.1e}") }
}
