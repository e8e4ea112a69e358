//! Unpacks what is kept of a wheel.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::Stdio;

use super::layout::remove;
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
    let reason = reason.lines().last().unwrap_or("no reason given");
    Err(match workspace::exit_code(status) {
        28 => Failure::new(
            format!("the disk of {} is full", folder.display()),
            "free some space there and run the command again: what is fetched is kept",
        ),
        14 => {
            // Its checksum was right when it was fetched; the next try fetches it again.
            remove(file)?;
            let what = format!("{} is damaged ({reason}) and was deleted", file.display());
            Failure::new(what, "run the command again; if it happens again, check that disk")
        }
        130 => Failure::Exit(130),
        _ => Failure::new(
            format!("{} could not be unpacked: {reason}", wheel.file),
            "run the command again: what is fetched is kept",
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::pins::Keep;
    use crate::testing::Folder;

    const WHEEL: Wheel = Wheel {
        name: "demo",
        version: "1.0",
        file: "demo.whl",
        bytes: 0,
        sha256: "",
        keep: &[
            Keep { parts: Parts::Cpu, paths: &["a/version.py", "a/include/"], bytes: 2 },
            Keep { parts: Parts::Cuda, paths: &["a/lib/libcuda.so.1"], bytes: 1 },
        ],
    };

    /// A wheel with a line of text in each member.
    fn wheel(folder: &Folder, python: &Python) -> std::path::PathBuf {
        let file = folder.path().join("demo.whl");
        let make = "import sys, zipfile\n\
                    with zipfile.ZipFile(sys.argv[1], 'w') as archive:\n\
                    \x20   for name in sys.argv[2:]: archive.writestr(name, '' if name[-1] == '/' else name)";
        let mut command = python.script(make);
        command.arg(&file).args(["a/include/", "a/include/x/x.h", "a/include/libx.a", "a/version.py"]);
        command.args(["a/other.py", "a/lib/libcuda.so.1"]);
        assert!(command.status().unwrap().success());
        file
    }

    #[test]
    fn only_what_is_kept_is_unpacked() {
        let Ok(python) = Python::find() else { return };
        let folder = Folder::new("unpack");
        let file = wheel(&folder, &python);
        let out = folder.path().join("out");
        unpack(&WHEEL, &file, &out, Parts::Cpu, &python).unwrap();
        assert_eq!(std::fs::read_to_string(out.join("a/include/x/x.h")).unwrap(), "a/include/x/x.h");
        assert!(out.join("a/version.py").exists());
        assert!(!out.join("a/include/libx.a").exists() && !out.join("a/other.py").exists());
        assert!(!out.join("a/lib").exists());
        unpack(&WHEEL, &file, &out, Parts::Cuda, &python).unwrap();
        assert!(out.join("a/lib/libcuda.so.1").exists());
    }

    #[test]
    fn a_damaged_wheel_is_deleted() {
        let Ok(python) = Python::find() else { return };
        let folder = Folder::new("damaged-wheel");
        let file = wheel(&folder, &python);
        let bytes = std::fs::read(&file).unwrap();
        std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
        let failure = unpack(&WHEEL, &file, &folder.path().join("out"), Parts::Cpu, &python).unwrap_err();
        assert!(failure.to_string().contains("is damaged"), "{failure}");
        assert!(!file.exists());
    }
}
