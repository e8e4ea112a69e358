//! States are values: chosen, saved, used twice, never written.

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use tch::{Kind, Tensor};
use torch_bridge::{
    Error, Result,
    guards::{EnableGrad, NoGrad},
    tensors::{from_bytes, to_bytes},
};

use super::{META, long};
use crate::{
    conformance::{
        harness::{Spec, Subject, Tensors},
        judge::{Judge, gradients},
        layout::{Cell, Layout, chunks, packed, padded},
        noise::Noise,
        run::{Run, outputs},
    },
    state::{ModelState, State},
};

/// Plain, padded and packed calls.
pub(super) fn examples(spec: &Spec, noise: &mut Noise) -> Vec<Layout> {
    let mut all = Vec::new();
    for meta in [0, META] {
        all.push(Layout::plain(meta, 1, &[1, 1]));
        all.push(Layout::plain(meta, 2, &[3, 0, 2]));
        let calls = chunks(noise, long(spec));
        all.push(padded(noise, meta, 2, &calls));
        let layout = Layout::plain(meta, 2, &chunks(noise, long(spec)));
        all.push(packed(noise, layout, 5));
    }
    all
}

/// Batches whose rows are chosen half-way.
pub(super) fn selections(spec: &Spec, noise: &mut Noise) -> Vec<Layout> {
    let mut all = Vec::new();
    for meta in [0, META] {
        all.push(Layout::plain(meta, 2, &[1]));
        all.push(Layout::plain(meta, 2, &[1, 1]));
        all.push(Layout::plain(meta, 3, &[long(spec), 4]));
        let calls = chunks(noise, long(spec));
        all.push(padded(noise, meta, 3, &calls));
        // The longest row is left out.
        let (longest, short) = ("t".repeat(long(spec)), "t".to_owned() + &".".repeat(long(spec) - 1));
        all.push(Layout::written(meta, &[&format!("{short} {longest} {short}"), "tt tt tt"]));
    }
    all
}

pub(super) fn selection(spec: &Spec, layout: &Layout, judge: &mut Judge) -> Result<()> {
    let subject = spec.subject(layout.meta_tokens, Kind::Double)?;
    let batch = layout.batch();
    let streams = subject.streams(batch, layout.longest(), spec.seed)?;
    let initial = subject.initial(&streams)?;
    let (before, after) = halves(layout);
    let mut run = Run::new(&subject, &streams, &initial, batch, 0);
    run.layout(&before)?;

    // The last row first, the first row twice, what is between left out.
    let rows = vec![batch - 1, 0, 0];
    let index = Tensor::f_from_slice(&rows.iter().map(|&row| row as i64).collect::<Vec<_>>())?;
    let chosen = streams.rows(&rows)?;
    let read = rows.iter().map(|&row| before.tokens(row)).collect();
    let state = run.state().select(&index, batch as i64)?;
    let mut beams = Run::resume(&subject, &chosen, &initial, state, read);
    beams.layout(&after.rows(&rows))?;
    let expected = outputs(&subject, &chosen, &initial, &layout.rows(&rows))?;
    let rest = |row: usize, y: &Tensor| -> Result<Tensor> {
        let start = before.tokens(rows[row]) as i64;
        Ok(y.f_narrow(0, start, y.size()[0] - start)?)
    };
    let expected = expected.iter().enumerate().map(|(row, y)| rest(row, y)).collect::<Result<Vec<_>>>()?;
    judge.rows_and_gradients(&subject, &streams, &beams.outputs()?, &expected)?;

    // The state that was chosen from goes on as if nothing had been.
    run.layout(&after)?;
    judge.rows("y of the old state", &run.outputs()?, &outputs(&subject, &streams, &initial, layout)?)
}

/// The first half of the calls and the rest.
fn halves(layout: &Layout) -> (Layout, Layout) {
    let mut before = layout.clone();
    let after = Layout { turns: before.turns.split_off(layout.turns.len() / 2), ..layout.clone() };
    (before, after)
}

