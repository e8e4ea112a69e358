//! Gradients are slopes, and lower precision is near the higher one.

use std::collections::BTreeSet;

use tch::{Kind, Tensor};
use torch_bridge::{
    Result,
    autograd::{GradOptions, grad},
    guards::NoGrad,
};

use super::{META, long, sharing};
use crate::{
    conformance::{
        harness::{Spec, Streams, Subject},
        judge::{Judge, META_TOKENS, gradients, relative_rms, rms},
        layout::Layout,
        noise::{Noise, noise},
        run::{Run, outputs},
    },
    state::{ModelState, State},
};

/// Relative error of a slope that a small step measures.
const SLOPE: f64 = 1e-6;
/// The step, both ways, along a direction of elements of size 1.
const STEP: f64 = 1e-5;
/// Relative root mean square error of fp32 and bf16 against fp64 on the same (rounded) inputs and parameters.
const PRECISION: [(Kind, f64); 2] = [(Kind::Float, 1e-5), (Kind::BFloat16, 2e-2)];

/// Calls on from the initial state, and on from a state in the middle.
pub(super) fn slopes(spec: &Spec, _noise: &mut Noise) -> Vec<Layout> {
    let long = long(spec);
    let mut all = Vec::new();
    for meta in [0, META] {
        all.push(Layout::plain(meta, 1, &[2]));
        all.push(Layout::plain(meta, 1, &[2, 1]));
        all.push(Layout::plain(meta, 2, &[long, 3]));
        all.push(Layout::written(meta, &["tt tt", "tdt. .ttt", "t t"]));
    }
    all
}

pub(super) fn gradient(spec: &Spec, layout: &Layout, judge: &mut Judge) -> Result<()> {
    let subject = spec.subject(layout.meta_tokens, Kind::Double)?;
    let streams = subject.streams(layout.batch(), layout.longest(), spec.seed)?;
    // With several calls the state after the first is a leaf; with one the meta tokens come before.
    let start = match layout.turns.split_first() {
        Some((first, rest)) if !rest.is_empty() => {
            let _guard = NoGrad::new();
            let initial = subject.initial(&streams)?;
            let mut run = Run::new(&subject, &streams, &initial, layout.batch(), 0);
            let first = Layout { meta_tokens: layout.meta_tokens, turns: vec![first.clone()] };
            run.layout(&first)?;
            let read = (0..layout.batch()).map(|row| first.tokens(row)).collect();
            let rest = Layout { meta_tokens: layout.meta_tokens, turns: rest.to_vec() };
            Some(Start { state: leaves_of(run.state())?, read, rest })
        }
        _ => None,
    };
    let problem = Problem { subject: &subject, streams: &streams, layout, start };
    let (names, leaves) = problem.leaves();
    let loss = problem.loss()?;
    let slopes: Vec<Tensor> = if loss.requires_grad() {
        let options = GradOptions { allow_unused: true, ..GradOptions::default() };
        let found = grad(&[loss], None, &leaves, options)?;
        let zero = |leaf: &Tensor| leaf.detach().f_zeros_like();
        found
            .into_iter()
            .zip(&leaves)
            .map(|(g, leaf)| Ok(g.map_or_else(|| zero(leaf), Ok)?))
            .collect::<Result<_>>()?
    } else {
        leaves.iter().map(|leaf| Ok(leaf.detach().f_zeros_like()?)).collect::<Result<_>>()?
    };
    let norm = |tensor: &Tensor| -> Result<f64> {
        Ok(rms(std::slice::from_ref(tensor))? * (tensor.numel() as f64).sqrt())
    };
    let largest = slopes.iter().map(norm).collect::<Result<Vec<_>>>()?.into_iter().fold(0.0, f64::max);
    let _guard = NoGrad::new();
    for ((name, leaf), slope) in
        names.iter().zip(&leaves).zip(&slopes).filter(|((_, leaf), _)| leaf.numel() > 0)
    {
        for which in 0..2 {
            let direction = noise(spec.seed, &format!("direction {which} of {name}"), &leaf.size())?;
            let expected = (slope * &direction).f_sum(Kind::Double)?.f_double_value(&[])?;
            let (before, mut inside) = (leaf.f_detach()?.copy(), leaf.shallow_clone());
            let mut moved = |by: f64| -> Result<f64> {
                inside.f_copy_(&(&before + &direction * by))?;
                Ok(problem.loss()?.f_double_value(&[])?)
            };
            let mut slope_by =
                |step: f64| -> Result<f64> { Ok((moved(step)? - moved(-step)?) / (2.0 * step)) };
            // Two steps together are exact to the fourth order (Richardson), which norms of small vectors need.
            let measured = (4.0 * slope_by(STEP / 2.0)? - slope_by(STEP)?) / 3.0;
            inside.f_copy_(&before)?;
            let scale = norm(slope)?.max(measured.abs()).max(largest * 1e-4);
            let error = if scale > 0.0 { (measured - expected).abs() / scale } else { 0.0 };
            let detail = format!("a small step measures {measured:.6e}, the gradient says {expected:.6e}");
            judge.measured(&format!("gradient of {name}"), error, SLOPE, detail);
        }
    }
    Ok(())
}

