//! Fetches pinned wheels through pip, going on where an earlier try stopped.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::checksum::sha256;
use super::layout::remove;
use super::pins::Wheel;
use super::python::Python;
use crate::failure::{Doing, Failure, Result};
use crate::progress::Bytes;
use crate::workspace;

/// Asks pip where a wheel lies and fetches it with pip's own session.
const FETCH: &str = include_str!("fetch.py");
const AGAIN: &str = "run the command again: it goes on where this one stopped";

/// What a wheel's download has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// Fetched and verified.
    Done,
    /// This many bytes lie in the partial file.
    Partial(u64),
}

/// How far the download of `wheel` into `folder` has come.
pub fn reached(wheel: &Wheel, folder: &Path) -> Reached {
    let size = |path: &Path| fs::metadata(path).map(|found| found.len()).ok();
    if size(&folder.join(wheel.file)) == Some(wheel.bytes) {
        return Reached::Done;
    }
    // More than the whole cannot be the beginning of it.
    Reached::Partial(size(&partial(wheel, folder)).filter(|bytes| *bytes <= wheel.bytes).unwrap_or(0))
}

/// Fetches one wheel into `folder` and verifies it; returns the file.
///
/// # Errors
/// When the index cannot be reached, the connection or the disk fails, or the file is not the pinned one.
pub fn fetch(wheel: &Wheel, folder: &Path, python: &Python) -> Result<PathBuf> {
    let (whole, partial) = (folder.join(wheel.file), partial(wheel, folder));
    fs::create_dir_all(folder).doing(|| format!("make {}", folder.display()))?;
    let mut begun = match reached(wheel, folder) {
        Reached::Done => return Ok(whole),
        Reached::Partial(bytes) => bytes,
    };
    loop {
        if begun == 0 {
            remove(&partial)?;
        }
        download(wheel, &partial, begun, python)?;
        let found = sha256(&partial)?;
        if found == wheel.sha256 {
            // The final name is given to verified files only.
            fs::rename(&partial, &whole).doing(|| format!("write {}", whole.display()))?;
            return Ok(whole);
        }
        remove(&partial)?;
        if begun == 0 {
            return Err(Failure::new(
                format!(
                    "{} has the SHA-256 {found} where {} is pinned; the file was deleted",
                    wheel.file, wheel.sha256
                ),
                "run the command again; if it happens again, the package index serves another file: ask its owner",
            ));
        }
        eprintln!("  what an earlier try had left of {} was damaged: fetching it anew", wheel.name);
        begun = 0;
    }
}

fn partial(wheel: &Wheel, folder: &Path) -> PathBuf {
    folder.join(format!("{}.partial", wheel.file))
}

fn download(wheel: &Wheel, partial: &Path, begun: u64, python: &Python) -> Result<()> {
    if begun == wheel.bytes {
        return Ok(());
    }
    let mut command = python.script(FETCH);
    command.args([wheel.name, wheel.version, wheel.file, &wheel.bytes.to_string()]).arg(partial);
    // The pipe on its stdin tells it when we are gone.
    command.args(wheel.platforms()).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().doing(|| format!("start {}", python.program.display()))?;
    let (code, reason) = watch(&mut child, Bytes::start(label(wheel), begun, wheel.bytes), partial)?;
    match code {
        0 => Ok(()),
        10 => download_by_pip(wheel, partial, python, &reason),
        11 => Err(Failure::new(
            format!("{} could not be fetched: {reason}", wheel.name),
            "check the network, the proxy and pip's index (pip config list), and run the command again",
        )),
        28 => Err(Failure::new(
            format!("the disk of {} is full", partial.display()),
            format!("free some space there, then {AGAIN}"),
        )),
        130 => Err(Failure::Exit(130)),
        _ => Err(Failure::new(format!("the download of {} broke off: {reason}", wheel.name), AGAIN)),
    }
}

fn label(wheel: &Wheel) -> String {
    format!("fetching {} {}", wheel.name, wheel.version)
}

/// Moves the bar with the growing file until the child ends; its exit code and the last line of its errors.
fn watch(child: &mut Child, mut bar: Bytes, partial: &Path) -> Result<(u8, String)> {
    let mut stderr = child.stderr.take();
    let errors = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = stderr.as_mut().map(|pipe| pipe.read_to_end(&mut text));
        String::from_utf8_lossy(&text).into_owned()
    });
    let status = loop {
        match child.try_wait().doing(|| "wait for pip".into())? {
            Some(status) => break status,
            None => std::thread::sleep(Duration::from_millis(100)),
        }
        bar.set(fs::metadata(partial).map_or(0, |found| found.len()));
    };
    if status.success() {
        bar.finish();
    } else {
        bar.abandon();
    }
    let errors = errors.join().unwrap_or_default();
    Ok((workspace::exit_code(status), last_line(&errors)))
}

fn last_line(text: &str) -> String {
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no reason given").trim().to_owned()
}

/// The slow and sure way for a pip that cannot be asked: it shows its own progress and cannot go on after a break.
fn download_by_pip(wheel: &Wheel, partial: &Path, python: &Python, reason: &str) -> Result<()> {
    eprintln!("  {reason}; using `pip download`, which starts from the beginning each time");
    let folder = partial.with_extension("pip");
    remove(&folder)?;
    let status = pip_download(wheel, &folder, python).status().doing(|| "start pip".into())?;
    if !status.success() {
        remove(&folder)?;
        return Err(Failure::new(
            format!("pip could not download {} {}; its reason stands above", wheel.name, wheel.version),
            "check the network, the proxy and pip's index (pip config list), and run the command again",
        ));
    }
    let file = folder.join(wheel.file);
    if !file.exists() {
        remove(&folder)?;
        return Err(Failure::new(
            format!("pip chose another file than the pinned {}", wheel.file),
            "use a package index that offers it (pip config list shows which one is set up)",
        ));
    }
    fs::rename(&file, partial).doing(|| format!("write {}", partial.display()))?;
    remove(&folder)
}

fn pip_download(wheel: &Wheel, folder: &Path, python: &Python) -> Command {
    let mut command = Command::new(&python.program);
    command.args(["-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check"]);
    command.args([
        "--only-binary=:all:",
        "--implementation",
        "cp",
        "--python-version",
        "3.11",
        "--abi",
        "cp311",
    ]);
    for platform in wheel.platforms() {
        command.args(["--platform", platform]);
    }
    command.arg("--dest").arg(folder).arg(format!("{}=={}", wheel.name, wheel.version));
    command
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
mod tests;