pub(super) fn values(spec: &Spec, layout: &Layout, judge: &mut Judge) -> Result<()> {
    for kind in [Kind::Double, Kind::Float] {
        let subject = spec.subject(layout.meta_tokens, kind)?;
        let streams = subject.streams(layout.batch(), layout.longest(), spec.seed)?;
        // A call could write in place only where no gradient forbids it.
        let _guard = NoGrad::new();
        let watched = |what: &str, tensors: &Tensors| -> Result<Vec<(String, Tensor, Tensor)>> {
            let copy = |(key, x): (&String, &Tensor)| {
                Ok((format!("{what} {key}"), x.shallow_clone(), x.f_detach()?.copy()))
            };
            tensors.iter().map(copy).collect()
        };
        let mut always = watched("parameter", &subject.leaves)?;
        always.extend(watched("buffer", &subject.buffers)?);
        always.extend(watched("meta input", &streams.meta)?);
        let empty = subject.empty()?;
        always.extend(watched("the empty state's", &named(&empty))?);
        let initial = subject.initial(&streams)?;
        always.extend(watched("the initial state's", &named(&initial))?);
        let mut run = Run::new(&subject, &streams, &initial, layout.batch(), 0);
        let (padded, packed) = (layout.has(Cell::Padding), layout.has(Cell::First));
        for (index, turn) in layout.turns.iter().enumerate() {
            let operands = run.operands(turn, padded, packed)?;
            let mut before = watched("the old state's", &named(run.state()))?;
            before.extend(watched("input", &operands.x)?);
            run.call(&operands)?;
            {
                let _guard = EnableGrad::new();
                run.call(&operands)?;
            }
            for (what, now, before) in before.iter().chain(&always) {
                judge.same(&format!("{what} after call {}", index + 1), &now.f_detach()?, before)?;
            }
            run.step(turn, padded, packed)?;
        }
    }
    Ok(())
}

/// The tensors of a state by name.
fn named(state: &ModelState) -> Tensors {
    let mut all = Tensors::new();
    for (layer, states) in state.layers.iter().enumerate() {
        for (name, tensor) in states.iter().flat_map(State::iter) {
            let key = if state.layers.len() == 1 { name.to_owned() } else { format!("{layer}.{name}") };
            all.insert(key, tensor.shallow_clone());
        }
    }
    all
}

pub(super) fn determinism(spec: &Spec, layout: &Layout, judge: &mut Judge) -> Result<()> {
    for kind in [Kind::Double, Kind::Float, Kind::BFloat16] {
        let subject = spec.subject(layout.meta_tokens, kind)?;
        let streams = subject.streams(layout.batch(), layout.longest(), spec.seed)?;
        let once = || -> Result<Outcome> {
            let initial = subject.initial(&streams)?;
            let mut run = Run::new(&subject, &streams, &initial, layout.batch(), 0);
            run.layout(layout)?;
            let rows = run.outputs()?;
            let gradients = gradients(&subject, &streams, &rows)?;
            Ok(Outcome { rows, state: named(run.state()), gradients })
        };
        let (first, second) = (once()?, once()?);
        for (row, (again, y)) in second.rows.iter().zip(&first.rows).enumerate() {
            judge.same(&format!("y of row {row}, the second time"), again, y)?;
        }
        for (name, tensor) in &first.state {
            judge.same(&format!("state {name}, the second time"), &second.state[name], tensor)?;
        }
        for ((name, again), (_, slope)) in second.gradients.iter().zip(&first.gradients) {
            judge.same(&format!("gradient of {name}, the second time"), again, slope)?;
        }
    }
    Ok(())
}

/// All that a run gives.
struct Outcome {
    rows: Vec<Tensor>,
    state: Tensors,
    gradients: Vec<(String, Tensor)>,
}

pub(super) fn save_and_load(spec: &Spec, layout: &Layout, judge: &mut Judge) -> Result<()> {
    let _guard = NoGrad::new();
    for kind in [Kind::Float, Kind::BFloat16] {
        let subject = spec.subject(layout.meta_tokens, kind)?;
        let streams = subject.streams(layout.batch(), layout.longest(), spec.seed)?;
        let initial = subject.initial(&streams)?;
        let (before, after) = halves(layout);
        let batch = layout.batch();
        let mut run = Run::new(&subject, &streams, &initial, batch, 0);
        run.layout(&before)?;

        // A module of other parameters, which are then overwritten by what was saved.
        let fresh = Spec { seed: spec.seed + 1, ..spec.clone() }.subject(layout.meta_tokens, kind)?;
        let saved = Saved::of(&subject, run.state(), &initial)?;
        let (state, initial_loaded) = saved.load(&fresh, [run.state(), &initial])?;
        let read = (0..batch).map(|row| before.tokens(row)).collect();
        let mut loaded = Run::resume(&fresh, &streams, &initial_loaded, state, read);
        loaded.layout(&after)?;
        let mut plain = Run::resume(
            &subject,
            &streams,
            &initial,
            run.state().share(),
            (0..batch).map(|row| before.tokens(row)).collect(),
        );
        plain.layout(&after)?;
        for (row, (got, expected)) in loaded.outputs()?.iter().zip(&plain.outputs()?).enumerate() {
            judge.same(&format!("y of row {row} after loading"), got, expected)?;
        }
        let (got, expected) = (named(loaded.state()), named(plain.state()));
        for (name, tensor) in &expected {
            let Some(mine) = got.get(name) else {
                judge.refuse(format!("state {name}"), "is gone after loading");
                continue;
            };
            judge.same(&format!("state {name} after loading"), mine, tensor)?;
        }
    }
    Ok(())
}

