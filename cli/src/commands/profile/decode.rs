//! `hymba profile --decode`: how fast a recipe's model makes tokens.

use std::{fs, num::NonZero, path::PathBuf, process::ExitCode, time::Instant};

use hymba_plus::{
    config::Recipe,
    generate::{GenerateOptions, Sampling, Step, generate_streaming},
    model::{BuildOptions, Model},
};
use serde_json::json;
use tch::{Kind, Tensor};
use torch_bridge::guards::NoGrad;
use training::{
    profile::{Ceilings, Table},
    trainer::{Precision, TrainerConfig},
};

use super::super::{Outcome, load};
use crate::{args::Profile, output};

pub(super) fn run(arguments: &Profile) -> Outcome {
    let recipe = load(&arguments.recipe)?;
    let trainer: TrainerConfig = recipe.section()?.unwrap_or(hymba_plus::registry::parse_config(json!({}))?);
    let device = trainer.device.resolve()?;
    trainer.kernels.apply();
    let findings = |findings| super::super::rendered(recipe.diagnose(findings));
    let plan = recipes::plan_model(&recipe).map_err(findings)?.ok_or("the recipe has no model")?;
    let vocab = plan.vocab_size.ok_or("only a model with a vocabulary makes tokens")?;
    let ceilings = Ceilings::measure(device)?;
    let kind = match trainer.precision {
        Precision::Bfloat16 => Kind::BFloat16,
        other => other.parameter_kind(),
    };
    let model = Model::build(&plan, BuildOptions { device, kind, seed: recipe.seed() })?;
    let _guard = NoGrad::new();
    let [batch, prompt, new] =
        [arguments.batch, arguments.prompt_length, arguments.new_tokens].map(NonZero::get);
    let prompts: Vec<Vec<i64>> = (0..batch)
        .map(|row| (0..prompt).map(|i| (row * 31 + i * i * 7 + i * 13) as i64 % vocab).collect())
        .collect();
    let options = GenerateOptions {
        max_new_tokens: new,
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        cuda_graph: trainer.cuda_graph != training::trainer::GraphPolicy::Off,
        ..GenerateOptions::default()
    };
    let mut times = Vec::with_capacity(new);
    let begin = Instant::now();
    generate_streaming(&model, &prompts, &options, &mut |step: &Step<'_>| {
        if step.sequence == 0 {
            times.push(Instant::now());
        }
        true
    })?;
    let first = times.first().map_or(0.0, |time| (*time - begin).as_secs_f64());
    let mut steps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    // The first half compiles and records; its steps are not those of a long text.
    let mut steps = steps.split_off(steps.len() / 2);
    steps.sort_by(f64::total_cmp);
    let median = steps.get(steps.len() / 2).copied().ok_or("use --new-tokens 4 or more")?;
    let bytes = |tensor: &Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
    let weights: usize = model.parameters().iter().map(|parameter| bytes(&parameter.tensor)).sum();
    let state = batch as f64 * plan.state_bytes((prompt + new) as i64, kind) as f64;
    let floor = (weights as f64 + state) / ceilings.bytes_per_second;
    let (trace, table) = watched(arguments, &recipe, &model, &prompts, &options, &ceilings)?;
    let record = json!({
        "device": format!("{device:?}"),
        "batch": batch,
        "prompt_length": prompt,
        "new_tokens": new,
        "first_token_ms": first * 1e3,
        "step_ms": median * 1e3,
        "tokens_per_second": batch as f64 / median,
        "weight_bytes": weights,
        "state_bytes": state,
        "copy_gb_per_s": ceilings.bytes_per_second * 1e-9,
        "floor_share": floor / median,
        "table": table,
    });
    if arguments.json {
        output::line(&serde_json::to_string(&record)?);
    } else {
        output::line(&table.to_string());
        output::line(&format!(
            "{batch} x {new} tokens after {prompt}: first token after {:.1} ms, then {:.3} ms a step: {:.0} tokens per second\n\
             {:.0} % of the floor: {:.1} MB of weights and {:.1} MB of states at {:.0} GB/s (a copy here)",
            first * 1e3,
            median * 1e3,
            batch as f64 / median,
            100.0 * floor / median,
            weights as f64 * 1e-6,
            state * 1e-6,
            ceilings.bytes_per_second * 1e-9
        ));
        output::line(&format!("trace {} (chrome://tracing, ui.perfetto.dev)", trace.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// Tokens before those that are watched, and these.
const WATCHED: (usize, usize) = (4, 8);

/// A few more tokens, operation by operation and under the profiler: the trace, and its table per step.
fn watched(
    arguments: &Profile,
    recipe: &Recipe,
    model: &Model,
    prompts: &[Vec<i64>],
    options: &GenerateOptions,
    ceilings: &Ceilings,
) -> Result<(PathBuf, Table), Box<dyn std::error::Error>> {
    let (before, steps) = WATCHED;
    let options = GenerateOptions { max_new_tokens: before + steps, cuda_graph: false, ..options.clone() };
    let (mut tokens, mut profile, mut failure) = (0, None, None);
    generate_streaming(model, prompts, &options, &mut |step: &Step<'_>| {
        if step.sequence == 0 {
            tokens += 1;
            if tokens == before {
                match torch_bridge::profiler::Profile::start(model.options().device) {
                    Ok(started) => profile = Some(started),
                    Err(error) => failure = Some(error),
                }
            }
        }
        failure.is_none()
    })?;
    let profile = match (profile, failure) {
        (Some(profile), None) => profile,
        (_, Some(error)) => return Err(error.into()),
        (None, None) => return Err("the model is made for too few tokens to watch any".into()),
    };
    let folder = super::folder(arguments, recipe);
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let trace = folder.join("decode.json");
    profile.finish(&trace)?;
    let table = Table::read(&trace, (tokens - before).max(1) as u64, ceilings)?;
    Ok((trace, table))
}
