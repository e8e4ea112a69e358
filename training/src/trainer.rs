//! The section `trainer`: what all stages of a run share.

use std::{borrow::Cow, fmt, str::FromStr};

use hymba_plus::{
    component_config, register_section,
    registry::{Component, Section},
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use tch::{Cuda, Device, Kind};
use torch_bridge::guards::Autocast;

use crate::slot::{dataset, tokenizer};

/// Where and how a run computes, and what it writes.
#[component_config]
pub struct TrainerConfig {
    /// `auto` (the first GPU if there is one), `cpu`, `cuda` or `cuda:N`.
    #[default(DeviceChoice::Auto)]
    pub device: DeviceChoice,
    /// `float32`; `bfloat16` (weights and optimizer stay in float32, matrix products run in bfloat16); `float64`.
    #[default(Precision::Float32)]
    pub precision: Precision,
    /// Threads within an operator on the CPU; by default as many as libtorch takes. Results depend on it, bit for bit.
    #[schemars(range(min = 1))]
    pub threads: Option<usize>,
    /// Refuse kernels that give other bits from run to run.
    #[default(true)]
    pub deterministic: bool,
    /// `auto` (slow plain operations replace a GPU kernel that cannot be had, with a warning); `require` (an error
    /// instead); `reference` (plain operations on every device, to see whether a kernel is to blame).
    #[default(KernelPolicy::Auto)]
    pub kernels: KernelPolicy,
    /// Whether steps on a GPU are recorded as CUDA graphs, so that the host does not slow them down: `auto` (where that
    /// can be done, saying so where not); `require` (an error instead); `off`. The results are the same.
    #[default(GraphPolicy::Auto)]
    pub cuda_graph: GraphPolicy,
    /// When checkpoints are written and which are kept.
    #[default(CheckpointConfig { every_steps: 500, keep_last: 2, keep_best: 1 })]
    pub checkpoint: CheckpointConfig,
    /// What is logged.
    #[default(LogConfig { every_steps: 10, tensorboard: true })]
    pub log: LogConfig,
}

/// When checkpoints are written and which are kept.
#[component_config]
pub struct CheckpointConfig {
    /// Steps between two checkpoints; the last step, an interruption and a new best evaluation write one anyway.
    #[schemars(range(min = 1))]
    #[default(500)]
    pub every_steps: u64,
    /// How many of the newest are kept.
    #[schemars(range(min = 1))]
    #[default(2)]
    pub keep_last: usize,
    /// How many of those with the best evaluation are kept besides.
    #[default(1)]
    pub keep_best: usize,
}

/// What is logged.
#[component_config]
pub struct LogConfig {
    /// Steps between two lines.
    #[schemars(range(min = 1))]
    #[default(10)]
    pub every_steps: u64,
    /// Whether TensorBoard files are written.
    #[default(true)]
    pub tensorboard: bool,
}

impl Section for TrainerConfig {
    const KEY: &'static str = "trainer";
}

register_section!(TrainerConfig);

/// The section `tokenizer`: a component of that slot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct TokenizerSection(pub Component<tokenizer>);

impl Section for TokenizerSection {
    const KEY: &'static str = "tokenizer";
}

register_section!(TokenizerSection);

/// The section `data`: a component of the slot `dataset`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct DataSection(pub Component<dataset>);

impl Section for DataSection {
    const KEY: &'static str = "data";
}

register_section!(DataSection);

/// The number format of a run.
#[component_config]
pub enum Precision {
    /// 32-bit floats everywhere.
    Float32,
    /// Autocast: weights and optimizer in float32, matrix products in bfloat16.
    Bfloat16,
    /// 64-bit floats everywhere: slow, for checking.
    Float64,
}

impl Precision {
    /// The type that parameters are kept in.
    pub fn parameter_kind(self) -> Kind {
        match self {
            Self::Float32 | Self::Bfloat16 => Kind::Float,
            Self::Float64 => Kind::Double,
        }
    }

    /// Autocast for a forward pass on this device; a guard that does nothing unless the precision is `bfloat16`. It
    /// must end before the weights change.
    pub fn autocast(self, device: Device) -> Autocast {
        Autocast::new(device, Kind::BFloat16, self == Self::Bfloat16)
    }
}

/// Which implementation an operation takes where it has several.
#[component_config]
pub enum KernelPolicy {
    /// The fastest of the device; the definition, with a warning, in place of a GPU kernel that cannot be had.
    Auto,
    /// As `auto`, but a GPU kernel that cannot be had is an error.
    Require,
    /// The definition, on every device.
    Reference,
}

impl KernelPolicy {
    /// Makes it the policy of the process.
    pub fn apply(self) {
        kernels::policy::set(self.into());
    }
}

impl From<KernelPolicy> for kernels::policy::Policy {
    fn from(policy: KernelPolicy) -> Self {
        match policy {
            KernelPolicy::Auto => Self::Auto,
            KernelPolicy::Require => Self::Require,
            KernelPolicy::Reference => Self::Reference,
        }
    }
}

/// Whether steps are recorded as CUDA graphs.
#[component_config]
pub enum GraphPolicy {
    /// Where that can be done.
    Auto,
    /// Where a step cannot be recorded, the run ends.
    Require,
    /// No.
    Off,
}

/// A device as a recipe names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The first GPU if there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// That GPU.
    Cuda(usize),
}