/// Where a check of gradients starts when it is not the initial state.
struct Start {
    state: ModelState,
    read: Vec<usize>,
    rest: Layout,
}

/// A loss of text, meta tokens, parameters and state.
struct Problem<'a> {
    subject: &'a Subject,
    streams: &'a Streams,
    layout: &'a Layout,
    start: Option<Start>,
}

impl Problem<'_> {
    fn leaves(&self) -> (Vec<String>, Vec<Tensor>) {
        let mut all = Vec::new();
        for (what, tensors) in [
            ("", &self.streams.text),
            ("meta token ", &self.streams.meta),
            ("parameter ", &self.subject.leaves),
        ] {
            all.extend(tensors.iter().map(|(key, x)| (format!("{what}{key}"), x.shallow_clone())));
        }
        if let Some(start) = &self.start {
            let tensors = start.state.layers.iter().flatten().flat_map(State::iter);
            let floats = tensors.filter(|(_, x)| x.requires_grad());
            all.extend(floats.map(|(name, x)| (format!("state {name}"), x.shallow_clone())));
        }
        all.into_iter().unzip()
    }

    /// A random linear function of the outputs and of the state after them.
    fn loss(&self) -> Result<Tensor> {
        let initial = self.subject.initial(self.streams)?;
        let batch = self.layout.batch();
        let mut run = match &self.start {
            Some(start) => {
                let (state, read) = (start.state.share(), start.read.clone());
                Run::resume(self.subject, self.streams, &initial, state, read)
            }
            None => Run::new(self.subject, self.streams, &initial, batch, 0),
        };
        run.layout(self.start.as_ref().map_or(self.layout, |start| &start.rest))?;
        let mut loss = Tensor::f_zeros([1], (Kind::Double, tch::Device::Cpu))?;
        let mut add = |name: String, x: &Tensor| -> Result<()> {
            let weight = noise(self.streams.seed, &name, &x.size())?;
            loss = &loss + (x * weight).f_sum(Kind::Double)?;
            Ok(())
        };
        for (row, y) in run.outputs()?.iter().enumerate() {
            add(format!("loss of row {row}"), y)?;
        }
        for (name, x) in run.state().layers.iter().flatten().flat_map(State::iter) {
            if x.kind() == Kind::Double {
                add(format!("loss of state {name}"), x)?;
            }
        }
        Ok(loss.f_squeeze()?)
    }
}

/// A state whose floating tensors are leaves.
fn leaves_of(state: &ModelState) -> Result<ModelState> {
    let leaf = |x: &Tensor| -> Result<Tensor> {
        if x.kind() != Kind::Double {
            return Ok(x.shallow_clone());
        }
        Ok(x.f_detach()?.copy().f_set_requires_grad(true)?)
    };
    let layers = state.layers.iter().map(|layer| layer.iter().map(|state| state.map(leaf)).collect());
    let layers = layers.collect::<Result<_>>()?;
    let next_position = state.next_position.shallow_clone();
    Ok(ModelState { layers, next_position, uniform_position: state.uniform_position })
}

