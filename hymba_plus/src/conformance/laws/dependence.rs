//! What an output depends on, by gradient: nothing later, nothing beyond the window, something at all.

use tch::{Kind, Tensor};
use torch_bridge::{
    Result,
    autograd::{GradOptions, grad},
};

use super::{META, long};
use crate::conformance::{
    harness::{Spec, Streams, Subject, Tensors},
    judge::{Judge, rms},
    layout::Layout,
    noise::{Noise, noise},
    run::outputs,
};

/// One row, one call.
pub(super) fn examples(spec: &Spec, _noise: &mut Noise) -> Vec<Layout> {
    let mut all = Vec::new();
    for meta in [0, META] {
        for time in [1, 2, 5, long(spec)] {
            all.push(Layout::plain(meta, 1, &[time]));
        }
    }
    all
}

/// One row that is longer than the window.
pub(super) fn windows(spec: &Spec, _noise: &mut Noise) -> Vec<Layout> {
    let longer = long(spec);
    [0, META].map(|meta| Layout::plain(meta, 1, &[longer])).to_vec()
}

/// Gradients of a random linear function of one output by every token before and after it.
struct Dependence {
    text: Tensors,
    meta: Tensors,
}

impl Dependence {
    fn of(streams: &Streams, y: &Tensor, token: i64) -> Result<Self> {
        let one = y.f_select(0, token)?;
        let names = || streams.text.iter().chain(&streams.meta);
        let leaves: Vec<&Tensor> = names().map(|(_, leaf)| leaf).collect();
        if !one.requires_grad() {
            let zeros = |of: &Tensors| -> Result<Tensors> {
                of.iter().map(|(key, x)| Ok((key.clone(), x.detach().f_zeros_like()?))).collect()
            };
            return Ok(Self { text: zeros(&streams.text)?, meta: zeros(&streams.meta)? });
        }
        let weight = noise(streams.seed, "dependence", &one.size())?;
        let options = GradOptions { retain_graph: true, allow_unused: true, ..GradOptions::default() };
        let found = grad(&[one], Some(&[Some(weight)]), &leaves, options)?;
        let whole = found.into_iter().zip(names()).map(|(gradient, (key, leaf))| {
            let gradient = match gradient {
                Some(gradient) => gradient,
                None => leaf.detach().f_zeros_like()?,
            };
            Ok((key.clone(), gradient))
        });
        let mut whole = whole.collect::<Result<Vec<_>>>()?;
        let meta = whole.split_off(streams.text.len()).into_iter().collect();
        Ok(Self { text: whole.into_iter().collect(), meta })
    }

    /// Whether some slice matters at this token.
    fn on(tensors: &Tensors, token: i64) -> Result<bool> {
        for gradient in tensors.values() {
            if rms(&[gradient.f_select(1, token)?])? > 0.0 {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn one_call(spec: &Spec, layout: &Layout) -> Result<(Subject, Streams, Tensor)> {
    let subject = spec.subject(layout.meta_tokens, Kind::Double)?;
    let streams = subject.streams(1, layout.longest(), spec.seed)?;
    let initial = subject.initial(&streams)?;
    let y = outputs(&subject, &streams, &initial, &layout.row(0))?.remove(0);
    Ok((subject, streams, y))
}

pub(super) fn causality(spec: &Spec, layout: &Layout, judge: &mut Judge) -> Result<()> {
    let (subject, streams, y) = one_call(spec, layout)?;
    let time = layout.tokens(0) as i64;
    for t in 0..time {
        let dependence = Dependence::of(&streams, &y, t)?;
        for (key, gradient) in &dependence.text {
            let later = gradient.f_narrow(1, t + 1, time - t - 1)?;
            let scale = Some(rms(std::slice::from_ref(gradient))?);
            let tensor = format!("gradient of y[{t}] by {key}");
            judge.near(&tensor, &later, &later.f_zeros_like()?, scale, 0.0, Some((0, t as usize + 1)))?;
        }
        if !(0..=t).try_fold(false, |found, s| {
            Ok::<_, torch_bridge::Error>(found || Dependence::on(&dependence.text, s)?)
        })? {
            judge.refuse(format!("gradient of y[{t}]"), "it depends on no token up to its own");
        }
    }
    // What has no gradient can still leak: other tokens after the cut, the same outputs before it.
    for cut in [time / 2, time - 1] {
        let mut changed = Tensors::new();
        for (key, x) in &streams.text {
            let other = noise(spec.seed, &format!("after the cut.{key}"), &x.size())?;
            let (kept, rest) = (x.f_narrow(1, 0, cut)?, other.f_narrow(1, cut, time - cut)?);
            changed.insert(key.clone(), Tensor::f_cat(&[kept, rest], 1)?);
        }
        let meta = streams.meta.iter().map(|(key, x)| (key.clone(), x.shallow_clone())).collect();
        let changed = Streams { text: changed, meta, seed: streams.seed };
        let initial = subject.initial(&changed)?;
        let other = outputs(&subject, &changed, &initial, &layout.row(0))?.remove(0);
        let before = |y: &Tensor| y.f_narrow(0, 0, cut);
        judge.rows(&format!("y with other tokens from {cut} on"), &[before(&other)?], &[before(&y)?])?;
    }
    Ok(())
}

pub(super) fn window(spec: &Spec, layout: &Layout, judge: &mut Judge) -> Result<()> {
    let (subject, streams, y) = one_call(spec, layout)?;
    let Some(window) = subject.window() else { return Ok(()) };
    for t in 0..layout.tokens(0) as i64 {
        let dependence = Dependence::of(&streams, &y, t)?;
        let beyond = (t + 1 - window).max(0);
        for (key, gradient) in &dependence.text {
            let hidden = gradient.f_narrow(1, 0, beyond)?;
            let scale = Some(rms(std::slice::from_ref(gradient))?);
            let tensor = format!("gradient of y[{t}] by {key}, beyond the window of {window}");
            judge.near(&tensor, &hidden, &hidden.f_zeros_like()?, scale, 0.0, Some((0, 0)))?;
        }
        if beyond > 0 && !Dependence::on(&dependence.text, beyond)? {
            let detail = format!("does not depend on token {beyond}, the first of its window of {window}");
            judge.refuse(format!("y[{t}]"), detail);
        }
        for meta in 0..layout.meta_tokens {
            if !Dependence::on(&dependence.meta, meta)? {
                judge.refuse(format!("y[{t}]"), format!("does not depend on meta token {meta}"));
            }
        }
    }
    Ok(())
}
