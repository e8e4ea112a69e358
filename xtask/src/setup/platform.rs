//! Whether the pinned wheels run on this machine.

use crate::failure::{Failure, Result};
use crate::workspace::first_line;

/// The oldest glibc that the torch wheel runs on (manylinux_2_28).
pub const OLDEST_GLIBC: (u32, u32) = (2, 28);

/// Refuses a machine that the pinned wheels are not made for.
///
/// # Errors
/// When this is not x86-64 Linux with a recent glibc.
pub fn check() -> Result<()> {
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    refuse_unless_supported(os, arch, glibc())
}

/// The version of glibc, where there is one.
pub fn glibc() -> Option<(u32, u32)> {
    parse_glibc(&first_line("getconf", &["GNU_LIBC_VERSION"])?)
}

fn refuse_unless_supported(os: &str, arch: &str, glibc: Option<(u32, u32)>) -> Result<()> {
    let (major, minor) = OLDEST_GLIBC;
    let found = match (os, arch, glibc) {
        // No answer is no proof against it: some systems have no getconf.
        ("linux", "x86_64", None) => return Ok(()),
        ("linux", "x86_64", Some(version)) if version >= OLDEST_GLIBC => return Ok(()),
        ("linux", "x86_64", Some((major, minor))) => format!("glibc {major}.{minor}"),
        _ => format!("{arch} {os}"),
    };
    Err(Failure::new(
        format!("libtorch is fetched for x86-64 Linux with glibc {major}.{minor} or newer; this is {found}"),
        "install libtorch 2.11.0 for this machine yourself and set LIBTORCH to its folder",
    ))
}

/// `(2, 36)` of `glibc 2.36`.
fn parse_glibc(line: &str) -> Option<(u32, u32)> {
    let mut numbers = line.strip_prefix("glibc ")?.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_wheels_are_made_for() {
        assert_eq!(parse_glibc("glibc 2.36"), Some((2, 36)));
        assert_eq!(parse_glibc("musl"), None);
        assert_eq!(refuse_unless_supported("linux", "x86_64", Some((2, 36))), Ok(()));
        assert_eq!(refuse_unless_supported("linux", "x86_64", None), Ok(()));
        for (os, arch, glibc, found) in [
            ("linux", "x86_64", Some((2, 17)), "this is glibc 2.17"),
            ("linux", "aarch64", Some((2, 36)), "this is aarch64 linux"),
            ("macos", "aarch64", None, "this is aarch64 macos"),
        ] {
            let text = refuse_unless_supported(os, arch, glibc).unwrap_err().to_string();
            assert!(text.contains(found), "{text}");
        }
    }
}
