//! A card for each kind of layer: how its parts are wired.

use std::fmt::Write;

use super::{Anchor, Canvas, MARGIN, Picture, WIDTH, bytes, fill, fitted, grouped, si, window};
use crate::plan::{KvRole, LayerPlan, LayerSummary};

/// Cards that are drawn; more kinds of layers than this are counted only.
const MOST: usize = 8;
const ROW: f64 = 34.0;
const BOX: f64 = 26.0;

impl Picture<'_> {
    /// Draws the cards; gives the height used.
    pub(super) fn cards(&self, canvas: &mut Canvas, top: f64) -> f64 {
        let mut kinds: Vec<Vec<usize>> = Vec::new();
        for layer in &self.plan.layers {
            let same = kinds.iter_mut().find(|kind| self.alike(kind[0], layer.index));
            match same {
                Some(kind) => kind.push(layer.index),
                None => kinds.push(vec![layer.index]),
            }
        }
        let mut y = top;
        for kind in kinds.iter().take(MOST) {
            y = self.card(canvas, kind, y) + 14.0;
        }
        if kinds.len() > MOST {
            let text = format!("and {} more kinds of layers", kinds.len() - MOST);
            canvas.text("dim", [MARGIN, y + 8.0], Anchor::Start, &text);
            y += 20.0;
        }
        y
    }

    /// Whether two layers differ in nothing but their place, and which layer they read keys of.
    fn alike(&self, a: usize, b: usize) -> bool {
        let (a, b) = (&self.plan.layers[a], &self.plan.layers[b]);
        a.config == b.config && std::mem::discriminant(&a.kv) == std::mem::discriminant(&b.kv)
    }

    fn card(&self, canvas: &mut Canvas, layers: &[usize], top: f64) -> f64 {
        let (layer, summary) = (&self.plan.layers[layers[0]], &self.summaries[layers[0]]);
        let height = 44.0 + ROW * layer.mixers.len().max(1) as f64;
        canvas.rect("card", [MARGIN, top, WIDTH - 2.0 * MARGIN, height], "");
        let plural = if layers.len() == 1 { "layer" } else { "layers" };
        let name = layer.template.as_ref().map_or_else(String::new, |name| format!(" ({name})"));
        let heading = format!("{plural} {}{name}", ranges(layers));
        canvas.text("head", [MARGIN + 14.0, top + 22.0], Anchor::Start, &fitted(&heading, 620.0, 7.2));
        canvas.text("dim", [WIDTH - MARGIN - 14.0, top + 22.0], Anchor::End, &costs(summary));
        let half = ROW * layer.mixers.len().max(1) as f64 / 2.0;
        self.wiring(canvas, layer, top + 36.0 + half, half + 2.0);
        top + height
    }

    /// Norm, in-projection, mixers side by side, fusion, out-projection, sum; norm, channel mixer, sum.
    fn wiring(&self, canvas: &mut Canvas, layer: &LayerPlan, y: f64, below: f64) {
        let mut x = MARGIN + 14.0;
        // The residual runs below the parts that it goes around.
        let around = |canvas: &mut Canvas, from: f64, to: f64| {
            let low = y + below;
            canvas.path(
                "wire",
                &format!("M{from:.1} {y:.1}L{from:.1} {low:.1}L{to:.1} {low:.1}L{to:.1} {:.1}", y + 7.0),
            );
        };
        let stream = |canvas: &mut Canvas, x: &mut f64, length: f64| {
            canvas.line("wire", [*x, y], [*x + length, y]);
            *x += length;
        };
        let part = |canvas: &mut Canvas, x: &mut f64, text: &str| {
            let width = 16.0 + 6.0 * text.chars().count() as f64;
            canvas.rect("part", [*x, y - BOX / 2.0, width, BOX], "");
            canvas.text("small", [*x + width / 2.0, y + 3.5], Anchor::Middle, text);
            *x += width;
        };
        let begin = x;
        stream(canvas, &mut x, 14.0);
        if let Some((norm, _)) = &layer.norm {
            part(canvas, &mut x, &norm.kind);
            stream(canvas, &mut x, 10.0);
            let shapes = |name: &str| {
                let prefix = format!("layers.{}.{name}", layer.index);
                let all = layer.in_projection.iter().chain(&layer.out_projection);
                let found: Vec<String> = all
                    .filter(|matrix| matrix.name.starts_with(&prefix))
                    .map(|matrix| format!("{}x{}", matrix.rows, matrix.columns))
                    .collect();
                match found.as_slice() {
                    [] => None,
                    [one] => Some(format!("{name} {one}")),
                    [first, ..] => Some(format!("{} x {name}, {first} ...", found.len())),
                }
            };
            if let Some(text) = shapes("in_proj") {
                part(canvas, &mut x, &text);
                stream(canvas, &mut x, 6.0);
            }
            x = self.branches(canvas, layer, [x, y]);
            if let Some((fusion, _)) = layer.fusion.as_ref().filter(|(fusion, _)| !fusion.is_none()) {
                part(canvas, &mut x, &fusion.kind);
                stream(canvas, &mut x, 10.0);
            }
            if let Some(text) = shapes("out_proj") {
                part(canvas, &mut x, &text);
                stream(canvas, &mut x, 10.0);
            }
            around(canvas, begin + 6.0, x + 7.0);
            canvas.sum([x + 7.0, y]);
            x += 14.0;
            stream(canvas, &mut x, 14.0);
        }
        if let (Some((norm, _)), Some((mixer, plan))) = (&layer.channel_norm, &layer.channel_mixer) {
            let begin = x - 14.0;
            part(canvas, &mut x, &norm.kind);
            stream(canvas, &mut x, 10.0);
            let width = 24.0 + 6.4 * mixer.kind.chars().count() as f64;
            let own: u64 = plan.all_parameters().iter().map(crate::params::ParameterPlan::count).sum();
            let title = format!("{}, {} parameters", mixer.kind, grouped(own));
            canvas.rect(&fill(self.kinds.number(&mixer.kind)), [x, y - BOX / 2.0, width, BOX], &title);
            canvas.text("on", [x + width / 2.0, y + 3.5], Anchor::Middle, &mixer.kind);
            x += width;
            stream(canvas, &mut x, 10.0);
            around(canvas, begin + 6.0, x + 7.0);
            canvas.sum([x + 7.0, y]);
            x += 14.0;
            stream(canvas, &mut x, 14.0);
        }
        canvas.path("wire", &format!("M{:.1} {:.1}l6 4l-6 4", x - 6.0, y - 4.0));
    }

    /// The mixers between a fork and a join; gives the x behind the join.
    fn branches(&self, canvas: &mut Canvas, layer: &LayerPlan, [x, y]: [f64; 2]) -> f64 {
        let labels: Vec<String> = layer.mixers.iter().map(|mixer| label(layer, mixer)).collect();
        let longest = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
        let (width, fork) = (20.0 + 6.2 * longest as f64, 14.0);
        let top = y - ROW * (labels.len() as f64 - 1.0) / 2.0;
        for (i, (mixer, label)) in layer.mixers.iter().zip(&labels).enumerate() {
            let at = top + i as f64 * ROW;
            let left = x + fork;
            canvas.path("wire", &format!("M{x:.1} {y:.1}L{x:.1} {at:.1}L{left:.1} {at:.1}"));
            let class = fill(self.kinds.number(&mixer.component.kind));
            canvas.rect(&class, [left, at - BOX / 2.0, width, BOX], &mixer.name);
            canvas.text("on", [left + width / 2.0, at + 3.5], Anchor::Middle, label);
            let (end, join) = (left + width, left + width + fork);
            canvas.path("wire", &format!("M{end:.1} {at:.1}L{join:.1} {at:.1}L{join:.1} {y:.1}"));
        }
        let end = x + 2.0 * fork + width;
        canvas.line("wire", [end, y], [end + 10.0, y]);
        end + 10.0
    }
}

