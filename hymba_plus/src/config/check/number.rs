//! Numbers: ranges, and what a word was meant to be.

use serde_json::Value;

use super::{At, Checker, Schema, text::rule, value};
use crate::config::{Diagnostic, yaml::Node};

/// Bounds of a number as its schema gives them.
#[derive(Debug, Clone, Copy)]
struct Range {
    least: Option<(f64, bool)>,
    most: Option<(f64, bool)>,
}

impl Range {
    fn of(schema: Schema) -> Self {
        let bound = |inclusive: &str, exclusive: &str| {
            let open = schema.number(exclusive).map(|bound| (bound, false));
            schema.number(inclusive).map(|bound| (bound, true)).or(open)
        };
        Self { least: bound("minimum", "exclusiveMinimum"), most: bound("maximum", "exclusiveMaximum") }
    }

    fn holds(self, value: f64) -> bool {
        let above = self.least.is_none_or(|(least, included)| value > least || (included && value >= least));
        let below = self.most.is_none_or(|(most, included)| value < most || (included && value <= most));
        above && below
    }

    fn words(self) -> String {
        match (self.least, self.most) {
            (Some((least, true)), Some((most, true))) if least >= most => show(least),
            (Some((least, true)), Some((most, true))) => format!("from {} to {}", show(least), show(most)),
            (Some(least), Some(most)) => format!("{} and {}", Self::above(least), Self::below(most)),
            (Some(least), None) => Self::above(least),
            (None, Some(most)) => Self::below(most),
            (None, None) => "finite".into(),
        }
    }

    fn above((bound, included): (f64, bool)) -> String {
        format!("{} {}", if included { "at least" } else { "greater than" }, show(bound))
    }

    fn below((bound, included): (f64, bool)) -> String {
        format!("{} {}", if included { "at most" } else { "less than" }, show(bound))
    }

    /// The allowed value nearest to one that is not; only a whole number, or a bound that is itself allowed.
    fn nearest(self, value: f64, whole: bool) -> Option<f64> {
        let step = |(bound, included): (f64, bool), toward: f64| match (included, whole) {
            (true, _) => Some(bound),
            (false, true) => Some(bound + toward),
            (false, false) => None,
        };
        match (self.least, self.most) {
            (Some(least), _) if value <= least.0 => step(least, 1.0),
            (_, Some(most)) if value >= most.0 => step(most, -1.0),
            _ => None,
        }
    }
}

impl Checker<'_> {
    pub(super) fn integer(&mut self, value: i128, node: &Node, schema: Schema, at: &At<'_>) -> Value {
        let (least, most) = width(schema);
        if value < least || value > most {
            // The schema's own bounds say more than the machine's, where there are any.
            if let Some(refused) = self.range(value as f64, true, node, schema, at) {
                return refused;
            }
            let (size, nearest) = if value < least { ("small", least) } else { ("large", most) };
            let message = format!("{value} is too {size} for `{}`", at.name());
            let problem = Diagnostic::new("out-of-range", &node.span, message)
                .label(format!("must be from {least} to {most}"));
            return self.report(
                at,
                problem.rule(rule(at, schema)).help(format!("the nearest allowed value is {nearest}")),
            );
        }
        self.range(value as f64, true, node, schema, at).unwrap_or_else(|| value::integer(value))
    }

    pub(super) fn number(&mut self, value: f64, node: &Node, schema: Schema, at: &At<'_>) -> Value {
        if !value.is_finite() {
            let message = format!("`{}` cannot be {}", at.name(), node.brief());
            let help = if value.is_nan() {
                "write a number"
            } else {
                "write a number, as large as is needed; to switch something off see its own key"
            };
            let problem = Diagnostic::new("out-of-range", &node.span, message).label("must be finite");
            return self.report(at, problem.rule(rule(at, schema)).help(help));
        }
        self.range(value, false, node, schema, at).unwrap_or_else(|| Value::from(value))
    }

    /// Reports a number out of its range, or one that is no multiple of what it must be.
    fn range(&mut self, value: f64, whole: bool, node: &Node, schema: Schema, at: &At<'_>) -> Option<Value> {
        let range = Range::of(schema);
        let written = node.brief();
        if !range.holds(value) {
            let message = format!("`{}` is {written}, it must be {}", at.name(), range.words());
            let help = match (range.nearest(value, whole), schema.default()) {
                (Some(nearest), _) => format!("the nearest allowed value is {}", show(nearest)),
                (None, Some(default)) => format!("the default is {default}"),
                (None, None) => String::new(),
            };
            let problem = Diagnostic::new("out-of-range", &node.span, message)
                .label(format!("must be {}", range.words()));
            return Some(self.report(at, problem.rule(rule(at, schema)).help(help)));
        }
        let step = schema.number("multipleOf").filter(|step| *step > 0.0)?;
        let times = value / step;
        if (times - times.round()).abs() < 1e-9 {
            return None;
        }
        let message = format!("`{}` is {written}, which is no multiple of {}", at.name(), show(step));
        let below = (times.floor() * step).max(step);
        let help = format!("the nearest multiples are {} and {}", show(below), show(times.ceil() * step));
        let problem = Diagnostic::new("out-of-range", &node.span, message)
            .label(format!("must be a multiple of {}", show(step)));
        Some(self.report(at, problem.rule(rule(at, schema)).help(help)))
    }
}

/// The range of a whole number in words, for a key's rule.
pub(super) fn range_words(schema: Schema) -> Option<String> {
    let range = Range::of(schema);
    (range.least.is_some() || range.most.is_some()).then(|| range.words())
}

/// Bounds of the machine's number behind a key.
fn width(schema: Schema) -> (i128, i128) {
    match schema.text("format") {
        Some("int8") => (i8::MIN.into(), i8::MAX.into()),
        Some("int16") => (i16::MIN.into(), i16::MAX.into()),
        Some("int32") => (i32::MIN.into(), i32::MAX.into()),
        Some("uint8") => (0, u8::MAX.into()),
        Some("uint16") => (0, u16::MAX.into()),
        Some("uint32") => (0, u32::MAX.into()),
        Some("uint" | "uint64") => (0, u64::MAX.into()),
        _ => (i64::MIN.into(), i64::MAX.into()),
    }
}

/// A number without a point where it has none.
fn show(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e15 { format!("{}", value as i64) } else { format!("{value}") }
}

/// What to write where a word stands for a number.
pub(super) fn meant(word: &str, quoted: bool, real: bool) -> Option<String> {
    let is_number = |text: &str| {
        if real { text.parse::<f64>().is_ok_and(f64::is_finite) } else { text.parse::<i64>().is_ok() }
    };
    let trimmed = word.trim();
    if quoted && is_number(trimmed) {
        return Some(format!("remove the quotes: {trimmed}"));
    }
    let digits = trimmed.replace(['_', ',', '\''], "");
    if digits != trimmed && is_number(&digits) {
        return Some(format!("write {digits}: numbers in YAML 1.2 have no separators"));
    }
    if let Some(percent) =
        trimmed.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok()).filter(|_| real)
    {
        return Some(format!("write {}", percent / 100.0));
    }
    let (number, unit) = trimmed.split_at(trimmed.trim_end_matches(|c: char| c.is_ascii_alphabetic()).len());
    let factor = match unit {
        "k" | "K" => 1e3,
        "M" => 1e6,
        "B" | "G" | "b" => 1e9,
        "T" => 1e12,
        _ => return None,
    };
    let value = number.trim().parse::<f64>().ok()? * factor;
    Some(format!("write {}: numbers are written out", show(value)))
}
