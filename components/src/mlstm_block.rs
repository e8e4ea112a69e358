//! The mLSTM block of the xLSTM paper: a matrix memory between an up- and a down-projection, behind a short convolution
//! (Beck et al. 2024, arXiv 2405.04517, figure 11).

use hymba_plus::prelude::*;
use kernels::mlstm::DEFAULT_CHUNK_SIZE;

use crate::{block_diagonal, convolution::convolved, mlstm::Memory, norm::per_head};

/// The mLSTM block (Beck et al. 2024, arXiv 2405.04517): `u = silu(conv(x))`, `q, k = W_q u, W_k u` and `v = W_v x`
/// by block-diagonal matrices, gates from `[q, k, v]`, `y = (norm(q C / max(|q n|, 1)) + skip * u) * silu(z)`.
///
/// `x` and `z` come from the in-projection, which is the block's up-projection. The layer of xLSTM-7B is `mlstm`.
#[component_config]
pub struct MlstmBlock {
    /// Heads, each with a memory of its own.
    #[schemars(range(min = 1, max = 65_536))]
    pub n_heads: i64,
    /// Inner width as a multiple of `d_model`; `d_inner` overrules it.
    #[default(2.0)]
    #[schemars(range(min = 0.0, max = 1024.0))]
    pub expand: f64,
    /// Inner width, `n_heads` times the width of a query, a key and a value.
    #[schemars(range(min = 1, max = 16_777_216))]
    pub d_inner: Option<i64>,
    /// Width of the convolution.
    #[default(4)]
    #[schemars(range(min = 1, max = 8))]
    pub d_conv: i64,
    /// Whether the convolution has a bias.
    #[default(true)]
    pub conv_bias: bool,
    /// Channels that a block of the maps to queries, keys and values joins.
    #[default(4)]
    #[schemars(range(min = 1, max = 65_536))]
    pub qkv_block_size: i64,
    /// Norm of the heads' outputs.
    #[default(Component::of("group_norm"))]
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

register!(sequence_mixer "mlstm_block" => MlstmBlock);
conformance!(sequence_mixer "mlstm_block": { n_heads: 2, chunk_size: 4 });
conformance!(sequence_mixer "mlstm_block": { n_heads: 3, d_inner: 18, d_conv: 1, conv_bias: false, qkv_block_size: 3 });

impl MlstmBlock {
    fn inner(&self, d_model: i64) -> i64 {
        self.d_inner.unwrap_or((self.expand * d_model as f64).round() as i64)
    }

    fn memory(&self, d_model: i64) -> Memory {
        let width = self.inner(d_model) / self.n_heads;
        Memory { n_heads: self.n_heads, d_qk: width, d_v: width }
    }
}

impl SequenceMixer for MlstmBlock {
    fn plan(&self, plan: &mut ModulePlan) -> Result<(), Finding> {
        let d_model = plan.context.d_model;
        let inner = self.inner(d_model);
        if inner < 1 {
            let message = format!("expand {} times d_model {d_model} leaves no inner channel", self.expand);
            return Err(plan.finding("expand", message, "`expand * d_model` is at least 1"));
        }
        plan.divide(inner, self.n_heads, "n_heads", "width of a head, d_inner / n_heads")?;
        let blocks =
            plan.divide(inner, self.qkv_block_size, "qkv_block_size", "blocks, d_inner / qkv_block_size")?;
        plan.input("x", inner);
        plan.input("z", inner);
        let conv_init = Init::Uniform { bound: 1.0 / (self.d_conv as f64).sqrt() };
        plan.parameter("conv.weight", &[inner, self.d_conv], conv_init.clone());
        if self.conv_bias {
            plan.parameter("conv.bias", &[inner], conv_init).without_weight_decay();
        }
        for name in ["q.weight", "k.weight", "v.weight"] {
            block_diagonal::plan(
                plan,
                name,
                blocks,
                self.qkv_block_size,
                (2.0 / (5.0 * d_model as f64)).sqrt(),
            );
        }
        // Gates know nothing of the token at first, and heads forget at different rates.
        let input_bias = Init::Normal { std: 0.1 };
        let forget_bias = Init::Ramp { start: 3.0, end: 6.0, exponent: 1.0 };
        for (name, init) in [("i", input_bias), ("f", forget_bias)] {
            plan.parameter(&format!("{name}.weight"), &[self.n_heads, 3 * inner], Init::ZEROS);
            plan.parameter(&format!("{name}.bias"), &[self.n_heads], init)
                .without_weight_decay()
                .keep_float();
        }
        plan.state("conv_tail", &[self.d_conv - 1, inner], StateKind::Compute);
        self.memory(d_model).plan(plan, self.chunk_size);
        plan.norm("norm", &per_head(&self.norm, self.n_heads), inner);
        plan.parameter("skip", &[inner], Init::ONES).without_weight_decay();
        plan.flops_per_token(2 * self.n_heads * 6 * inner + inner * (2 * self.d_conv + 6));
        plan.saved_per_token += 8 * inner;
        plan.output(inner);
        Ok(())
    }

    fn forward(&self, parts: &Parts, x: &Inputs, state: &State, call: &Call<'_>) -> Result<MixerOutput> {
        let (u, tail) = convolved(parts, x.get("x")?, state, call)?;
        let map = |name, from| block_diagonal::forward(from, parts.parameter(name)?);
        let (q, k, v) = (map("q.weight", &u)?, map("k.weight", &u)?, map("v.weight", x.get("x")?)?);
        let together = Tensor::f_cat(&[&q, &k, &v], -1)?;
        let gate = |name: &str| -> Result<Tensor> {
            let gate = together.f_linear(parts.parameter(&format!("{name}.weight"))?, None::<&Tensor>)?;
            Ok(gate + parts.parameter(&format!("{name}.bias"))?)
        };
        let operands = [&q, &k, &v, &gate("i")?, &gate("f")?];
        let memory = self.memory(parts.plan.context.d_model);
        let (h, state) = memory.run(operands, state, call, self.eps, self.chunk_size)?;
        let h = parts.norm("norm")?.forward(&h)? + parts.parameter("skip")? * u;
        Ok((h * x.get("z")?.f_silu()?, state.with("conv_tail", tail)).into())
    }
}