/// Parameters and states in the bytes of a safetensors file.
struct Saved(Vec<u8>);

impl Saved {
    fn of(subject: &Subject, state: &ModelState, initial: &ModelState) -> Result<Self> {
        let mut tensors = Tensors::new();
        for (key, x) in subject.leaves.iter().chain(&subject.buffers) {
            tensors.insert(format!("parameter.{key}"), x.f_detach()?);
        }
        for (what, state) in [("state", state), ("initial", initial)] {
            tensors.extend(named(state).into_iter().map(|(key, x)| (format!("{what}.{key}"), x)));
            tensors.insert(format!("{what}/next_position"), state.next_position.shallow_clone());
        }
        let mut rows = Vec::new();
        for (name, tensor) in &tensors {
            let dtype = dtype(tensor.kind()).ok_or_else(|| {
                Error::other(format!("{name} is {:?}, which a file cannot hold", tensor.kind()))
            })?;
            let shape: Vec<usize> = tensor.size().iter().map(|&size| size as usize).collect();
            rows.push((name.clone(), dtype, shape, to_bytes(&tensor.f_contiguous()?)?));
        }
        let views = rows.iter().map(|(name, dtype, shape, bytes)| {
            let view = TensorView::new(*dtype, shape.clone(), bytes);
            view.map(|view| (name.clone(), view)).map_err(Error::other)
        });
        let views = views.collect::<Result<Vec<_>>>()?;
        safetensors::serialize(views, None).map(Self).map_err(Error::other)
    }

    /// Overwrites the parameters of a subject and returns the states, shaped like the given ones.
    fn load(&self, subject: &Subject, like: [&ModelState; 2]) -> Result<(ModelState, ModelState)> {
        let file = SafeTensors::deserialize(&self.0).map_err(Error::other)?;
        let read = |name: &str| -> Result<Tensor> {
            let view = file.tensor(name).map_err(Error::other)?;
            let shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
            let kind = KINDS.iter().find(|(_, dtype)| *dtype == view.dtype()).map(|(kind, _)| *kind);
            from_bytes(view.data(), &shape, kind.ok_or_else(|| Error::other("unknown type"))?)
        };
        for (key, x) in subject.leaves.iter().chain(&subject.buffers) {
            x.shallow_clone().f_copy_(&read(&format!("parameter.{key}"))?)?;
        }
        let state = |what: &str, like: &ModelState| -> Result<ModelState> {
            let layer = |(index, states): (usize, &Vec<State>)| -> Result<Vec<State>> {
                let one = |of: &State| -> Result<State> {
                    let mut loaded = State::empty();
                    for (name, _) in of.iter() {
                        let key =
                            if like.layers.len() == 1 { name.to_owned() } else { format!("{index}.{name}") };
                        loaded = loaded.with(name, read(&format!("{what}.{key}"))?);
                    }
                    Ok(loaded)
                };
                states.iter().map(one).collect()
            };
            Ok(ModelState {
                layers: like.layers.iter().enumerate().map(layer).collect::<Result<_>>()?,
                next_position: read(&format!("{what}/next_position"))?,
                uniform_position: like.uniform_position,
            })
        };
        Ok((state("state", like[0])?, state("initial", like[1])?))
    }
}

const KINDS: [(Kind, Dtype); 9] = [
    (Kind::Double, Dtype::F64),
    (Kind::Float, Dtype::F32),
    (Kind::Half, Dtype::F16),
    (Kind::BFloat16, Dtype::BF16),
    (Kind::Int64, Dtype::I64),
    (Kind::Int, Dtype::I32),
    (Kind::Int8, Dtype::I8),
    (Kind::Uint8, Dtype::U8),
    (Kind::Bool, Dtype::BOOL),
];

fn dtype(kind: Kind) -> Option<Dtype> {
    KINDS.iter().find(|(known, _)| *known == kind).map(|(_, dtype)| *dtype)
}
