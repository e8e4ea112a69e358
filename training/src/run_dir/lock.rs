//! One process at a time: a file lock that the system releases when its holder dies.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
};

use rustix::fs::{FlockOperation, flock};

use super::RunDirError;
use crate::environment;

/// A held lock. The file stays when it is released: removing it could take it from under another process.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
    recovered_from: Option<String>,
}

impl Lock {
    /// Takes the lock or says who has it.
    pub(super) fn take(root: &Path, name: &str) -> Result<Self, RunDirError> {
        let path = root.join(name);
        let failed = |source| RunDirError::Io { path: path.clone(), source };
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        let mut holder = String::new();
        file.read_to_string(&mut holder).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let holder = if holder.is_empty() { "another process".to_owned() } else { holder };
                return Err(RunDirError::Locked { path: root.to_owned(), holder });
            }
            Err(error) => return Err(failed(error.into())),
        }
        let ours = format!(
            "process {} on {} since {}",
            std::process::id(),
            environment::host(),
            environment::now_utc()
        );
        rewrite(&mut file, &ours).map_err(failed)?;
        Ok(Self { file, recovered_from: (!holder.is_empty()).then_some(holder) })
    }

    /// Who holds the lock, if someone does.
    pub(super) fn holder(path: &Path) -> Option<String> {
        let mut file = File::open(path).ok()?;
        let mut holder = String::new();
        file.read_to_string(&mut holder).ok()?;
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Err(rustix::io::Errno::WOULDBLOCK) => Some(holder),
            _ => None,
        }
    }

    /// The holder that died without releasing the lock, if there was one.
    pub(super) fn recovered_from(&self) -> Option<&str> {
        self.recovered_from.as_deref()
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = rewrite(&mut self.file, ""); // what is left would only be reported as a process that died
    }
}

fn rewrite(file: &mut File, text: &str) -> std::io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(text.as_bytes())
}
