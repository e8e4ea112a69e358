//! The operating system, the processor and the tools.

use std::fs;
use std::path::{Path, PathBuf};

use indicatif::{DecimalBytes, HumanBytes};

use super::table::Row;
use crate::failure::Failure;
use crate::setup::{disk, pins, platform, python};
use crate::workspace::{self, first_line};

/// What the C++ half of the tensor binding needs: C++17 as libtorch's headers use it.
const OLDEST_GCC: u32 = 9;
/// Instruction sets that kernels ask for, of the many that a processor lists.
const FEATURES: [&str; 9] =
    ["avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"];

/// The operating system, processor, memory and disk.
pub fn hardware(root: &Path) -> Vec<Row> {
    let os = read("/etc/os-release").and_then(|text| value(&text, "PRETTY_NAME", '='));
    let kernel = read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let os = format!("{}, kernel {}", os.unwrap_or_else(|| std::env::consts::OS.into()), kernel.trim());
    let glibc = platform::glibc().map_or("not found".into(), |(major, minor)| format!("{major}.{minor}"));
    let libc = match platform::check() {
        Ok(()) => Row::good("glibc", glibc),
        Err(Failure::Told { what, help }) => Row::missing("glibc", format!("{glibc}: {what}"), help),
        Err(Failure::Exit(_)) => Row::missing("glibc", glibc, ""),
    };
    vec![Row::good("system", os), libc, processor(), memory(), free_disk(root)]
}

fn processor() -> Row {
    let text = read("/proc/cpuinfo").unwrap_or_default();
    let model = value(&text, "model name", ':').unwrap_or_else(|| std::env::consts::ARCH.into());
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let flags = value(&text, "flags", ':').unwrap_or_default();
    let flags: Vec<&str> = flags.split_whitespace().filter(|flag| FEATURES.contains(flag)).collect();
    let found = format!("{model}, {cores} usable threads, {}", flags.join(" "));
    if flags.contains(&"avx2") {
        Row::good("processor", found)
    } else {
        Row::notice("processor", found, "without AVX2 the CPU kernels fall back to plain code and are slow")
    }
}

fn memory() -> Row {
    let text = read("/proc/meminfo").unwrap_or_default();
    let kib = |name: &str| value(&text, name, ':')?.split(' ').next()?.parse::<u64>().ok();
    match (kib("MemTotal"), kib("MemAvailable")) {
        (Some(total), Some(free)) => {
            let found = format!("{}, {} available", HumanBytes(total * 1024), HumanBytes(free * 1024));
            let too_little = total < 4 * 1024 * 1024;
            let hint = "compiling the tensor binding takes about 2 GiB a job: build with `cargo build -j1`";
            if too_little { Row::notice("memory", found, hint) } else { Row::good("memory", found) }
        }
        _ => Row::notice("memory", "unknown", ""),
    }
}

fn free_disk(root: &Path) -> Row {
    match disk::free(root) {
        Ok(bytes) if bytes < 5_000_000_000 => {
            let hint = "libtorch and a build take about 5 GB, 10 GB with CUDA";
            Row::notice("disk", format!("{} free", DecimalBytes(bytes)), hint)
        }
        Ok(bytes) => Row::good("disk", format!("{} free", DecimalBytes(bytes))),
        Err(_) => Row::notice("disk", "unknown", ""),
    }
}

/// Compilers and what the commands call.
pub fn tools() -> Vec<Row> {
    let c = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let cpp = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    vec![
        rustc(),
        compiler(
            "C compiler",
            &c,
            "install gcc (for example: apt install build-essential): cargo links with it",
        ),
        compiler("C++ compiler", &cpp, "install g++ (for example: apt install build-essential)"),
        python_row(),
        optional(
            "rustfmt",
            workspace_tool("fmt"),
            "rustup component add rustfmt; `cargo xtask lint` uses it",
        ),
        optional(
            "clippy",
            workspace_tool("clippy"),
            "rustup component add clippy; `cargo xtask lint` uses it",
        ),
        optional(
            "cargo-deny",
            workspace_tool("deny"),
            "cargo install cargo-deny --locked; `cargo xtask lint` checks licences and advisories with it",
        ),
        optional(
            "git",
            first_line("git", &["--version"]),
            "recorded beside every checkpoint where it is there",
        ),
    ]
}

