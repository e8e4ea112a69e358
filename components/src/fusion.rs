//! Fusions: how the branches of a layer become one.

use hymba_plus::prelude::*;
use kernels::rms_norm_sum::rms_norm_sum;

/// The mean of the branches, each normed first: Hymba's `(norm(attention) + norm(ssm)) / 2` (Dong et al. 2024, eq. 3;
/// the halving is in the released code).
#[component_config]
pub struct Mean {
    /// Norm of each branch, over all its channels.
    pub norm: Component<norm>,
}

/// A sum of the branches, each normed and weighted by a learned vector: `sum_i beta_i * norm(branch_i)`.
#[component_config]
pub struct LearnedBeta {
    /// Norm of each branch, over all its channels.
    pub norm: Component<norm>,
    /// Starting value of every weight.
    #[default(0.5)]
    pub init: f64,
}

/// The branches side by side, each normed first.
#[component_config]
pub struct Concat {
    /// Norm of each branch, over all its channels.
    pub norm: Component<norm>,
}

register!(fusion "mean" => Mean);
register!(fusion "learned_beta" => LearnedBeta);
register!(fusion "concat" => Concat);

/// Name of the norm of branch `i`.
fn norm_name(i: usize) -> String {
    format!("norm_{i}")
}

fn plan_norms(plan: &mut ModulePlan, norm: &Component<norm>) -> Vec<i64> {
    let widths: Vec<i64> = plan.inputs.iter().map(|slice| slice.rows).collect();
    for (i, &width) in widths.iter().enumerate() {
        plan.norm(&norm_name(i), norm, width);
    }
    widths
}

/// The one width of all branches, or a finding.
fn equal_widths(plan: &ModulePlan, widths: &[i64]) -> Result<i64, Finding> {
    let first = widths.first().copied().unwrap_or_default();
    if widths.iter().all(|&width| width == first) {
        return Ok(first);
    }
    let message = format!("the branches are {widths:?} channels wide");
    let mut finding = plan.finding("", message, "branches that are added have one width");
    finding.help = Some("change a mixer's width, use `out_projection: per_branch`, or `concat`".to_owned());
    Err(finding)
}

fn normed(parts: &Parts, branches: &[Tensor], call: &Call<'_>) -> Result<Vec<Tensor>> {
    let each = branches.iter().enumerate().map(|(i, branch)| {
        let y = parts.norm(&norm_name(i))?.forward(branch)?;
        call.tap(|| format!("{}.{}", parts.plan.name, norm_name(i)), &y);
        Ok(y)
    });
    each.collect()
}

/// The sum of the normed branches in one pass, where their norms are root-mean-square norms of one `eps`; `weigh` changes
/// the weight of a branch's norm.
#[allow(clippy::float_cmp)] // one configuration, read twice
fn joined(
    parts: &Parts,
    branches: &[Tensor],
    call: &Call<'_>,
    weigh: impl Fn(usize, Tensor) -> Result<Tensor>,
) -> Result<Option<Tensor>> {
    let (mut weights, mut common) = (Vec::with_capacity(branches.len()), None);
    for i in 0..branches.len() {
        let Some((weight, eps)) = parts.norm(&norm_name(i))?.root_mean_square()? else { return Ok(None) };
        if *common.get_or_insert(eps) != eps || branches[i].kind() != branches[0].kind() {
            return Ok(None);
        }
        weights.push(weigh(i, weight)?);
    }
    let Some(eps) = common else { return Ok(None) };
    if call.observers.taps.is_some() {
        // Only to be looked at.
        normed(parts, branches, call)?;
    }
    let (branches, weights): (Vec<_>, Vec<_>) = (branches.iter().collect(), weights.iter().collect());
    Ok(Some(rms_norm_sum(&branches, &weights, eps)?))
}

fn sum(tensors: impl IntoIterator<Item = Tensor>) -> Result<Tensor> {
    let mut total: Option<Tensor> = None;
    for tensor in tensors {
        total = Some(match total {
            Some(total) => total + tensor,
            None => tensor,
        });
    }
    total.ok_or_else(|| Error::other("no branch to fuse"))
}

impl Fusion for Mean {
    fn plan(&self, plan: &mut ModulePlan) -> Result<(), Finding> {
        let widths = plan_norms(plan, &self.norm);
        plan.output(equal_widths(plan, &widths)?);
        Ok(())
    }

    fn forward(&self, parts: &Parts, branches: &[Tensor], call: &Call<'_>) -> Result<Tensor> {
        let count = branches.len() as f64;
        if let Some(y) = joined(parts, branches, call, |_, weight| Ok(weight.f_div_scalar(count)?))? {
            return Ok(y);
        }
        Ok(sum(normed(parts, branches, call)?)? / count)
    }
}

impl Fusion for LearnedBeta {
    fn plan(&self, plan: &mut ModulePlan) -> Result<(), Finding> {
        let widths = plan_norms(plan, &self.norm);
        let width = equal_widths(plan, &widths)?;
        for i in 0..widths.len() {
            let init = Init::Constant { value: self.init };
            plan.parameter(&format!("beta_{i}"), &[width], init).without_weight_decay();
        }
        plan.output(width);
        Ok(())
    }

    fn forward(&self, parts: &Parts, branches: &[Tensor], call: &Call<'_>) -> Result<Tensor> {
        let beta = |i: usize, weight: Tensor| Ok(weight * parts.parameter(&format!("beta_{i}"))?);
        if let Some(y) = joined(parts, branches, call, beta)? {
            return Ok(y);
        }
        let normed = normed(parts, branches, call)?;
        let weighted = normed.iter().enumerate().map(|(i, y)| Ok(y * parts.parameter(&format!("beta_{i}"))?));
        sum(weighted.collect::<Result<Vec<_>>>()?)
    }
}

impl Fusion for Concat {
    fn plan(&self, plan: &mut ModulePlan) -> Result<(), Finding> {
        let widths = plan_norms(plan, &self.norm);
        plan.output(widths.iter().sum());
        Ok(())
    }

    fn forward(&self, parts: &Parts, branches: &[Tensor], call: &Call<'_>) -> Result<Tensor> {
        Ok(Tensor::f_cat(&normed(parts, branches, call)?, -1)?)
    }
}
