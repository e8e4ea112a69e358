//! The libtorch that is set up.

use std::path::Path;

use super::table::Row;
use crate::setup::adopt::Candidate;
use crate::setup::layout::Layout;
use crate::setup::loader;
use crate::setup::pins::{LIBTORCH_VERSION, Parts};
use crate::setup::stamp::{Origin, Stamp};
use crate::{setup, workspace};

/// Its version, its origin, and what in the environment leads cargo to another one.
pub fn rows(root: &Path) -> Vec<Row> {
    let layout = Layout::of(root);
    let mut rows = vec![installed(&layout)];
    if let Some(users) = workspace::users_libtorch(root) {
        rows.push(match Candidate::at(&users) {
            Ok(found) => Row::good(
                "LIBTORCH",
                format!("{} at {}: cargo builds with it", found.version, users.display()),
            ),
            Err(failure) => Row::missing("LIBTORCH", failure.to_string().replace("\n help: ", "; "), ""),
        });
    }
    if std::env::var_os("LIBTORCH_USE_PYTORCH").is_some() {
        let hint = "unset it: the build would take Python's torch instead of .libtorch";
        rows.push(Row::notice("LIBTORCH_USE_PYTORCH", "is set", hint));
    }
    rows
}

fn installed(layout: &Layout) -> Row {
    let name = "libtorch";
    let Some(stamp) = Stamp::read(layout) else {
        if setup::looks_complete(layout) && layout.link_is_good() {
            let hint = "cargo xtask setup verifies and records it";
            return Row::notice(
                name,
                format!("{LIBTORCH_VERSION}, without a record of where it is from"),
                hint,
            );
        }
        return Row::missing(name, "not set up", "cargo xtask setup");
    };
    if let Some(damage) = stamp.damage(layout) {
        return Row::missing(name, format!("damaged: {damage}"), "cargo xtask setup");
    }
    if !layout.link_is_good() {
        return Row::missing(name, "the folder link/ is not complete", "cargo xtask setup");
    }
    if let Err(reason) = loader::opens(&layout.torch().join("lib/libtorch_cpu.so")) {
        return Row::missing(name, format!("does not open: {reason}"), "cargo xtask setup --no-adopt");
    }
    let parts = match stamp.parts {
        Parts::Cpu => "CPU",
        Parts::Nvrtc => "CPU and NVRTC",
        Parts::Cuda => "CPU and CUDA",
    };
    let origin = match &stamp.origin {
        Origin::Downloaded => "downloaded".into(),
        Origin::Found => "found there, checksums verified".into(),
        Origin::Adopted(from) => format!("adopted from {}", from.display()),
    };
    Row::good(name, format!("{}, {parts}, {}, {origin}", stamp.version, layout.home.display()))
}
