//! `hymba export`: a run becomes weights of another library.

use std::process::ExitCode;

use recipes::weights::{ExportRun, export_run};

use super::Outcome;
use crate::{
    args::{ExportHf, ExportTo},
    output,
};

pub(super) fn run(to: &ExportTo) -> Outcome {
    let ExportTo::Hf(arguments) = to;
    hf(arguments)
}

fn hf(arguments: &ExportHf) -> Outcome {
    let exported = export_run(&ExportRun {
        run: arguments.run.clone(),
        to: arguments.folder.clone(),
        which: arguments.checkpoint,
        format: arguments.format.clone(),
        settings: arguments.settings.values(),
        kind: arguments.dtype,
        max_shard_bytes: arguments.max_shard_size,
    })?;
    output::line(&format!(
        "{}: format {}, {} of weights in {} file{}",
        arguments.folder.display(),
        exported.format,
        hymba_plus::plan::bytes(exported.bytes),
        exported.files.len(),
        if exported.files.len() == 1 { "" } else { "s" }
    ));
    Ok(ExitCode::SUCCESS)
}
