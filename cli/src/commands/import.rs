//! `hymba import`: weights of another library become a run.

use std::process::ExitCode;

use hymba_plus::plan::grouped;
use recipes::weights::{ImportRun, import_run};

use super::Outcome;
use crate::{
    args::{ImportFrom, ImportHf},
    output,
};

pub(super) fn run(from: &ImportFrom) -> Outcome {
    let ImportFrom::Hf(arguments) = from;
    hf(arguments)
}

fn hf(arguments: &ImportHf) -> Outcome {
    let imported = import_run(&ImportRun {
        source: arguments.folder.clone(),
        run: arguments.out.clone(),
        name: arguments.name.clone(),
        options: arguments.reading.options(),
        with_tokenizer: !arguments.no_tokenizer,
        end_of_text: arguments.end_of_text.clone(),
    })?;
    let run = arguments.out.display();
    output::line(&format!(
        "{run}: {} parameters, format {}, {} in the files",
        grouped(imported.parameters),
        imported.format,
        imported.dtype
    ));
    for note in &imported.notes {
        output::line(&format!("  {note}"));
    }
    if !imported.without_effect.is_empty() {
        output::line(&format!("  without effect on the model: {}", imported.without_effect.join(", ")));
    }
    if !imported.has_tokenizer {
        output::line("  no tokenizer: `hymba logits` works, `hymba generate` does not");
    }
    Ok(ExitCode::SUCCESS)
}
