//! Meta tokens are an initial state: run once, with batch 1, they are the same tokens in front of every row.

use tch::{Kind, Tensor};
use torch_bridge::Result;

use super::{META, long};
use crate::{
    conformance::{
        harness::{Place, Spec, Streams, Subject, Tensors},
        judge::Judge,
        layout::{Layout, chunks},
        noise::Noise,
        run::{Run, outputs},
    },
    model::WINDOW,
    plan::KvRole,
    state::{Span, SpanInput},
};

pub(super) fn examples(spec: &Spec, noise: &mut Noise) -> Vec<Layout> {
    let long = long(spec);
    let mut all = vec![Layout::plain(1, 1, &[1])];
    for meta in [1, META] {
        all.push(Layout::plain(meta, 2, &[3]));
        all.push(Layout::plain(meta, 2, &[long]));
        all.push(Layout::plain(meta, 2, &chunks(noise, long)));
    }
    all
}

pub(super) fn prefix(spec: &Spec, layout: &Layout, judge: &mut Judge) -> Result<()> {
    let subject = spec.subject(layout.meta_tokens, Kind::Double)?;
    let batch = layout.batch();
    let streams = subject.streams(batch, layout.longest(), spec.seed)?;
    let initial = subject.initial(&streams)?;
    let shared = outputs(&subject, &streams, &initial, layout)?;

    // Meta tokens of each row's own.
    let expand = |(key, x): (&String, &Tensor)| -> Result<(String, Tensor)> {
        Ok((key.clone(), x.f_expand([batch as i64, -1, -1], false)?))
    };
    let each: Tensors = streams.meta.iter().map(expand).collect::<Result<_>>()?;
    let own = subject.prefix(&each, batch as i64)?;
    let mut run = Run::new(&subject, &streams, &own, batch, 0);
    run.layout(layout)?;
    judge.rows_and_gradients(&subject, &streams, &shared, &run.outputs()?)?;

    // Meta tokens as plain text in front of plain text, to a mixer that knows of no meta tokens and no window.
    let plain = Plain::of(spec, &subject)?;
    let mut expected = Vec::new();
    for row in 0..batch {
        expected.push(plain.row(&streams.rows(&[row])?, layout.tokens(row) as i64)?);
    }
    let known = expected.iter().zip(&shared).map(|(row, y)| Ok(y.f_narrow(0, 0, row.size()[0])?));
    let known = known.collect::<Result<Vec<_>>>()?;
    judge.rows_and_gradients(&subject, &streams, &known, &expected)
}

/// The same mixer, same parameters, without meta tokens and, where that is a key of its configuration, without a window.
struct Plain {
    subject: Subject,
    meta: i64,
    /// Text tokens that a token of the real mixer sees.
    window: Option<i64>,
    /// Whether the window could be taken away.
    global: bool,
}

impl Plain {
    fn of(spec: &Spec, real: &Subject) -> Result<Self> {
        let window = real.window();
        let mut component = spec.component.clone();
        let global = window.is_some() && component.config.remove(WINDOW).is_some();
        let place = Place { component: &component, role: KvRole::Own, key: &str::to_owned };
        let subject = Subject::like(real, spec, &[place], 0)?;
        Ok(Self { subject, meta: real.meta_tokens, window, global })
    }

    /// Outputs `[tokens, width]` of a row; where the window cannot be taken away, of the tokens whose window reaches
    /// over everything before them.
    fn row(&self, streams: &Streams, tokens: i64) -> Result<Tensor> {
        let inside = match self.window {
            Some(window) if self.global => tokens.min(window),
            Some(window) => tokens.min((window - self.meta).max(0)),
            None => tokens,
        };
        let mut outputs = vec![self.last(streams, 0, inside, inside)?];
        if self.global {
            // Further on a token sees the meta tokens and its window: those alone, where they stand.
            let window = self.window.unwrap_or(tokens);
            for token in inside..tokens {
                outputs.push(self.last(streams, token + 1 - window, window, 1)?);
            }
        }
        Ok(Tensor::f_cat(&outputs, 0)?)
    }

    /// The last `keep` outputs of one call on the meta tokens and text from `start` on, at the positions they have.
    fn last(&self, streams: &Streams, start: i64, length: i64, keep: i64) -> Result<Tensor> {
        let mut x = Tensors::new();
        for (key, text) in &streams.text {
            let parts = [streams.meta[key].shallow_clone(), text.f_narrow(1, start, length)?];
            x.insert(key.clone(), Tensor::f_cat(&parts, 1)?);
        }
        let (empty, time) = (self.subject.empty()?, self.meta + length);
        let mut span = Span::text(1, time, &empty, 0, SpanInput::default())?;
        let steps = Tensor::f_arange(time, (Kind::Int64, span.positions.device()))?;
        let moved = steps.f_ge(self.meta)?.f_to_kind(Kind::Int64)? * start;
        span.positions = (steps + moved).f_unsqueeze(0)?;
        let y = self.subject.pass(&x, &empty, &empty, &span)?.y.f_squeeze_dim(0)?;
        Ok(y.f_narrow(0, time - keep, keep)?)
    }
}
