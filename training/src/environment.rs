//! What a run ran on: recorded beside it, and compared where bits depend on it.

use std::{path::Path, process::Command};

use serde::{Deserialize, Serialize};
use tch::Device;

use crate::trainer::{Precision, device_name};

/// What the bits of a result depend on besides the recipe and the data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Execution {
    /// `cpu`, `cuda:0`, ...
    pub device: String,
    /// Threads within an operator: sums are split by them.
    pub threads: usize,
    /// Instruction set of libtorch's CPU kernels.
    pub cpu_capability: String,
    /// Version of libtorch.
    pub libtorch: String,
    /// Version of hymba_plus.
    pub hymba_plus: String,
    /// Precision of the run.
    pub precision: Precision,
    /// Whether only deterministic kernels were allowed.
    pub deterministic: bool,
}

impl Execution {
    /// What this process runs on now.
    ///
    /// # Errors
    /// When libtorch cannot say how many threads it uses.
    pub fn now(device: Device, precision: Precision, deterministic: bool) -> torch_bridge::Result<Self> {
        Ok(Self {
            device: device_name(device),
            threads: torch_bridge::device::threads()?.intra,
            cpu_capability: torch_bridge::device::cpu_capability(),
            libtorch: torch_bridge::device::libtorch_version(),
            hymba_plus: env!("CARGO_PKG_VERSION").to_owned(),
            precision,
            deterministic,
        })
    }

    /// What differs, as `name: was A, is B`.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let fields = |execution: &Self| match serde_json::to_value(execution) {
            Ok(serde_json::Value::Object(fields)) => fields,
            _ => serde_json::Map::new(),
        };
        let (was, is) = (fields(self), fields(now));
        was.iter()
            .filter(|(name, value)| is.get(*name) != Some(value))
            .map(|(name, value)| format!("{name}: was {value}, is {}", is.get(name).unwrap_or_default()))
            .collect()
    }
}

/// Everything about the machine and the program that a reader of the run may want to know.
#[derive(Debug, Clone, Serialize)]
pub struct Environment {
    /// What the bits depend on.
    #[serde(flatten)]
    pub execution: Execution,
    /// When the run was started or continued, in UTC.
    pub time: String,
    /// The machine.
    pub host: String,
    /// Its processor.
    pub cpu: Option<String>,
    /// Logical processors that this process may use.
    pub cpus: usize,
    /// Operating system and architecture.
    pub platform: String,
    /// The command line.
    pub command: Vec<String>,
    /// The commit of the work tree in which the recipe lies, if it lies in one.
    pub git: Option<Git>,
}

/// Where a git work tree stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Git {
    /// The commit.
    pub commit: String,
    /// Whether files differ from it.
    pub dirty: bool,
}

impl Environment {
    /// The environment of this process; `folder` is where the recipe lies.
    pub fn collect(execution: Execution, folder: &Path) -> Self {
        Self {
            execution,
            time: now_utc(),
            host: host(),
            cpu: cpu_model(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            command: std::env::args_os().map(|part| part.to_string_lossy().into_owned()).collect(),
            git: git(folder),
        }
    }
}

/// The time in UTC, to the second.
pub(crate) fn now_utc() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The name of this machine.
pub(crate) fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn cpu_model() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn git(folder: &Path) -> Option<Git> {
    let run = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(folder).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    Some(Git { commit: run(&["rev-parse", "HEAD"])?, dirty: !run(&["status", "--porcelain"])?.is_empty() })
}