/// Why a device cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no device cuda:{wanted}: {}; use `cpu` or `auto`{}", there_is(*available), hint(*available, reason.as_deref()))]
pub struct NoDevice {
    wanted: usize,
    available: usize,
    reason: Option<String>,
}

fn there_is(available: usize) -> String {
    match available {
        0 => "no GPU can be used here".to_owned(),
        1 => "there is one GPU (cuda:0)".to_owned(),
        n => format!("there are {n} GPUs (cuda:0 to cuda:{})", n - 1),
    }
}

fn hint(available: usize, reason: Option<&str>) -> String {
    reason.filter(|_| available == 0).map_or(String::new(), |reason| format!(" ({reason})"))
}

impl DeviceChoice {
    /// The device.
    ///
    /// # Errors
    /// When it is a GPU that is not there.
    pub fn resolve(self) -> Result<Device, NoDevice> {
        let available = if Cuda::is_available() { Cuda::device_count().max(0) as usize } else { 0 };
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Auto if available == 0 => Ok(Device::Cpu),
            Self::Auto => Ok(Device::Cuda(0)),
            Self::Cuda(index) if index < available => Ok(Device::Cuda(index)),
            Self::Cuda(wanted) => {
                Err(NoDevice { wanted, available, reason: torch_bridge::cuda::status().reason })
            }
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("cuda:")) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda(0)),
            (_, Some(index)) if index.bytes().all(|byte| byte.is_ascii_digit()) => {
                index.parse().map(Self::Cuda).map_err(|_| format!("`{text}` has no device number"))
            }
            _ => Err(format!("`{text}` is no device: use auto, cpu, cuda or cuda:N")),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> Self {
        choice.to_string()
    }
}

impl JsonSchema for DeviceChoice {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "DeviceChoice".into()
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^(auto|cpu|cuda(:[0-9]+)?)$" })
    }
}

/// A device as recipes and records write it.
pub(crate) fn device_name(device: Device) -> String {
    match device {
        Device::Cpu => "cpu".to_owned(),
        Device::Cuda(index) => format!("cuda:{index}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_read_and_write() {
        for text in ["auto", "cpu", "cuda:0", "cuda:11"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        for text in ["gpu", "cuda:", "cuda:-1", "CPU"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
        assert_eq!(DeviceChoice::Cpu.resolve(), Ok(Device::Cpu));
        let error = DeviceChoice::Cuda(99).resolve().unwrap_err().to_string();
        assert!(error.contains("cuda:99") && error.contains("use `cpu` or `auto`"), "{error}");
    }

    #[test]
    fn an_empty_section_is_all_defaults() {
        let config: TrainerConfig = serde_json::from_str("{}").unwrap();
        assert_eq!((config.checkpoint.every_steps, config.log.every_steps), (500, 10));
        assert!(config.deterministic && config.device == DeviceChoice::Auto);
        assert_eq!(config.kernels, KernelPolicy::Auto);
        assert!(serde_json::from_str::<TrainerConfig>(r#"{"devise": "cpu"}"#).is_err());
        let config: TrainerConfig = serde_json::from_str(r#"{"kernels": "require"}"#).unwrap();
        assert_eq!(kernels::policy::Policy::from(config.kernels), kernels::policy::Policy::Require);
    }
}
