//! NVIDIA GPUs, their driver, and whether libtorch's CUDA half opens.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::table::Row;
use crate::setup::layout::Layout;
use crate::setup::loader;

/// The oldest driver that runs CUDA 13.
const OLDEST_DRIVER: u32 = 580;

/// The version of NVIDIA's kernel driver, when it is loaded.
pub fn driver() -> Option<String> {
    parse_driver(&fs::read_to_string("/proc/driver/nvidia/version").ok()?)
}

/// The driver, the cards, and libtorch_cuda.
pub fn rows(root: &Path) -> Vec<Row> {
    let driver = driver();
    let mut rows = vec![match &driver {
        None => Row::notice("NVIDIA driver", "not loaded", "without a GPU everything runs on the CPU"),
        Some(version) if major(version) < Some(OLDEST_DRIVER) => {
            let hint = format!("CUDA 13 needs driver {OLDEST_DRIVER} or newer");
            Row::notice("NVIDIA driver", version.clone(), hint)
        }
        Some(version) => Row::good("NVIDIA driver", version.clone()),
    }];
    rows.extend(cards().into_iter().map(|card| Row::good("card", card)));
    rows.push(libtorch_cuda(root, driver.is_some()));
    rows
}

fn cards() -> Vec<String> {
    let query = ["--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader"];
    let output =
        Command::new("nvidia-smi").args(query).output().ok().filter(|output| output.status.success());
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
}

fn libtorch_cuda(root: &Path, gpu: bool) -> Row {
    let name = "libtorch_cuda";
    let library = Layout::of(root).torch().join("lib/libtorch_cuda.so");
    if !library.exists() {
        let hint = "cargo xtask setup --cuda";
        return if gpu {
            Row::notice(name, "not there", hint)
        } else {
            Row::good(name, "not there, not needed")
        };
    }
    match loader::opens(&library) {
        Ok(()) => Row::good(name, "there, and opens"),
        Err(reason) => {
            Row::notice(name, format!("there, but does not open: {reason}"), "cargo xtask setup --cuda")
        }
    }
}

/// `580.95.05` of the driver's version file.
fn parse_driver(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.contains("Kernel Module"))?;
    let is_version = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    line.split_whitespace().find(is_version).map(str::to_owned)
}

fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_says_its_version() {
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\nGCC version: 12";
        assert_eq!(parse_driver(open).as_deref(), Some("580.95.05"));
        let closed =
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue Jun  6 22:20:39 UTC 2023";
        assert_eq!(parse_driver(closed).as_deref(), Some("535.54.03"));
        assert_eq!(major("535.54.03"), Some(535));
    }
}
