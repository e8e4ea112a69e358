//! `hymba generate`: continues a text with a trained model.

use std::{
    io::{self, Read},
    process::ExitCode,
};

use hymba_plus::generate::Sampling;
use recipes::{SavedRun, print_continuation};

use super::Outcome;
use crate::{args::Generate, output};

pub(super) fn run(arguments: &Generate) -> Outcome {
    let mut prompt = arguments.prompt.clone();
    if prompt == "-" {
        prompt.clear();
        io::stdin().read_to_string(&mut prompt)?;
    }
    let saved = SavedRun::open(&arguments.run, arguments.checkpoint, arguments.device.resolve()?)?;
    for reason in &saved.passed_over {
        output::error(&format!("{reason}; taking {}", saved.checkpoint.display()));
    }
    let sampling = Sampling {
        temperature: arguments.temperature,
        top_k: arguments.top_k.map(|k| k as usize),
        top_p: arguments.top_p,
    };
    let mut out = io::stdout().lock();
    let (model, tokenizer) = (&saved.model, &saved.tokenizer);
    let new = print_continuation(
        model,
        tokenizer,
        &prompt,
        arguments.max_new_tokens,
        &sampling,
        arguments.seed,
        &mut out,
    )?;
    if new.is_cut {
        output::error(&format!("stopped after {} tokens: the model is made for no longer text", new.tokens));
    }
    Ok(ExitCode::SUCCESS)
}
