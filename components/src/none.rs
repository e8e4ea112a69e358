//! `none` for every slot of the model: a stub that adds nothing, so that no recipe needs a special case.
//!
//! A layer leaves a `none` mixer or channel mixer out of its plan altogether; the others pass their input on.

use hymba_plus::prelude::*;

/// Nothing.
#[component_config]
pub struct NoMixer {}

/// Nothing: the channel mixer is left out with its norm.
#[component_config]
pub struct NoChannelMixer {}

/// The input as it is.
#[component_config]
pub struct NoNorm {}

/// Queries and keys as they are: no positions.
#[component_config]
pub struct NoPosition {}

/// A single branch as it is.
#[component_config]
pub struct NoFusion {}

/// The hidden vectors as they are.
#[component_config]
pub struct NoHead {}

register!(sequence_mixer "none" => NoMixer);
register!(channel_mixer "none" => NoChannelMixer);
register!(norm "none" => NoNorm);
register!(position "none" => NoPosition);
register!(fusion "none" => NoFusion);
register!(head "none" => NoHead);

conformance!(sequence_mixer "none": {});
conformance!(channel_mixer "none": {});
conformance!(norm "none": {});
conformance!(position "none": {});
conformance!(fusion "none": {});
conformance!(head "none": {});

impl SequenceMixer for NoMixer {
    fn plan(&self, plan: &mut ModulePlan) -> Result<(), Finding> {
        plan.input("x", plan.input_width);
        Ok(())
    }

    fn forward(&self, _parts: &Parts, x: &Inputs, state: &State, _call: &Call<'_>) -> Result<MixerOutput> {
        Ok((x.get("x")?.f_zeros_like()?, state.share()).into())
    }
}

impl ChannelMixer for NoChannelMixer {
    fn plan(&self, _plan: &mut ModulePlan) -> Result<(), Finding> {
        Ok(())
    }

    fn forward(&self, _parts: &Parts, x: &Tensor, _call: &Call<'_>) -> Result<Tensor> {
        Ok(x.f_zeros_like()?)
    }
}

impl Norm for NoNorm {
    fn plan(&self, _plan: &mut ModulePlan) -> Result<(), Finding> {
        Ok(())
    }

    fn forward(&self, _parts: &Parts, x: &Tensor) -> Result<Tensor> {
        Ok(x.shallow_clone())
    }
}

impl Position for NoPosition {
    fn plan(&self, _plan: &mut ModulePlan) -> Result<(), Finding> {
        Ok(())
    }

    fn forward(&self, _parts: &Parts, x: &Tensor, _positions: &Tensor) -> Result<Tensor> {
        Ok(x.shallow_clone())
    }
}

impl Fusion for NoFusion {
    fn plan(&self, plan: &mut ModulePlan) -> Result<(), Finding> {
        if plan.inputs.len() > 1 {
            let message = format!("the layer has {} branches and no fusion", plan.inputs.len());
            let mut finding = plan.finding("", message, "`none` is for a single branch");
            finding.help = Some("name a fusion: mean, learned_beta or concat".to_owned());
            return Err(finding);
        }
        Ok(())
    }

    fn forward(&self, _parts: &Parts, branches: &[Tensor], _call: &Call<'_>) -> Result<Tensor> {
        branches.first().map(Tensor::shallow_clone).ok_or_else(|| Error::other("no branch to pass on"))
    }
}

impl Head for NoHead {
    fn plan(&self, _plan: &mut ModulePlan) -> Result<(), Finding> {
        Ok(())
    }

    fn forward(&self, _parts: &Parts, hidden: &Tensor, _call: HeadCall<'_>) -> Result<Tensor> {
        Ok(hidden.shallow_clone())
    }
}
