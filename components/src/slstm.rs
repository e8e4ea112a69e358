//! The sLSTM layer of the xLSTM paper: recurrent cells that also read the last outputs of their head (Beck et al. 2024,
//! arXiv 2405.04517, figure 10).

use hymba_plus::prelude::*;
use kernels::slstm::{Slstm as Operands, SlstmState, slstm};

use crate::{block_diagonal, convolution::convolved, norm::per_head};

/// The sLSTM (Beck et al. 2024, arXiv 2405.04517): `c_t = sigmoid(f) c_{t-1} + exp(i) tanh(z)`,
/// `n_t = sigmoid(f) n_{t-1} + exp(i)`, `h_t = sigmoid(o) c_t / n_t`, each gate `W x + R h_{t-1} + b` with matrices
/// that are diagonal over heads; `y = norm(h)`.
///
/// It reads the layer's normed input itself and is as wide as `d_model`; the paper has no out-projection after it
/// (`out_projection: none`). The gated feed-forward network of the paper's block is the layer's channel mixer.
#[component_config]
pub struct Slstm {
    /// Heads; units of one head read each other's last outputs.
    #[schemars(range(min = 1, max = 65_536))]
    pub n_heads: i64,
    /// Width of the convolution in front of input and forget gate; 0 for none.
    #[default(4)]
    #[schemars(range(min = 0, max = 8))]
    pub d_conv: i64,
    /// Whether the convolution has a bias.
    #[default(true)]
    pub conv_bias: bool,
    /// Norm of the heads' outputs.
    #[default(Component::of("group_norm"))]
    pub norm: Component<norm>,
    /// How the biases of the forget gates start.
    #[default(ForgetInit::PowerLaw)]
    pub forget_init: ForgetInit,
}

/// Starts of the forget gates' biases.
#[component_config]
pub enum ForgetInit {
    /// The paper's: from 5 down to -7 over the units of a head, steep at its start in the first layers and at its end
    /// in the last.
    PowerLaw,
    /// From 3 up to 6 over the units of a head.
    Linear,
}

register!(sequence_mixer "slstm" => Slstm);
conformance!(sequence_mixer "slstm": { n_heads: 2 });
conformance!(sequence_mixer "slstm": { n_heads: 4, d_conv: 0, norm: rms_norm, forget_init: linear });

/// Input gate, forget gate, cell input, output gate.
const GATES: [&str; 4] = ["i", "f", "z", "o"];

impl Slstm {
    /// The bias of a forget gate of a layer, over the units of a head.
    fn forget_bias(&self, layer: usize, n_layers: usize) -> Init {
        match self.forget_init {
            ForgetInit::PowerLaw => {
                let depth = if n_layers > 1 { layer as f64 / (n_layers - 1) as f64 } else { 0.0 };
                Init::Ramp { start: 5.0, end: -7.0, exponent: 0.3 + 1.3 * depth }
            }
            ForgetInit::Linear => Init::Ramp { start: 3.0, end: 6.0, exponent: 1.0 },
        }
    }
}

impl SequenceMixer for Slstm {
    fn plan(&self, plan: &mut ModulePlan) -> Result<(), Finding> {
        let d_model = plan.context.d_model;
        let (heads, head_dim) = (
            self.n_heads,
            plan.divide(d_model, self.n_heads, "n_heads", "units of a head, d_model / n_heads")?,
        );
        plan.raw_input("x");
        if self.d_conv > 0 {
            let init = Init::Uniform { bound: 1.0 / (self.d_conv as f64).sqrt() };
            plan.parameter("conv.weight", &[d_model, self.d_conv], init.clone());
            if self.conv_bias {
                plan.parameter("conv.bias", &[d_model], init).without_weight_decay();
            }
            plan.state("conv_tail", &[self.d_conv - 1, d_model], StateKind::Compute);
            plan.flops_per_token(d_model * (2 * self.d_conv + 4));
            plan.saved_per_token += 2 * d_model;
        }
        for gate in GATES {
            let std = (2.0 / (5.0 * d_model as f64)).sqrt();
            block_diagonal::plan(plan, &format!("{gate}.weight"), heads, head_dim, std);
            // Without recurrence at first, so that a layer learns how much of it it wants.
            plan.parameter(&format!("{gate}.recurrent"), &[heads, head_dim, head_dim], Init::ZEROS);
            plan.flops_per_token(2 * d_model * head_dim);
            let bias = match gate {
                "f" => self.forget_bias(plan.context.layer.unwrap_or_default(), plan.context.n_layers),
                _ => Init::ZEROS,
            };
            plan.parameter(&format!("{gate}.bias"), &[heads, head_dim], bias)
                .without_weight_decay()
                .keep_float();
        }
        for part in ["h", "c", "n", "m"] {
            plan.state(part, &[heads, head_dim], StateKind::Float);
        }
        plan.norm("norm", &per_head(&self.norm, heads), d_model);
        plan.flops_per_token(20 * d_model);
        // The gates, twice, and for every token what its cells were.
        plan.saved_per_token += 17 * d_model;
        plan.output(d_model);
        Ok(())
    }

    fn forward(&self, parts: &Parts, x: &Inputs, state: &State, call: &Call<'_>) -> Result<MixerOutput> {
        let (span, x) = (call.span, x.get("x")?);
        let mut after = state.share();
        let mut short = x.shallow_clone();
        if self.d_conv > 0 {
            let (u, tail) = convolved(parts, x, state, call)?;
            short = u;
            after = after.with("conv_tail", tail);
        }
        let (d_model, heads) = (parts.plan.context.d_model, self.n_heads);
        let size = [span.batch, span.time, heads, d_model / heads];
        let gate = |name: &str| -> Result<Tensor> {
            let from = if name == "i" || name == "f" { &short } else { x };
            let y = block_diagonal::forward(from, parts.parameter(&format!("{name}.weight"))?)?;
            Ok(y.f_reshape(size)?)
        };
        let gates = GATES.iter().map(|name| gate(name)).collect::<Result<Vec<_>>>()?;
        let of_all = |part: &str| -> Result<Tensor> {
            let all = GATES.iter().map(|name| parts.parameter(&format!("{name}.{part}")));
            Ok(Tensor::f_stack(&all.collect::<Result<Vec<_>>>()?, 0)?)
        };
        let reset_state = span.resets.is_some().then(|| of(call.initial)).transpose()?;
        let (h, last) = slstm(&Operands {
            gates: &Tensor::f_stack(&gates, 2)?,
            // Apart from the gates: a bias stays in at least 32 bits.
            bias: Some(&of_all("bias")?),
            recurrent: &of_all("recurrent")?,
            initial_state: &of(state)?,
            reset_state: reset_state.as_ref(),
            resets: span.resets.as_ref(),
            valid: span.valid.as_ref(),
        })?;
        let h = h.f_reshape([span.batch, span.time, d_model])?.f_to_kind(x.kind())?;
        let after = after.with("h", last.h).with("c", last.c).with("n", last.n).with("m", last.m);
        Ok((parts.norm("norm")?.forward(&h)?, after).into())
    }
}

fn of(state: &State) -> Result<SlstmState> {
    let [h, c, n, m] = [state.get("h")?, state.get("c")?, state.get("n")?, state.get("m")?];
    let [h, c, n, m] = [h, c, n, m].map(Tensor::shallow_clone);
    Ok(SlstmState { h, c, n, m })
}
