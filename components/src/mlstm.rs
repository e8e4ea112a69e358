//! The mLSTM layer of xLSTM-7B: a matrix memory per head (Beck et al. 2025, arXiv 2503.13427).

use hymba_plus::prelude::*;
use kernels::mlstm::{DEFAULT_CHUNK_SIZE, Mlstm as Operands, MlstmState, mlstm};

use crate::norm::per_head;

/// The mLSTM layer of xLSTM-7B (Beck et al. 2025, arXiv 2503.13427): `C_t = sigmoid(f) C_{t-1} + exp(i) k v^T`,
/// `n_t = sigmoid(f) n_{t-1} + exp(i) k`, `y = sigmoid(o) * norm(q C / max(|q n|, 1))`.
///
/// The layer of xLSTM-7B: everything but the gates' biases comes from the in-projection. The paper of 2024 has a
/// convolution and a skip connection around the same memory: `mlstm_block`.
#[component_config]
pub struct Mlstm {
    /// Heads, each with a memory of its own.
    #[schemars(range(min = 1, max = 65_536))]
    pub n_heads: i64,
    /// Width of a query and a key, per head; left out, half of `v_head_dim`.
    #[schemars(range(min = 1, max = 65_536))]
    pub head_dim: Option<i64>,
    /// Width of a value, per head; left out, `d_model / n_heads`.
    #[schemars(range(min = 1, max = 65_536))]
    pub v_head_dim: Option<i64>,
    /// Squashes the pre-activations of input and forget gate smoothly into `(-cap, cap)`: `cap * tanh(x / cap)`; null
    /// leaves them as they are.
    #[default(Some(15.0))]
    #[schemars(range(min = 1.0))]
    pub gate_soft_cap: Option<f64>,
    /// Norm of the heads' outputs, before the output gate.
    #[default(Component::new("group_norm", [("eps".to_owned(), 1e-6.into())].into_iter().collect()))]
    pub norm: Component<norm>,
    /// Added to the denominator `max(|q n|, 1)`, relative to the running maximum of the gates.
    #[default(1e-6)]
    #[schemars(range(min = 0.0))]
    pub eps: f64,
    /// Tokens that are computed at once in training and prefill. Changes speed and memory, not the result.
    #[default(DEFAULT_CHUNK_SIZE)]
    #[schemars(range(min = 1, max = 65_536))]
    pub chunk_size: i64,
}

register!(sequence_mixer "mlstm" => Mlstm);
conformance!(sequence_mixer "mlstm": { n_heads: 2, chunk_size: 4 });
conformance!(sequence_mixer "mlstm": { n_heads: 3, head_dim: 3, v_head_dim: 5, gate_soft_cap: null, norm: rms_norm });

/// Heads, width of a query, width of a value.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) n_heads: i64,
    pub(crate) d_qk: i64,
    pub(crate) d_v: i64,
}

impl Memory {
    /// Plans the state, the arithmetic and what a backward pass keeps.
    pub(crate) fn plan(self, plan: &mut ModulePlan, chunk_size: i64) {
        let Self { n_heads, d_qk, d_v } = self;
        plan.state("c", &[n_heads, d_qk, d_v], StateKind::Float);
        plan.state("n", &[n_heads, d_qk], StateKind::Float);
        plan.state("m", &[n_heads], StateKind::Float);
        // The memory is written and read once per token; of the scores in a chunk the causal half counts.
        plan.flops_per_token(n_heads * (4 * d_qk * (d_v + 1) + chunk_size * (d_qk + d_v)));
        plan.saved_per_token += n_heads * (3 * chunk_size + 4 * d_qk + 3 * d_v);
        plan.saved_per_token += n_heads * d_qk * (d_v + 1) / chunk_size;
    }

