//! The plan as a table for people.

use std::fmt::Write;

use super::{Exemption, KvRole, LayerPlan, LayerSummary, ModelPlan, ModulePlan};

impl ModelPlan {
    /// The plan as text: a row for each run of equal layers, then totals at `tokens` tokens per document.
    pub fn render(&self, tokens: i64) -> String {
        let summaries = self.layer_summaries(tokens);
        let mut rows = vec![header()];
        for run in summaries.chunk_by(|a, b| cells(a)[1..] == cells(b)[1..]) {
            let mut row = cells(&run[0]);
            if let [first, .., last] = run {
                row[0] = format!("{}-{}", first.layer, last.layer);
            }
            rows.push(row);
        }
        let mut text = table(&rows);
        self.render_matrices(&mut text);
        self.render_totals(&mut text, tokens);
        text
    }

    fn render_matrices(&self, text: &mut String) {
        let ends: u64 = self.parameter_count()
            - self.layers.iter().flat_map(|layer| layer.parameters(0.0)).map(|p| p.count()).sum::<u64>();
        let tied = if self.head.module.tied_rows.is_some() { "tied" } else { "not tied" };
        let size = self.vocab_size.map_or_else(String::new, |size| format!("{size} x "));
        let heads: String = self
            .heads
            .iter()
            .map(|(name, head)| format!(", {name}: {}", head.component.kind))
            .collect::<Vec<_>>()
            .concat();
        let _ = writeln!(
            text,
            "\nembedding {size}{} ({}), head {} ({tied}){heads}, meta tokens {}, final {}: {} parameters",
            self.d_model,
            self.embedding.component.kind,
            self.head.component.kind,
            self.meta_tokens,
            self.final_norm.component.kind,
            grouped(ends)
        );
    }

    fn render_totals(&self, text: &mut String, tokens: i64) {
        let totals = self.totals(tokens);
        let mut parameters = grouped(totals.parameters);
        if totals.active_parameters != totals.parameters {
            let _ = write!(parameters, ", {} of them active for a token", grouped(totals.active_parameters));
        }
        let rows = [
            ("parameters", parameters),
            (
                "forward per token",
                format!(
                    "{}FLOP (mean over {} tokens; training takes 3x)",
                    si(totals.flops_per_token),
                    grouped(tokens as u64)
                ),
            ),
            (
                "state of a sequence",
                format!(
                    "{} at {} tokens: {} fixed, then {} per token (activations in 2 bytes)",
                    bytes(totals.state_bytes),
                    grouped(tokens as u64),
                    bytes(totals.fixed_state_bytes),
                    bytes(totals.state_bytes_per_token)
                ),
            ),
            (
                "training memory",
                format!(
                    "{} weights, gradients, AdamW (fp32) + about {} of activations per sequence of {} tokens",
                    bytes(totals.weight_bytes),
                    bytes(totals.activation_bytes),
                    grouped(tokens as u64)
                ),
            ),
        ];
        for (name, value) in rows {
            let _ = writeln!(text, "{name:<20} {value}");
        }
        // Laws that are broken for one reason stand on one line.
        for same in self.exemptions().chunk_by(|a, b| (&a.reason, a.within) == (&b.reason, b.within)) {
            let laws: Vec<_> = same.iter().map(|exemption| exemption.law.name()).collect();
            let within = same[0].within.map_or_else(String::new, |e| format!(" within relative error {e:e}"));
            let _ = writeln!(text, "{:<20} {}{within}: {}", "exempt", laws.join(", "), same[0].reason);
        }
    }

    /// Laws that some module declares it cannot keep, each once.
    pub fn exemptions(&self) -> Vec<Exemption> {
        let mut all = Vec::new();
        let modules = self.layers.iter().flat_map(LayerPlan::modules);
        for exemption in modules.flat_map(ModulePlan::all_exemptions) {
            if !all.contains(&exemption) {
                all.push(exemption);
            }
        }
        all
    }
}

fn header() -> Vec<String> {
    let names = [
        "layer",
        "mixers",
        "window",
        "kv",
        "in_proj",
        "out_proj",
        "channel",
        "parameters",
        "FLOP/token",
        "state",
        "+ per token",
    ];
    names.map(str::to_owned).to_vec()
}

fn cells(layer: &LayerSummary) -> Vec<String> {
    let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let windows = layer.windows.iter().map(|window| window.map_or("global".to_owned(), |w| w.to_string()));
    let shapes = |name: &str| {
        let all = layer.projections.iter().filter(|(matrix, _)| matrix.starts_with(name));
        all.map(|(_, [rows, columns])| format!("{rows}x{columns}")).collect::<Vec<_>>().join(",")
    };
    let growing = match (layer.state_bytes_per_token, layer.state_grows_until) {
        (0, _) => String::new(),
        (n, Some(window)) => format!("{} to {window}", bytes(n)),
        (n, None) => bytes(n),
    };
    let kv = if layer.windows.is_empty() { String::new() } else { role(layer.kv) };
    vec![
        layer.layer.to_string(),
        or_dash(layer.mixers.join(" + ")),
        or_dash(windows.collect::<Vec<_>>().join(", ")),
        or_dash(kv),
        or_dash(shapes("in_proj")),
        or_dash(shapes("out_proj")),
        or_dash(layer.channel_mixer.clone().unwrap_or_default()),
        grouped(layer.parameters),
        si(layer.flops_per_token),
        bytes(layer.fixed_state_bytes),
        or_dash(growing),
    ]
}

fn role(kv: KvRole) -> String {
    match kv {
        KvRole::Own => "own".to_owned(),
        KvRole::Producer => "produces".to_owned(),
        KvRole::Consumer { producer } => format!("of layer {producer}"),
    }
}

fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (i, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            // Words to the left, numbers to the right.
            if column < 7 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        let _ = writeln!(text, "{}", line.trim_end());
        if i == 0 {
            let _ =
                writeln!(text, "{}", widths.iter().map(|&w| "-".repeat(w)).collect::<Vec<_>>().join("  "));
        }
    }
    text
}

/// `1522797824` as `1,522,797,824`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes with a binary unit.
pub fn bytes(number: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (number as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{number} B") } else { format!("{value:.2} {}", UNITS[unit]) }
}

/// A number with a decimal unit.
pub(crate) fn si(number: f64) -> String {
    const UNITS: [&str; 5] = ["", "k", "M", "G", "T"];
    let (mut value, mut unit) = (number, 0);
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.2} {}", UNITS[unit])
}
