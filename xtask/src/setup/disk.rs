//! Whether the disk has room, asked before anything is fetched.

use std::path::Path;

use indicatif::DecimalBytes;

use crate::failure::{Doing, Failure, Result};

/// Room for what the file system adds to ten thousand small headers.
const MARGIN: u64 = 64_000_000;

/// Bytes this user can still write on the disk that holds `folder`.
///
/// # Errors
/// When the folder cannot be asked.
pub fn free(folder: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(folder).map_err(std::io::Error::from);
    let stat = stat.doing(|| format!("ask for the free space of {}", folder.display()))?;
    Ok(stat.f_bavail * stat.f_frsize)
}

/// Refuses a set-up that will not fit.
///
/// # Errors
/// When `home` has less room than `needed`: what is left to fetch and everything unpacked, in bytes.
pub fn check(home: &Path, needed: u64) -> Result<()> {
    refuse_if_less(free(home)?, needed + MARGIN, home)
}

fn refuse_if_less(have: u64, need: u64, home: &Path) -> Result<()> {
    if have >= need {
        return Ok(());
    }
    Err(Failure::new(
        format!(
            "libtorch needs {} on the disk of {}, which has {} free",
            DecimalBytes(need),
            home.display(),
            DecimalBytes(have)
        ),
        format!("free {} there, or check out the project on another disk", DecimalBytes(need - have)),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn need_and_have_are_said() {
        let home = Path::new("/disk/.libtorch");
        assert_eq!(refuse_if_less(10, 10, home), Ok(()));
        let text = refuse_if_less(1_000_000, 3_000_000, home).unwrap_err().to_string();
        assert!(text.contains("needs 3.00 MB"), "{text}");
        assert!(text.contains("has 1.00 MB free"), "{text}");
        assert!(text.contains("free 2.00 MB there"), "{text}");
    }

    #[test]
    fn a_real_folder_can_be_asked() {
        assert!(free(&std::env::temp_dir()).unwrap() > 0);
    }
}