    /// `q, k [batch, time, n_heads * d_qk]`, `v [batch, time, n_heads * d_v]` and pre-activations of the gates `[batch,
    /// time, n_heads]` to the heads' outputs `[batch, time, n_heads * d_v]` and the state after the call.
    pub(crate) fn run(
        self,
        [q, k, v, input_gate, forget_gate]: [&Tensor; 5],
        state: &State,
        call: &Call<'_>,
        eps: f64,
        chunk_size: i64,
    ) -> Result<(Tensor, State)> {
        let span = call.span;
        let heads = |x: &Tensor, width: i64| -> Result<Tensor> {
            Ok(x.f_reshape([span.batch, span.time, self.n_heads, width])?)
        };
        let reset_state = span.resets.is_some().then(|| of(call.initial)).transpose()?;
        let (h, after) = mlstm(&Operands {
            q: &heads(q, self.d_qk)?,
            k: &heads(k, self.d_qk)?,
            v: &heads(v, self.d_v)?,
            input_gate,
            forget_gate,
            eps,
            initial_state: &of(state)?,
            reset_state: reset_state.as_ref(),
            resets: span.resets.as_ref(),
            valid: span.valid.as_ref(),
            chunk_size,
        })?;
        let h = h.f_reshape([span.batch, span.time, self.n_heads * self.d_v])?;
        Ok((h, state.with("c", after.c).with("n", after.n).with("m", after.m)))
    }
}

fn of(state: &State) -> Result<MlstmState> {
    let [c, n, m] = [state.get("c")?, state.get("n")?, state.get("m")?].map(Tensor::shallow_clone);
    Ok(MlstmState { c, n, m })
}

impl Mlstm {
    fn memory(&self, d_model: i64) -> Memory {
        let d_v = self.v_head_dim.unwrap_or(d_model / self.n_heads);
        Memory { n_heads: self.n_heads, d_qk: self.head_dim.unwrap_or(d_v / 2), d_v }
    }

    /// A gate before its activation, in at least 32 bits: `cap(x + bias)`.
    fn gate(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let wide = if x.kind() == Kind::Double { x.shallow_clone() } else { x.f_to_kind(Kind::Float)? };
        let gate = wide + bias;
        Ok(match self.gate_soft_cap {
            Some(cap) => (gate / cap).f_tanh()? * cap,
            None => gate,
        })
    }
}

impl SequenceMixer for Mlstm {
    fn plan(&self, plan: &mut ModulePlan) -> Result<(), Finding> {
        let d_model = plan.context.d_model;
        if self.v_head_dim.is_none() {
            plan.divide(d_model, self.n_heads, "n_heads", "`v_head_dim` is not given and d_model / n_heads")?;
        }
        let memory = self.memory(d_model);
        if self.head_dim.is_none() {
            plan.divide(memory.d_v, 2, "head_dim", "`head_dim` is not given and v_head_dim / 2")?;
        }
        let Memory { n_heads, d_qk, d_v } = memory;
        plan.input("q", n_heads * d_qk);
        plan.input("k", n_heads * d_qk);
        plan.input("v", n_heads * d_v);
        plan.input("o", n_heads * d_v);
        plan.input_with("i", n_heads, Init::ZEROS);
        plan.input_with("f", n_heads, Init::ZEROS);
        // Gates know nothing of the token at first: little is written at first, and heads forget at different rates.
        let input_bias = Init::Constant { value: -10.0 };
        let forget_bias = Init::Ramp { start: 3.0, end: 6.0, exponent: 1.0 };
        for (name, init) in [("i_bias", input_bias), ("f_bias", forget_bias)] {
            plan.parameter(name, &[n_heads], init).without_weight_decay().keep_float();
        }
        memory.plan(plan, self.chunk_size);
        plan.norm("norm", &per_head(&self.norm, n_heads), n_heads * d_v);
        plan.flops_per_token(2 * n_heads * d_v);
        plan.output(n_heads * d_v);
        Ok(())
    }

    fn forward(&self, parts: &Parts, x: &Inputs, state: &State, call: &Call<'_>) -> Result<MixerOutput> {
        let input_gate = self.gate(x.get("i")?, parts.parameter("i_bias")?)?;
        let forget_gate = self.gate(x.get("f")?, parts.parameter("f_bias")?)?;
        let operands = [x.get("q")?, x.get("k")?, x.get("v")?, &input_gate, &forget_gate];
        let memory = self.memory(parts.plan.context.d_model);
        let (h, state) = memory.run(operands, state, call, self.eps, self.chunk_size)?;
        let y = parts.norm("norm")?.forward(&h)? * x.get("o")?.f_sigmoid()?;
        Ok((y, state).into())
    }
}
