//! The mLSTM over 2,048 steps with gates at the ends of their range: chunks against steps.
//!
//! `cargo test -p kernels --test mlstm_extreme -- --nocapture` prints the distances.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Noise, distance, gradcheck, outcome};
use kernels::mlstm::{DEFAULT_CHUNK_SIZE, Mlstm, MlstmState, mlstm, reference};
use tch::{Kind, Tensor, no_grad};
use torch_bridge::Result;

type Operation = fn(&Mlstm<'_>) -> Result<(Tensor, MlstmState)>;

const STEPS: i64 = 2048;
const NAMES: [&str; 8] = ["q", "k", "v", "input_gate", "forget_gate", "c", "n", "m"];

/// How pre-activations of gates are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Gates {
    /// Uniform in +-60, then `15 tanh(x / 15)`: most of them are stuck at an end.
    Capped,
    /// Uniform in +-30.
    Uncapped,
}

/// Operands in the order of `NAMES`. Keys, queries and the normaliser are `positive`, or of both signs: then `h`, a
/// quotient by `|q n|`, has poles, and comes as near to one as chance has it.
fn operands(
    gates: Gates,
    [batch, time, heads, d_qk, d_v]: [i64; 5],
    positive: bool,
) -> Vec<(&'static str, Tensor)> {
    let mut noise = Noise(20_240_507 + time as u64);
    let gate = |noise: &mut Noise| match gates {
        Gates::Capped => (noise.tensor(&[batch, time, heads]) * (60.0 / 1.7 / 15.0)).tanh() * 15.0,
        Gates::Uncapped => noise.tensor(&[batch, time, heads]) * (30.0 / 1.7),
    };
    let mut tensors = [
        noise.tensor(&[batch, time, heads, d_qk]),
        noise.tensor(&[batch, time, heads, d_qk]),
        noise.tensor(&[batch, time, heads, d_v]),
        gate(&mut noise),
        gate(&mut noise),
        noise.tensor(&[batch, heads, d_qk, d_v]),
        noise.tensor(&[batch, heads, d_qk]),
        noise.tensor(&[batch, heads]),
    ];
    if positive {
        for index in [0, 1, 6] {
            tensors[index] = tensors[index].abs() + 0.1;
        }
    }
    let round = |x: &Tensor| x.to_kind(Kind::Float).to_kind(Kind::Double);
    NAMES.into_iter().zip(tensors.iter().map(round)).collect()
}

fn run(tensors: &[Tensor], operation: Operation) -> Result<(Tensor, Tensor)> {
    let [c, n, m] = [5, 6, 7].map(|i: usize| tensors[i].shallow_clone());
    let (h, state) = operation(&Mlstm {
        q: &tensors[0],
        k: &tensors[1],
        v: &tensors[2],
        input_gate: &tensors[3],
        forget_gate: &tensors[4],
        eps: 1e-6,
        initial_state: &MlstmState { c, n, m },
        reset_state: None,
        resets: None,
        valid: None,
        chunk_size: DEFAULT_CHUNK_SIZE,
    })?;
    Ok((h, Tensor::cat(&[state.c, state.n, state.m].map(|x| x.flatten(1, -1)), 1)))
}

/// Steps and chunks, each in f64 and in f32.
fn four<T>(of: impl Fn(Kind, Operation) -> T) -> [T; 4] {
    let [steps, chunks] = [reference as Operation, mlstm];
    [of(Kind::Double, steps), of(Kind::Double, chunks), of(Kind::Float, steps), of(Kind::Float, chunks)]
}

/// Prints and checks chunks against steps, in f64 and f32.
fn compare(what: &str, [steps, chunks, steps_f32, chunks_f32]: [&Tensor; 4]) {
    let (double, single) = (distance(chunks, steps), distance(chunks_f32, steps_f32));
    let (theirs, ours) = (distance(steps_f32, steps), distance(chunks_f32, steps));
    println!("{what:<44}{double:>10.1e}{single:>10.1e}{theirs:>12.1e}{ours:>12.1e}");
    assert!(double <= 1e-10, "{what} in f64: {double:e}");
    assert!(single <= 1e-4 && ours <= 1e-4, "{what} in f32: {single:e}, {ours:e}");
}

#[test]
fn chunks_equal_steps() {
    println!("relative RMS, {STEPS} steps");
    println!("{:<44}{:>20}{:>24}", "", "chunks to steps", "f32 to f64 steps");
    println!("{:<44}{:>10}{:>10}{:>12}{:>12}", "", "f64", "f32", "steps", "chunks");
    for gates in [Gates::Capped, Gates::Uncapped] {
        let operands = operands(gates, [1, STEPS, 2, 16, 24], true);
        let all = four(|kind, operation| {
            let outcome = outcome(&operands, kind, &|tensors| run(tensors, operation));
            outcome.assert_finite(&format!("{gates:?} gates"));
            outcome
        });
        for (i, name) in all[0].names.iter().enumerate() {
            compare(&format!("{gates:?} gates: {name}"), all.each_ref().map(|outcome| &outcome.values[i]));
        }
    }
}

/// As [`chunks_equal_steps`] with poles, where the few largest outputs would be all that a norm over all tokens sees:
/// each token's outputs are measured by their own size.
#[test]
fn chunks_equal_steps_near_poles() {
    for gates in [Gates::Capped, Gates::Uncapped] {
        let operands = operands(gates, [2, STEPS, 2, 16, 24], false);
        let all = four(|kind, operation| {
            let tensors: Vec<Tensor> = operands.iter().map(|(_, x)| x.to_kind(kind)).collect();
            let (h, state) = no_grad(|| run(&tensors, operation)).unwrap();
            [h, state].map(|x| x.to_kind(Kind::Double))
        });
        let size = all[0][0].square().mean_dim(-1, true, None).sqrt();
        let [h, state] =
            [all.each_ref().map(|[h, _]| h / &size), all.each_ref().map(|[_, state]| state.shallow_clone())];
        compare(&format!("{gates:?} gates, poles: y, token by token"), h.each_ref());
        compare(&format!("{gates:?} gates, poles: state"), state.each_ref());
    }
}

#[test]
fn gradients_are_exact() {
    for gates in [Gates::Capped, Gates::Uncapped] {
        let mut operands = operands(gates, [1, 9, 1, 2, 3], true);
        // The first token keeps a large initial state: its gradient must not drown in the rounding of differences.
        let _ = operands[4].1.get(0).get(0).fill_(15.0);
        let _ = operands[7].1.fill_(15.0);
        for operation in [reference as Operation, mlstm] {
            gradcheck(&operands, &|tensors| run(tensors, operation));
        }
    }
}
