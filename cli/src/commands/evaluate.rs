//! `hymba evaluate`: measures a trained model again.

use std::process::ExitCode;

use evaluation::{Evaluation, evaluate_run};
use recipes::StageError;

use super::{Outcome, rendered};
use crate::{args::Evaluate, output};

pub(super) fn run(arguments: &Evaluate) -> Outcome {
    let evaluation = Evaluation {
        checkpoint: arguments.checkpoint,
        device: arguments.device.resolve()?,
        set: arguments.set.clone(),
        call_length: arguments.call_length,
        tokens: arguments.tokens,
        sequence_length: arguments.sequence_length,
        batch_size: arguments.batch_size,
    };
    let measured = evaluate_run(&arguments.run, &evaluation).map_err(|error| match error {
        StageError::Recipe(problems) => rendered(problems),
        error => error.into(),
    })?;
    for reason in &measured.passed_over {
        output::error(reason);
    }
    output::line(&measured.to_string());
    Ok(ExitCode::SUCCESS)
}
