//! `hymba doctor`: what this binary finds on this machine.

use std::process::ExitCode;

use hymba_plus::plan::bytes;

use super::Outcome;
use crate::output;

pub(super) fn run() -> Outcome {
    let cuda = torch_bridge::cuda::status();
    let gpus = if tch::Cuda::is_available() { tch::Cuda::device_count() } else { 0 };
    let opened = match (&cuda.path, &cuda.reason) {
        (Some(path), _) if cuda.opened => format!("opened {}", path.display()),
        (_, Some(reason)) => format!("not opened: {reason}"),
        _ => "not opened".to_owned(),
    };
    let memory = torch_bridge::memory::stats(tch::Device::Cpu)
        .map_or_else(|error| error.to_string(), |memory| bytes(memory.allocated));
    let rows = [
        ("hymba", env!("CARGO_PKG_VERSION").to_owned()),
        ("libtorch", torch_bridge::device::libtorch_version()),
        (
            "processor",
            format!("{}, {} threads", torch_bridge::device::cpu_capability(), tch::get_num_threads()),
        ),
        ("libtorch_cuda", opened),
        ("GPUs", gpus.to_string()),
        ("memory of this process", memory),
        ("components", hymba_plus::registry::Registry::global()?.entries().count().to_string()),
    ];
    for (name, value) in rows {
        output::line(&format!("{name:<24}{value}"));
    }
    Ok(ExitCode::SUCCESS)
}
