//! Mixture of experts without a capacity (Shazeer et al. 2017; gated experts as in Mixtral, arXiv 2401.04088).
//!
//! A router gives every token `top_k` experts with weights ([`route`]). The pairs of token and choice are sorted by
//! expert, so each expert multiplies one block of rows, and each token gathers what its experts gave ([`experts`]). No
//! token is dropped, and no sum depends on the order in which threads finish.

mod balance;
mod grouping;
mod products;
mod reference;
mod routing;

use tch::{Kind, Tensor};
use torch_bridge::{Result, guards::Autocast};

pub use balance::{balance_loss, counts};
pub use routing::{Router, Routing, Scores, route};

use crate::operands::{Operands, compute_kind};
use crate::policy;
use grouping::Groups;

/// The operands of [`experts`].
///
/// `x`, `gate`, `up` and `down` are of one floating type, or, under autocast, become so; `weights` may be f32 all the
/// same. All live on one device.
#[derive(Clone, Copy, Debug)]
pub struct Experts<'a> {
    /// Tokens, `[tokens, d_model]`.
    pub x: &'a Tensor,
    /// Experts of each token, `[tokens, top_k]` int64, all of a row different and below `n_experts`.
    pub choice: &'a Tensor,
    /// What each choice weighs, `[tokens, top_k]`.
    pub weights: &'a Tensor,
    /// Matrices of the gates, `[n_experts, d_hidden, d_model]`.
    pub gate: &'a Tensor,
    /// Matrices upwards, `[n_experts, d_hidden, d_model]`.
    pub up: &'a Tensor,
    /// Matrices downwards, `[n_experts, d_model, d_hidden]`.
    pub down: &'a Tensor,
}

/// `y_t = sum_k weights_tk down_e (silu(gate_e x_t) * up_e x_t)` with `e = choice_tk`, `[tokens, d_model]` in `x`'s type.
///
/// Differentiable in everything but `choice`. An expert that nobody chose costs nothing and has a gradient of zero.
///
/// # Errors
/// A shape, dtype or device that does not fit.
pub fn experts(args: &Experts<'_>) -> Result<Tensor> {
    check(args)?;
    if !policy::fast() {
        return reference::experts(args);
    }
    if let Some(kind) = lowered(args.x) {
        let lower = |x: &Tensor| x.f_to_kind(kind);
        let (x, gate, up, down) = (lower(args.x)?, lower(args.gate)?, lower(args.up)?, lower(args.down)?);
        let _guard = Autocast::new(args.x.device(), Kind::BFloat16, false);
        let args = Experts { x: &x, gate: &gate, up: &up, down: &down, ..*args };
        return grouped(&args);
    }
    grouped(args)
}

/// The definition that [`experts`] is tested against: every expert on every token, most of it multiplied by zero.
///
/// # Errors
/// As [`experts`].
pub fn reference(args: &Experts<'_>) -> Result<Tensor> {
    check(args)?;
    reference::experts(args)
}

/// The type that autocast asks for, where it is on.
fn lowered(x: &Tensor) -> Option<Kind> {
    Autocast::current(x.device()).filter(|_| x.kind() != Kind::Double)
}

fn grouped(args: &Experts<'_>) -> Result<Tensor> {
    let n_experts = args.gate.size()[0];
    let groups = Groups::new(args.choice, n_experts)?;
    let rows = groups.gather(args.x)?;
    let (gate, up) =
        (products::linear(&rows, args.gate, &groups.ends)?, products::linear(&rows, args.up, &groups.ends)?);
    let given = products::linear(&(gate.f_silu()? * up), args.down, &groups.ends)?;
    let kind = compute_kind(args.x);
    let given = groups.scatter(&given)?.f_to_kind(kind)?;
    let y = (given * args.weights.f_to_kind(kind)?.f_unsqueeze(-1)?).f_sum_dim_intlist(
        [1i64].as_slice(),
        false,
        kind,
    )?;
    Ok(y.f_to_kind(args.x.kind())?)
}

fn check(args: &Experts<'_>) -> Result<()> {
    let ops = Operands::of("experts", args.x);
    let [tokens, d_model] = ops.sizes("x", args.x, "[tokens, d_model]")?;
    let [_, top_k] = ops.sizes("choice", args.choice, "[tokens, top_k]")?;
    let [n_experts, d_hidden, _] = ops.sizes("gate", args.gate, "[n_experts, d_hidden, d_model]")?;
    if !(1..=n_experts).contains(&top_k) {
        let expected = format!("1 to {n_experts} columns, one for each chosen expert,");
        return Err(ops.refusal("choice", &expected, &top_k.to_string()));
    }
    ops.activation("x", args.x, &[tokens, d_model])?;
    ops.indices("choice", args.choice, &[tokens, top_k])?;
    ops.activation("weights", args.weights, &[tokens, top_k])?;
    ops.parameter("gate", args.gate, &[n_experts, d_hidden, d_model])?;
    ops.parameter("up", args.up, &[n_experts, d_hidden, d_model])?;
    ops.parameter("down", args.down, &[n_experts, d_model, d_hidden])?;
    for (name, matrix) in [("gate", args.gate), ("up", args.up), ("down", args.down)] {
        if lowered(args.x).is_none() && matrix.kind() != args.x.kind() {
            return Err(ops.refusal(
                name,
                &format!("{:?} as `x` is", args.x.kind()),
                &format!("{:?}", matrix.kind()),
            ));
        }
    }
    Ok(())
}