fn rustc() -> Row {
    let oldest = env!("CARGO_PKG_RUST_VERSION");
    let program = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    match first_line(program, &["--version"]) {
        Some(found) if numbers(&found) >= numbers(oldest) => {
            Row::good("rustc", format!("{found}, {oldest} or newer is needed"))
        }
        Some(found) => Row::missing("rustc", found, format!("{oldest} or newer is needed: rustup update")),
        None => Row::missing("rustc", "not found", "install Rust with rustup"),
    }
}

fn compiler(name: &'static str, program: &str, hint: &str) -> Row {
    // `CXX="ccache g++"`: the compiler is the last word.
    let words: Vec<&str> = program.split_whitespace().collect();
    let Some((first, rest)) = words.split_first() else { return Row::missing(name, "not found", hint) };
    let ask = |flag: &str| first_line(first, &[rest, &[flag]].concat());
    match ask("--version") {
        None => Row::missing(name, format!("{program} not found"), hint),
        Some(found) => {
            let major = ask("-dumpversion").and_then(|line| line.split('.').next()?.parse::<u32>().ok());
            // clang counts its versions otherwise (and says 4 when asked as gcc); every clang that is around will do.
            match major.filter(|major| !found.contains("clang") && *major < OLDEST_GCC) {
                Some(_) => {
                    Row::missing(name, found, format!("version {OLDEST_GCC} or newer is needed for C++17"))
                }
                None => Row::good(name, found),
            }
        }
    }
}

fn python_row() -> Row {
    match python::Python::find() {
        Ok(python) => {
            let version = first_line(&python.program, &["--version"]).unwrap_or_default();
            Row::good("python3", format!("{version}, pip {}, {}", python.pip, python.program.display()))
        }
        Err(Failure::Told { what, help }) => {
            // Needed once: with libtorch in place it may be gone.
            let what = format!("{what} ({} only)", pins::LIBTORCH_VERSION);
            Row::notice("python3", what, help)
        }
        Err(Failure::Exit(_)) => Row::notice("python3", "unknown", ""),
    }
}

fn workspace_tool(command: &str) -> Option<String> {
    first_line(workspace::cargo().get_program(), &[command, "--version"])
}

fn optional(name: &'static str, found: Option<String>, hint: &str) -> Row {
    match found {
        Some(found) => Row::good(name, found),
        None => Row::notice(name, "not found", hint),
    }
}

fn read(path: impl Into<PathBuf>) -> Option<String> {
    fs::read_to_string(path.into()).ok()
}

/// The value of the first line `name<separator>value`, without quotes.
fn value(text: &str, name: &str, separator: char) -> Option<String> {
    let mut lines = text.lines().filter_map(|line| line.split_once(separator));
    let (_, value) = lines.find(|(key, _)| key.trim() == name)?;
    Some(value.trim().trim_matches('"').to_owned())
}

/// The first version in a text, to be compared: `[1, 88, 0]` of `rustc 1.88 (...)`.
fn numbers(text: &str) -> [u32; 3] {
    let word = text
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))
        .unwrap_or_default();
    let mut parts = word.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    std::array::from_fn(|_| parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert_eq!(numbers("rustc 1.95.0 (59807616e 2026-04-14)"), [1, 95, 0]);
        assert!(numbers("1.100.1-nightly") > numbers("1.88"));
        assert_eq!(numbers("none"), [0, 0, 0]);
    }

    #[test]
    fn values_are_read_from_lines() {
        assert_eq!(
            value("NAME=\"Debian\"\nPRETTY_NAME=\"Debian 12\"", "PRETTY_NAME", '='),
            Some("Debian 12".into())
        );
        assert_eq!(value("MemTotal:       24 kB", "MemTotal", ':'), Some("24 kB".into()));
        assert_eq!(value("", "MemTotal", ':'), None);
    }

    #[test]
    fn a_missing_compiler_is_required() {
        assert!(compiler("C++ compiler", "no-such-compiler", "install it").is_missing());
        assert!(compiler("C++ compiler", "", "install it").is_missing());
    }
}
