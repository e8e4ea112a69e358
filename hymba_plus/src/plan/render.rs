//! The plan as a table for people.

use std::fmt::Write;

use super::{Growth, KvRole, LayerPlan, ModelPlan, model::state_width};

impl ModelPlan {
    /// The plan as text: a row for each run of equal layers, then totals at `tokens` tokens per document.
    pub fn render(&self, tokens: i64) -> String {
        let mut rows = vec![header()];
        let mut first = 0;
        for index in 0..self.layers.len() {
            let last = index + 1 == self.layers.len();
            if last || !self.alike(index, index + 1) {
                rows.push(self.row(first, index, tokens));
                first = index + 1;
            }
        }
        let mut text = table(&rows);
        self.render_matrices(&mut text);
        self.render_totals(&mut text, tokens);
        text
    }

    /// Whether two layers would print the same row.
    fn alike(&self, a: usize, b: usize) -> bool {
        self.cells(a, 1)[1..] == self.cells(b, 1)[1..]
    }

    fn row(&self, first: usize, last: usize, tokens: i64) -> Vec<String> {
        let mut cells = self.cells(first, tokens);
        if last > first {
            cells[0] = format!("{first}-{last}");
        }
        cells
    }

    fn cells(&self, index: usize, tokens: i64) -> Vec<String> {
        let layer = &self.layers[index];
        let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        let mixers: Vec<_> = layer.mixers.iter().map(|mixer| mixer.name.clone()).collect();
        let inner =
            layer.channel_mixer.as_ref().map_or(String::new(), |(component, _)| component.kind.clone());
        let count: u64 = layer.parameters(0.0).iter().map(crate::params::ParameterPlan::count).sum();
        let (fixed, growing) = layer_state(layer, self.meta_tokens);
        vec![
            index.to_string(),
            or_dash(mixers.join(" + ")),
            window(layer),
            role(layer.kv),
            or_dash(inner),
            shapes(layer),
            grouped(count),
            si(layer.flops_per_token(self.meta_tokens, tokens)),
            bytes(fixed),
            or_dash(growing),
        ]
    }

    fn render_matrices(&self, text: &mut String) {
        let ends: u64 = self.parameter_count()
            - self.layers.iter().flat_map(|layer| layer.parameters(0.0)).map(|p| p.count()).sum::<u64>();
        let tied = if self.tie_embeddings { "tied" } else { "not tied" };
        let _ = writeln!(
            text,
            "\nembedding {} x {} ({}, head {tied}), meta tokens {}, final {}: {} parameters",
            self.vocab_size,
            self.d_model,
            self.embedding.component.kind,
            self.meta_tokens,
            self.final_norm.component.kind,
            grouped(ends)
        );
    }

    fn render_totals(&self, text: &mut String, tokens: i64) {
        let totals = self.totals(tokens);
        let rows = [
            ("parameters", grouped(totals.parameters)),
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
                    "{} at {} tokens: {} fixed, then {} per token",
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
        for exemption in self.exemptions() {
            let _ = writeln!(text, "exempt               {exemption}");
        }
    }

    /// Laws of sequence states that some module declares it cannot keep.
    pub fn exemptions(&self) -> Vec<String> {
        let mut all = Vec::new();
        for module in self.layers.iter().flat_map(LayerPlan::modules) {
            let inner = module.children.values().flat_map(|child| &child.plan.exemptions);
            for exemption in module.exemptions.iter().chain(inner) {
                if !all.contains(exemption) {
                    all.push(exemption.clone());
                }
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
        "channel",
        "in > out",
        "parameters",
        "FLOP/token",
        "state",
        "+ per token",
    ];
    names.map(str::to_owned).to_vec()
}

fn window(layer: &LayerPlan) -> String {
    let shapes: Vec<_> = layer.mixers.iter().filter_map(|mixer| mixer.module.kv_shape.as_ref()).collect();
    match shapes.first() {
        None => "-".to_owned(),
        Some(shape) => shape.window.map_or("global".to_owned(), |window| window.to_string()),
    }
}

fn role(kv: KvRole) -> String {
    match kv {
        KvRole::Own => "own".to_owned(),
        KvRole::Producer => "produces".to_owned(),
        KvRole::Consumer { producer } => format!("of layer {producer}"),
    }
}

fn shapes(layer: &LayerPlan) -> String {
    let rows = |matrices: &[super::MatrixPlan]| matrices.iter().map(|m| m.rows).sum::<i64>();
    let columns: i64 = layer.out_projection.iter().map(|m| m.columns).sum();
    if layer.mixers.is_empty() {
        "-".to_owned()
    } else {
        format!("{} > {columns}", rows(&layer.in_projection))
    }
}

/// Bytes that do not grow, and what grows per token with its bound.
fn layer_state(layer: &LayerPlan, meta: i64) -> (u64, String) {
    let states = layer.mixers.iter().flat_map(|mixer| &mixer.module.states);
    let (mut fixed, mut growing, mut bound) = (0, 0, None);
    for state in states {
        let entry = state.shape.iter().product::<i64>() * state_width(state.kind);
        match state.growth {
            Growth::Fixed => fixed += entry,
            Growth::Prefix => fixed += entry * meta,
            Growth::Window(window) => {
                growing += entry;
                bound = Some(window);
            }
            Growth::Unbounded => growing += entry,
        }
    }
    let text = match (growing, bound) {
        (0, _) => String::new(),
        (n, Some(window)) => format!("{} to {window}", bytes(n as u64)),
        (n, None) => bytes(n as u64),
    };
    (fixed as u64, text)
}

fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (i, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            // Words to the left, numbers to the right.
            if column < 6 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
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

fn si(number: f64) -> String {
    const UNITS: [&str; 5] = ["", "k", "M", "G", "T"];
    let (mut value, mut unit) = (number, 0);
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.2} {}", UNITS[unit])
}