/// Long and short calls.
pub(super) fn precisions(spec: &Spec, _noise: &mut Noise) -> Vec<Layout> {
    let long = long(spec);
    let mut all = Vec::new();
    for meta in [0, META] {
        all.push(Layout::plain(meta, 2, &[long]));
        all.push(Layout::plain(meta, 2, &vec![1; long]));
        all.push(Layout::plain(meta, 1, &[64, 1, 64]));
    }
    all
}

pub(super) fn precision(spec: &Spec, layout: &Layout, judge: &mut Judge) -> Result<()> {
    let _guard = NoGrad::new();
    let run = |kind: Kind| -> Result<Tensor> {
        let subject = spec.subject(layout.meta_tokens, kind)?;
        let streams = subject.streams(layout.batch(), layout.longest(), spec.seed)?;
        let initial = subject.initial(&streams)?;
        Ok(Tensor::f_cat(&outputs(&subject, &streams, &initial, layout)?, 0)?)
    };
    let exact = run(Kind::Double)?;
    for (kind, tolerance) in PRECISION {
        let error = relative_rms(&run(kind)?, &exact)?;
        let detail = format!("relative root mean square error of {kind:?} against fp64");
        judge.measured(&format!("y in {kind:?}"), error, tolerance, detail);
    }
    Ok(())
}

/// Rows long enough for everything to matter.
pub(super) fn parts(spec: &Spec, _noise: &mut Noise) -> Vec<Layout> {
    vec![Layout::plain(META, 2, &[long(spec)])]
}

pub(super) fn parameters(spec: &Spec, layout: &Layout, judge: &mut Judge) -> Result<()> {
    if layout.longest() < long(spec) {
        return Ok(()); // in a short row something may well stand idle
    }
    let mut idle: Option<BTreeSet<String>> = None;
    for meta in [0, META] {
        let alone = spec.subject(meta, Kind::Double)?;
        let mut here = idle_in(&alone, spec, layout, judge)?;
        if alone.parts[0].plan.kv_shape.is_some() {
            let both = sharing::producer_and_consumer(spec, meta, Kind::Double)?;
            here.extend(idle_in(&both, spec, layout, judge)?);
        }
        idle = Some(idle.map_or(here.clone(), |before| &before & &here));
    }
    for name in idle.unwrap_or_default() {
        judge.refuse(name, "takes no part: its gradient is zero everywhere");
    }
    Ok(())
}

/// Parameters and input slices without a gradient.
fn idle_in(subject: &Subject, spec: &Spec, layout: &Layout, judge: &mut Judge) -> Result<BTreeSet<String>> {
    check_names(subject, judge);
    let streams = subject.streams(layout.batch(), layout.longest(), spec.seed)?;
    let initial = subject.initial(&streams)?;
    let rows = outputs(subject, &streams, &initial, layout)?;
    let slopes = gradients(subject, &streams, &rows)?;
    let mut idle = BTreeSet::new();
    for (name, slope) in slopes.into_iter().filter(|(_, slope)| slope.numel() > 0) {
        let size = rms(&[slope])?;
        if !size.is_finite() {
            judge.refuse(format!("gradient of {name}"), "is not finite");
        // A query of a meta token is read by no one.
        } else if size == 0.0 && !name.ends_with(META_TOKENS) {
            idle.insert(name);
        }
    }
    Ok(idle)
}

/// Names are unique, and in the module's own name space.
fn check_names(subject: &Subject, judge: &mut Judge) {
    for part in &subject.parts {
        let all = part.plan.all_parameters();
        for (index, parameter) in all.iter().enumerate() {
            if all[..index].iter().any(|other| other.name == parameter.name) {
                judge.refuse(format!("parameter {}", parameter.name), "is planned twice");
            }
        }
        let slices = &part.plan.inputs;
        for (index, slice) in slices.iter().enumerate() {
            if slices[..index].iter().any(|other| other.name == slice.name) {
                judge.refuse(format!("input {}", slice.name), "is planned twice");
            }
        }
    }
}
