//! Unpacks what is kept of a wheel.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::Stdio;

use super::pins::{Parts, Wheel};
use super::python::Python;
use crate::failure::{Doing, Failure, Result};
use crate::progress::Bytes;
use crate::workspace;

/// Python's zipfile checks every member's checksum, and is there: pip runs on it.
const UNPACK: &str = include_str!("unpack.py");

/// Unpacks what `parts` needs of `wheel`, which lies in `file`, into `folder`.
///
/// # Errors
/// When the wheel is damaged or the disk is full.
pub fn unpack(wheel: &Wheel, file: &Path, folder: &Path, parts: Parts, python: &Python) -> Result<()> {
    let mut command = python.script(UNPACK);
    command.arg(file).arg(folder).args(wheel.paths(parts)).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().doing(|| format!("start {}", python.program.display()))?;
    let mut bar = Bytes::start(format!("unpacking {}", wheel.name), 0, wheel.unpacked_bytes(parts));
    if let Some(stdout) = child.stdout.take() {
        for done in BufReader::new(stdout).lines().map_while(|line| line.ok()?.parse().ok()) {
            bar.set(done);
        }
    }
    let mut reason = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        let _ = stderr.read_to_string(&mut reason);
    }
    let status = child.wait().doing(|| "wait for python3".into())?;
    if status.success() {
        bar.finish();
        return Ok(());
    }
    bar.abandon();
    Err(match workspace::exit_code(status) {
        28 => Failure::new(
            format!("the disk of {} is full", folder.display()),
            "free some space there and run the command again",
        ),
        130 => Failure::Exit(130),
        _ => Failure::new(
            format!("{} could not be unpacked: {}", wheel.file, reason.lines().last().unwrap_or_default()),
            format!("delete {} and run the command again", file.display()),
        ),
    })
}
