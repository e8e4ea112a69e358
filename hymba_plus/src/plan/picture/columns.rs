//! The layers in order along the residual stream.

use std::fmt::Write;

use super::{Anchor, Canvas, MARGIN, Picture, WIDTH, bytes, fill, fitted, grouped, window};
use crate::plan::{ACTIVATIONS, Growth, KvRole, LayerPlan, MixerPlan, StatePlan};

const PER_ROW: usize = 16;
const COLUMN: f64 = 60.0;
const GAP: f64 = 8.0;
/// Room for the boxes at the two ends.
const END: f64 = 64.0;
const MIXER: f64 = 46.0;
const CHANNEL: f64 = 22.0;
/// Room above the mixers for the arcs of sharing.
const ARCS: f64 = 34.0;
const BAR: f64 = 44.0;

impl Picture<'_> {
    /// Draws all rows; gives the height used.
    pub(super) fn columns(&self, canvas: &mut Canvas, top: f64) -> f64 {
        let most = self.plan.layers.iter().map(|layer| layer.mixers.len()).max().unwrap_or(0) as f64;
        let stack = most.max(1.0) * (MIXER + 4.0);
        let rows: Vec<&[LayerPlan]> = self.plan.layers.chunks(PER_ROW).collect();
        let last = rows.len().saturating_sub(1);
        let mut y = top;
        for (i, row) in rows.iter().enumerate() {
            let stream = y + ARCS + stack + 12.0;
            let left = MARGIN + END + GAP;
            let right = left + row.len() as f64 * (COLUMN + GAP);
            canvas.line("stream", [left - GAP, stream], [right, stream]);
            if i == 0 {
                self.input(canvas, stream);
            } else {
                canvas.line("stream", [left - 26.0, stream], [left - GAP, stream]);
            }
            if i == last {
                self.output(canvas, [right, stream]);
            } else {
                let x = right.min(WIDTH - MARGIN);
                canvas.line("stream", [x, stream], [x + 12.0, stream]);
            }
            for (n, layer) in row.iter().enumerate() {
                let x = left + n as f64 * (COLUMN + GAP);
                self.column(canvas, layer, [x, y + ARCS], stack, stream);
            }
            Self::arcs(canvas, row, [left, y + ARCS]);
            y = stream + 12.0 + CHANNEL + 10.0 + BAR + 44.0;
        }
        y
    }

    fn input(&self, canvas: &mut Canvas, stream: f64) {
        let kind = &self.plan.embedding.component.kind;
        if self.plan.meta_tokens > 0 {
            canvas.rect(
                "part",
                [MARGIN, stream - 46.0, END - 6.0, 28.0],
                "learned vectors that every token sees",
            );
            let middle = MARGIN + END / 2.0 - 3.0;
            canvas.text("small", [middle, stream - 34.0], Anchor::Middle, "meta");
            let count = format!("{} tokens", self.plan.meta_tokens);
            canvas.text("number", [middle, stream - 23.0], Anchor::Middle, &count);
        }
        canvas.rect("part", [MARGIN, stream - 14.0, END - 6.0, 28.0], "embedding");
        let middle = MARGIN + END / 2.0 - 3.0;
        canvas.text("small", [middle, stream - 2.0], Anchor::Middle, &fitted(kind, END - 8.0, 5.4));
        canvas.text("number", [middle, stream + 9.0], Anchor::Middle, "embedding");
    }

    fn output(&self, canvas: &mut Canvas, [x, stream]: [f64; 2]) {
        let norm = &self.plan.final_norm.component.kind;
        let heads = std::iter::once(("head", &self.plan.head))
            .chain(self.plan.heads.iter().map(|(name, head)| (name.as_str(), head)));
        canvas.text("number", [x + END / 2.0 + 2.0, stream - 20.0], Anchor::Middle, &fitted(norm, END, 5.2));
        for (i, (name, head)) in heads.enumerate() {
            let y = stream - 14.0 + i as f64 * 32.0;
            canvas.rect("part", [x + 4.0, y, END - 6.0, 28.0], "head");
            let middle = x + 4.0 + (END - 6.0) / 2.0;
            canvas.text(
                "small",
                [middle, y + 12.0],
                Anchor::Middle,
                &fitted(&head.component.kind, END - 8.0, 5.4),
            );
            canvas.text("number", [middle, y + 23.0], Anchor::Middle, &fitted(name, END - 8.0, 5.2));
        }
    }

    fn column(&self, canvas: &mut Canvas, layer: &LayerPlan, [x, top]: [f64; 2], stack: f64, stream: f64) {
        let middle = x + COLUMN / 2.0;
        let summary = &self.summaries[layer.index];
        for (i, mixer) in layer.mixers.iter().enumerate() {
            let above = (layer.mixers.len() - i) as f64;
            self.mixer(canvas, layer, mixer, [x, top + stack - above * (MIXER + 4.0)]);
        }
        if layer.mixers.is_empty() {
            canvas.rect("none", [x, top + stack - MIXER - 4.0, COLUMN, MIXER], "no mixer");
        }
        let y = stream + 12.0;
        match &layer.channel_mixer {
            Some((component, plan)) => {
                let title = format!("{}: {} wide inside and out", component.kind, plan.output_width);
                canvas.rect(&fill(self.kinds.number(&component.kind)), [x, y, COLUMN, CHANNEL], &title);
                let text = fitted(&component.kind, COLUMN - 4.0, 5.9);
                canvas.text("on", [middle, y + 15.0], Anchor::Middle, &text);
            }
            None => canvas.rect("none", [x, y, COLUMN, CHANNEL], "no channel mixer"),
        }
        canvas.rect("ground", [middle - 10.0, stream - 7.0, 20.0, 14.0], "");
        canvas.text("small", [middle, stream + 3.5], Anchor::Middle, &layer.index.to_string());
        self.state(canvas, [x, y + CHANNEL + 10.0], summary.fixed_state_bytes, self.grown(layer));
        let parameters = format!("{} par.", short(summary.parameters));
        canvas.text("number", [middle, y + CHANNEL + 10.0 + BAR + 24.0], Anchor::Middle, &parameters);
    }

    fn mixer(&self, canvas: &mut Canvas, layer: &LayerPlan, mixer: &MixerPlan, [x, y]: [f64; 2]) {
        let module = &mixer.module;
        let parameters: u64 = module.all_parameters().iter().map(crate::params::ParameterPlan::count).sum();
        let mut title = format!("layer {}, {}: output {} wide", layer.index, mixer.name, module.output_width);
        if parameters > 0 {
            let _ = write!(title, ", {} parameters of its own", grouped(parameters));
        }
        for state in &module.states {
            let growth = match state.growth {
                Growth::Fixed => "fixed".to_owned(),
                Growth::Prefix => "one for each meta token".to_owned(),
                Growth::Window(window) => format!("one for each of {window} tokens"),
                Growth::Unbounded => "one for each token".to_owned(),
                Growth::Groups(groups) => format!("one for each {} older tokens", groups.size),
                Growth::Ungrouped(groups) => format!("one for each of the newest {} tokens", groups.recent),
            };
            let _ = write!(title, "\nstate {} {:?}, {growth}", state.name, state.shape);
        }
        canvas.rect(&fill(self.kinds.number(&mixer.component.kind)), [x, y, COLUMN, MIXER], &title);
        let middle = x + COLUMN / 2.0;
        let name = fitted(&mixer.component.kind, COLUMN - 4.0, 5.9);
        let Some(shape) = &module.kv_shape else {
            canvas.text("on", [middle, y + MIXER / 2.0 + 4.0], Anchor::Middle, &name);
            return;
        };
        canvas.text("on", [middle, y + 15.0], Anchor::Middle, &name);
        canvas.text("on-small", [middle, y + 27.0], Anchor::Middle, &window(shape.window));
        // The part of a document of this length that its last token sees.
        let width = COLUMN - 12.0;
        let seen = shape.window.map_or(1.0, |window| window as f64 / self.tokens.max(1) as f64).min(1.0);
        canvas.rect("track", [x + 6.0, y + 33.0, width, 6.0], "");
        let seen = (seen * width).max(2.0);
        canvas.rect("seen", [x + 6.0 + width - seen, y + 33.0, seen, 6.0], "");
    }

    /// Bytes of a layer's state that came with the text.
    fn grown(&self, layer: &LayerPlan) -> u64 {
        let states = layer.mixers.iter().flat_map(|mixer| &mixer.module.states);
        let bytes = |state: &StatePlan| state.bytes(self.plan.meta_tokens, self.tokens, ACTIVATIONS) as u64;
        states.map(bytes).sum::<u64>() - self.summaries[layer.index].fixed_state_bytes
    }

    fn state(&self, canvas: &mut Canvas, [x, y]: [f64; 2], fixed: u64, grown: u64) {
        let of = |layer: &LayerPlan| self.summaries[layer.index].fixed_state_bytes + self.grown(layer);
        let most = self.plan.layers.iter().map(of).max().unwrap_or(0).max(1) as f64;
        let height = |part: u64| part as f64 / most * BAR;
        let (low, high) = (height(fixed), height(grown));
        let title = format!("state: {} fixed, {} of the text", bytes(fixed), bytes(grown));
        if grown > 0 {
            canvas.rect("grows", [x + 18.0, y + BAR - low - high, COLUMN - 36.0, high], &title);
        }
        if fixed > 0 {
            canvas.rect("fixed", [x + 18.0, y + BAR - low, COLUMN - 36.0, low], &title);
        }
        let total = if fixed + grown == 0 { "no state".to_owned() } else { bytes(fixed + grown) };
        canvas.text("number", [x + COLUMN / 2.0, y + BAR + 11.0], Anchor::Middle, &total);
    }

    /// From each producer to its consumers of the same row; a group that goes on in the next row ends in a stub.
    fn arcs(canvas: &mut Canvas, row: &[LayerPlan], [left, top]: [f64; 2]) {
        let Some(first) = row.first().map(|layer| layer.index) else { return };
        let at = |layer: usize| left + (layer - first) as f64 * (COLUMN + GAP) + COLUMN / 2.0;
        let y = top - 4.0;
        for layer in row {
            let KvRole::Consumer { producer } = layer.kv else { continue };
            let to = at(layer.index);
            let from = if producer >= first { at(producer) } else { left - 20.0 };
            let lift = 10.0 + 6.0 * ((to - from) / (COLUMN + GAP) - 1.0).min(2.5);
            canvas.path(
                "share",
                &format!(
                    "M{from:.1} {y:.1}C{from:.1} {:.1} {to:.1} {:.1} {to:.1} {y:.1}",
                    y - lift,
                    y - lift
                ),
            );
            canvas.path("share-dot", &format!("M{:.1} {:.1}l8 0l-4 6z", to - 4.0, y - 3.0));
        }
    }
}

/// `1522797824` as `1.52G`.
fn short(number: u64) -> String {
    super::si(number as f64).replace(' ', "")
}
