//! `cargo xtask doctor`: what this machine has and lacks, in one table; it changes nothing.

pub mod gpu;
mod machine;
mod table;
mod torch;

use std::io::Write;
use std::path::Path;

use self::table::Row;
use crate::failure::{Failure, Result};

/// Prints the table.
///
/// # Errors
/// When something required is missing.
pub fn doctor(root: &Path) -> Result<()> {
    let sections: [(&str, Vec<Row>); 4] = [
        ("machine", machine::hardware(root)),
        ("tools", machine::tools()),
        ("libtorch", torch::rows(root)),
        ("gpu", gpu::rows(root)),
    ];
    let text: String = sections.iter().map(|(title, rows)| table::render(title, rows) + "\n").collect();
    // A reader that closed the pipe (`| head`) has seen enough: no error.
    let _ = std::io::stdout().write_all(text.as_bytes());
    let missing = sections.iter().flat_map(|(_, rows)| rows).filter(|row| row.is_missing()).count();
    if missing == 0 {
        eprintln!("everything that is required is there");
        return Ok(());
    }
    Err(Failure::new(
        format!("{missing} required {} missing", if missing == 1 { "thing is" } else { "things are" }),
        "",
    ))
}