/// A mixer in a few words: `attention, 5 kv heads, sees 1024`.
fn label(layer: &LayerPlan, mixer: &crate::plan::MixerPlan) -> String {
    let mut text = mixer.component.kind.clone();
    if let Some(shape) = &mixer.module.kv_shape {
        let _ = write!(text, ", {} kv heads of {}", shape.n_kv_heads, shape.head_dim);
        if shape.v_head_dim != shape.head_dim {
            let _ = write!(text, "/{}", shape.v_head_dim);
        }
        let _ = write!(text, ", {}", window(shape.window));
        match layer.kv {
            KvRole::Consumer { .. } => text.push_str(", keys of an earlier layer"),
            KvRole::Producer => text.push_str(", keys shared"),
            KvRole::Own => {}
        }
    }
    text
}

fn costs(summary: &LayerSummary) -> String {
    let growth = match (summary.state_bytes_per_token, summary.state_grows_until) {
        (0, _) => String::new(),
        (n, Some(window)) => format!(" + {} for each of {window} tokens", bytes(n)),
        (n, None) => format!(" + {} for each token", bytes(n)),
    };
    format!(
        "{} parameters · {}FLOP per token · state {}{growth}",
        grouped(summary.parameters),
        si(summary.flops_per_token),
        bytes(summary.fixed_state_bytes)
    )
}

/// `[0, 1, 2, 5]` as `0-2, 5`.
fn ranges(layers: &[usize]) -> String {
    let runs = layers.chunk_by(|a, b| a + 1 == *b);
    let texts = runs.map(|run| match run {
        [one] => one.to_string(),
        [first, .., last] => format!("{first}-{last}"),
        [] => String::new(),
    });
    texts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::ranges;

    #[test]
    fn runs_become_ranges() {
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2, 5, 7-8");
    }
}
