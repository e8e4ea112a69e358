//! The plan is what happens: widths, types, shapes, growth.

use tch::Kind;
use torch_bridge::Result;

use super::META;
use crate::{
    conformance::{
        harness::{Spec, Subject},
        judge::Judge,
        layout::{Layout, tokens},
        noise::Noise,
        run::Run,
    },
    plan::{Growth, StatePlan},
    state::ModelState,
};

/// Types in which a model is built.
const KINDS: [Kind; 3] = [Kind::Double, Kind::Float, Kind::BFloat16];

/// Calls of none, one and several tokens.
pub(super) fn examples(spec: &Spec, _noise: &mut Noise) -> Vec<Layout> {
    let window = spec.subject(0, Kind::Double).ok().and_then(|subject| subject.window());
    let over = window.unwrap_or(4).clamp(1, 64) as usize + 2;
    let mut all = Vec::new();
    for meta in [0, META] {
        all.push(Layout::plain(meta, 1, &[0]));
        all.push(Layout::plain(meta, 2, &[1, 0, 2]));
        all.push(Layout::plain(meta, 2, &[over, 1, 1, over]));
        all.push(Layout::written(meta, &["t.t ..t", "ttd .tt", "t t"]));
    }
    all
}

pub(super) fn output(spec: &Spec, layout: &Layout, judge: &mut Judge) -> Result<()> {
    for kind in KINDS {
        let subject = spec.subject(layout.meta_tokens, kind)?;
        follow(&subject, spec.seed, layout, |call, size, y, _| {
            let (got, expected) = ((y.kind(), y.size()), (kind, vec![size[0], size[1], subject.width()]));
            if got != expected {
                judge.refuse(format!("y of call {call}"), format!("{got:?} instead of {expected:?}"));
            }
            Ok(())
        })?;
    }
    Ok(())
}

pub(super) fn state(spec: &Spec, layout: &Layout, judge: &mut Judge) -> Result<()> {
    for kind in KINDS {
        let subject = spec.subject(layout.meta_tokens, kind)?;
        let mut text = 0;
        let uniform = !layout.turns.iter().flatten().any(|row| tokens(row) != row.len());
        let packed = layout.has(crate::conformance::layout::Cell::First);
        follow(&subject, spec.seed, layout, |call, size, _, state| {
            // Padding may stand in a window's place; a window never grows beyond its size all the same.
            text += size[1];
            let exact = uniform && !packed;
            for plan in &subject.parts[0].plan.states {
                check_tensor(plan, &subject, state, (call, size[0], text, exact), judge);
            }
            for (name, _) in state.layers[0][0].iter() {
                if !subject.parts[0].plan.states.iter().any(|plan| plan.name == name) {
                    judge.refuse(format!("state {name}"), format!("after call {call}; no plan lists it"));
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// One tensor of the state after `text` tokens for each of `batch` rows.
fn check_tensor(
    plan: &StatePlan,
    subject: &Subject,
    state: &ModelState,
    (call, batch, text, exact): (usize, i64, i64, bool),
    judge: &mut Judge,
) {
    let what = format!("state {}", plan.name);
    let Some(tensor) = state.layers[0][0].find(&plan.name) else {
        judge.refuse(what, format!("is gone after call {call}"));
        return;
    };
    let (kind, expected) = (tensor.kind(), plan.kind.under(subject.kind));
    if kind != expected {
        judge.refuse(
            what,
            format!("is {kind:?} after call {call} of a {:?} model instead of {expected:?}", subject.kind),
        );
        return;
    }
    let entries = plan.growth.entries(subject.meta_tokens, text);
    let (got, rows) = (tensor.size(), tensor.size().first().copied().unwrap_or_default());
    let mut planned = plan.size(rows, entries);
    if let (false, Some(dimension), false) = (exact, plan.growing, plan.growth == Growth::Prefix)
        && got.get(dimension).is_some_and(|&length| length <= plan.growth.most(subject.meta_tokens, text))
    {
        planned[dimension] = got[dimension];
    }
    if got != planned || (rows != 1 && rows != batch) {
        let message = format!("is {got:?} after call {call} with {text} tokens a row instead of {planned:?}");
        judge.refuse(what, message);
        return;
    }
    let elements = plan.elements(subject.meta_tokens, text) * rows;
    if exact && tensor.numel() as i64 != elements {
        judge.refuse(
            what,
            format!("has {} elements after call {call}, {elements} are planned", tensor.numel()),
        );
    }
}

/// Runs a layout and shows each call: its index, batch and time, its output, the state after it. The state after the
/// meta tokens comes first, as call 0 of no tokens.
fn follow(
    subject: &Subject,
    seed: u64,
    layout: &Layout,
    mut see: impl FnMut(usize, [i64; 2], &tch::Tensor, &ModelState) -> Result<()>,
) -> Result<()> {
    let streams = subject.streams(layout.batch(), layout.longest(), seed)?;
    let initial = subject.initial(&streams)?;
    let nothing = tch::Tensor::f_zeros([1, 0, subject.width()], (subject.kind, tch::Device::Cpu))?;
    see(0, [1, 0], &nothing, &initial)?;
    let mut run = Run::new(subject, &streams, &initial, layout.batch(), 0);
    let padded = layout.has(crate::conformance::layout::Cell::Padding);
    let packed = layout.has(crate::conformance::layout::Cell::First);
    for (index, turn) in layout.turns.iter().enumerate() {
        let operands = run.operands(turn, padded, packed)?;
        let pass = run.call(&operands)?;
        see(index + 1, operands.size, &pass.y, &pass.state)?;
        run.step(turn, padded, packed)?;
    }
    Ok(())
}
