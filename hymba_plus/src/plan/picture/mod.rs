//! The plan as a picture: every layer a column, its mixers with what they see and remember, and below a card for each
//! kind of layer.

mod canvas;
mod cards;
mod columns;

use std::collections::BTreeMap;

use super::{
    LayerSummary, ModelPlan,
    render::{bytes, grouped, si},
};
use canvas::{Anchor, Canvas, fill};

const MARGIN: f64 = 28.0;
/// Wide enough for sixteen columns and the two ends.
const WIDTH: f64 = 1284.0;

impl ModelPlan {
    /// The architecture as a self-contained SVG, light or dark as the reader's system is; lengths and bytes are those of
    /// a document of `tokens` tokens.
    pub fn svg(&self, title: &str, tokens: i64) -> String {
        let summaries = self.layer_summaries(tokens);
        let mut canvas = Canvas::default();
        let picture = Picture { plan: self, summaries: &summaries, tokens, kinds: Kinds::of(self) };
        let mut y = picture.header(&mut canvas, title);
        y = picture.columns(&mut canvas, y);
        y = picture.cards(&mut canvas, y);
        canvas.finish([WIDTH, y + MARGIN], title)
    }
}

/// What is drawn.
struct Picture<'a> {
    plan: &'a ModelPlan,
    summaries: &'a [LayerSummary],
    tokens: i64,
    kinds: Kinds,
}

impl Picture<'_> {
    /// Title, totals and the legend; gives the height used.
    fn header(&self, canvas: &mut Canvas, title: &str) -> f64 {
        let (plan, totals) = (self.plan, self.plan.totals(self.tokens));
        let mut y = MARGIN + 16.0;
        canvas.text("title", [MARGIN, y], Anchor::Start, title);
        y += 24.0;
        let vocabulary =
            plan.vocab_size.map_or_else(String::new, |size| format!(", vocabulary {}", grouped(size as u64)));
        let meta = match plan.meta_tokens {
            0 => String::new(),
            n => format!(", {n} meta tokens in front of every document"),
        };
        let model = format!("{} layers of width {}{vocabulary}{meta}", plan.layers.len(), plan.d_model);
        canvas.text("dim", [MARGIN, y], Anchor::Start, &model);
        y += 17.0;
        let costs = format!(
            "{} parameters · {}FLOP per token forward · state of a sequence at {} tokens {}, of it {} fixed",
            grouped(totals.parameters),
            si(totals.flops_per_token),
            grouped(self.tokens as u64),
            bytes(totals.state_bytes),
            bytes(totals.fixed_state_bytes),
        );
        canvas.text("dim", [MARGIN, y], Anchor::Start, &costs);
        y += 26.0;
        let mut x = MARGIN;
        let swatch = |canvas: &mut Canvas, class: &str, text: &str, x: &mut f64| {
            canvas.rect(class, [*x, y - 9.0, 12.0, 11.0], "");
            canvas.text("small", [*x + 17.0, y], Anchor::Start, text);
            *x += 36.0 + 5.6 * text.chars().count() as f64;
        };
        for kind in self.kinds.in_order() {
            swatch(canvas, &fill(self.kinds.number(kind)), kind, &mut x);
        }
        swatch(canvas, "fixed", "fixed state", &mut x);
        swatch(canvas, "grows", &format!("state of {} tokens", grouped(self.tokens as u64)), &mut x);
        if plan.layers.iter().any(|layer| layer.kv == super::KvRole::Producer) {
            canvas.path("share", &format!("M{x:.1} {:.1}q10 -12 20 0", y - 1.0));
            canvas.text("small", [x + 25.0, y], Anchor::Start, "keys and values shared");
        }
        y + 22.0
    }
}

/// Numbers for the kinds of mixers and channel mixers, in order of appearance: their colours.
struct Kinds(BTreeMap<String, usize>);

impl Kinds {
    fn of(plan: &ModelPlan) -> Self {
        let mut numbers = BTreeMap::new();
        let mixers =
            plan.layers.iter().flat_map(|layer| layer.mixers.iter().map(|mixer| &mixer.component.kind));
        let channels = plan.layers.iter().filter_map(|layer| Some(&layer.channel_mixer.as_ref()?.0.kind));
        for kind in mixers.chain(channels) {
            let next = numbers.len();
            numbers.entry(kind.clone()).or_insert(next);
        }
        Self(numbers)
    }

    fn number(&self, kind: &str) -> usize {
        self.0.get(kind).copied().unwrap_or_default()
    }

    fn in_order(&self) -> Vec<&str> {
        let mut kinds: Vec<_> = self.0.iter().collect();
        kinds.sort_by_key(|(_, number)| **number);
        kinds.into_iter().map(|(kind, _)| kind.as_str()).collect()
    }
}

/// How a window reads.
fn window(window: Option<i64>) -> String {
    window.map_or_else(|| "sees all".to_owned(), |window| format!("sees {window}"))
}

/// A text cut to a width, for small boxes.
fn fitted(text: &str, width: f64, per_character: f64) -> String {
    let most = (width / per_character) as usize;
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(std::iter::once('…')).collect()
}
