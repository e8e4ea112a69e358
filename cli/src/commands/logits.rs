//! `hymba logits`: what a model says of given tokens.

use std::process::ExitCode;

use recipes::weights::{LogitsRequest, logits};

use super::Outcome;
use crate::{args::Logits, output};

pub(super) fn run(arguments: &Logits) -> Outcome {
    let report = logits(&LogitsRequest {
        model: arguments.model.clone(),
        which: arguments.checkpoint,
        import: arguments.reading.options(),
        ids: arguments.ids.clone(),
        out: arguments.out.clone(),
        taps: arguments.taps,
        kind: arguments.dtype,
        call_length: arguments.call_length,
        device: arguments.device.resolve()?,
    })?;
    for note in &report.notes {
        output::error(note);
    }
    let taps = if arguments.taps { format!(", {} taps", report.taps) } else { String::new() };
    output::line(&format!("{}: logits {:?}{taps}", arguments.out.display(), report.shape));
    Ok(ExitCode::SUCCESS)
}
