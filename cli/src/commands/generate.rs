//! `hymba generate`: continues a text with a trained model.

use std::{
    io::{self, Read},
    process::ExitCode,
};

use hymba_plus::generate::Sampling;
use recipes::{SavedRun, print_continuation};

use super::Outcome;
use crate::args::Generate;

pub(super) fn run(arguments: &Generate) -> Outcome {
    if arguments.temperature < 0.0 || arguments.top_p.is_some_and(|p| !(0.0..=1.0).contains(&p)) {
        return Err("`--temperature` is at least 0 and `--top-p` between 0 and 1".into());
    }
    let mut prompt = arguments.prompt.clone();
    if prompt == "-" {
        prompt.clear();
        io::stdin().read_to_string(&mut prompt)?;
    }
    let device = if tch::Cuda::is_available() { tch::Device::Cuda(0) } else { tch::Device::Cpu };
    let saved = SavedRun::open(&arguments.run, device)?;
    let sampling = Sampling {
        temperature: arguments.temperature,
        top_k: arguments.top_k.map(|k| k as usize),
        top_p: arguments.top_p,
    };
    let mut out = io::stdout().lock();
    let (model, tokenizer) = (&saved.model, &saved.tokenizer);
    print_continuation(
        model,
        tokenizer,
        &prompt,
        arguments.max_new_tokens,
        &sampling,
        arguments.seed,
        &mut out,
    )?;
    Ok(ExitCode::SUCCESS)
}
