//! A layer of the plan in numbers: what the table prints and `--json` gives.

use serde::Serialize;

use super::{
    KvRole, LayerPlan, ModelPlan,
    model::{bytes_per_token, fixed_bytes},
};
use crate::params::ParameterPlan;

/// One layer's numbers at a length.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerSummary {
    /// Index of the layer.
    pub layer: usize,
    /// Names of its mixers, in order.
    pub mixers: Vec<String>,
    /// For each mixer with keys: the text keys a token sees, none when it sees all.
    pub windows: Vec<Option<i64>>,
    /// Part in sharing keys and values.
    pub kv: KvRole,
    /// Kind of the channel mixer.
    pub channel_mixer: Option<String>,
    /// Shape `[rows, columns]` of each matrix of the in-projection and the out-projection, by name inside the layer.
    pub projections: Vec<(String, [i64; 2])>,
    /// Elements of all its parameters.
    pub parameters: u64,
    /// Forward operations per token, the mean over a document of the asked length.
    pub flops_per_token: f64,
    /// Bytes of a sequence's state that do not grow with the text, activations in two bytes.
    pub fixed_state_bytes: u64,
    /// Bytes by which the state grows per text token.
    pub state_bytes_per_token: u64,
    /// Text tokens after which it stops growing, if it does.
    pub state_grows_until: Option<i64>,
}

impl ModelPlan {
    /// Every layer's numbers for documents of `tokens` text tokens.
    pub fn layer_summaries(&self, tokens: i64) -> Vec<LayerSummary> {
        self.layers.iter().map(|layer| self.summary(layer, tokens)).collect()
    }

    fn summary(&self, layer: &LayerPlan, tokens: i64) -> LayerSummary {
        let prefix = format!("layers.{}.", layer.index);
        let matrices = layer.in_projection.iter().chain(&layer.out_projection);
        let projections = matrices.map(|matrix| {
            let name = matrix.name.strip_prefix(&prefix).unwrap_or(&matrix.name).to_owned();
            (name, [matrix.rows, matrix.columns])
        });
        let states = || layer.mixers.iter().flat_map(|mixer| &mixer.module.states);
        LayerSummary {
            layer: layer.index,
            mixers: layer.mixers.iter().map(|mixer| mixer.name.clone()).collect(),
            windows: layer
                .mixers
                .iter()
                .filter_map(|mixer| Some(mixer.module.kv_shape.as_ref()?.window))
                .collect(),
            kv: layer.kv,
            channel_mixer: layer.channel_mixer.as_ref().map(|(component, _)| component.kind.clone()),
            projections: projections.collect(),
            parameters: layer.parameters(0.0).iter().map(ParameterPlan::count).sum(),
            flops_per_token: layer.flops_per_token(self.meta_tokens, tokens),
            fixed_state_bytes: fixed_bytes(states(), self.meta_tokens, tokens),
            state_bytes_per_token: bytes_per_token(states()),
            state_grows_until: states().filter_map(|state| state.growth.limit()).max(),
        }
    }
}
