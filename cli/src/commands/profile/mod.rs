//! `hymba profile`: what a training step costs, operation by operation.

mod decode;

use std::{fs, path::PathBuf, process::ExitCode};

use hymba_plus::{config::Recipe, plan::grouped};
use serde_json::json;
use training::{
    profile::{Ceilings, Profiled, Table, Window},
    run::RunOptions,
    telemetry::Console,
    trainer::TrainerConfig,
};

use super::{Outcome, load};
use crate::{args::Profile, output};

/// The table's file: what tells a profile's folder from a run's.
const TABLE: &str = "profile.json";

pub(super) fn run(arguments: &Profile) -> Outcome {
    if arguments.decode {
        return decode::run(arguments);
    }
    let recipe = load(&arguments.recipe)?;
    let trainer: TrainerConfig = recipe.section()?.unwrap_or(hymba_plus::registry::parse_config(json!({}))?);
    let device = trainer.device.resolve()?;
    let ceilings = Ceilings::measure(device)?;
    let folder = folder(arguments, &recipe);
    let window = Window {
        warm_up: arguments.warm_up.get(),
        steps: arguments.steps.get(),
        trace: folder.join("trace.json"),
    };
    if folder.join("run.json").exists() && !folder.join(TABLE).exists() {
        let folder = folder.display();
        return Err(
            format!("{folder} holds a run that is no profile; give another --run-dir, or remove it").into()
        );
    }
    let options = RunOptions {
        overwrite: true,
        profile: Some(window),
        // Standard output is for the table.
        console: Console::stderr(),
        ..RunOptions::new(&folder, "hymba profile")
    };
    let profiled = match recipes::profile(&recipe, options) {
        Ok(profiled) => profiled,
        Err(recipes::RunError::Recipe(problems)) => return Err(super::rendered(problems)),
        Err(error) => return Err(error.into()),
    };
    let table = Table::read(&profiled.trace, profiled.steps, &ceilings)?;
    let rate = Rate::of(&recipe, &profiled, &ceilings);
    let record = json!({
        "stage": profiled.stage,
        "device": format!("{device:?}"),
        "steps": profiled.steps,
        "tokens_per_step": rate.tokens_per_step,
        "step_ms": profiled.step_seconds * 1e3,
        "tokens_per_second": rate.tokens_per_second,
        "mfu": rate.mfu,
        "peak_bytes": profiled.peak_bytes,
        "copy_gb_per_s": ceilings.bytes_per_second * 1e-9,
        "matmul_tflop_per_s": ceilings.flops_per_second * 1e-12,
        "table": table,
    });
    let path = folder.join(TABLE);
    fs::write(&path, serde_json::to_string_pretty(&record)?)
        .map_err(|error| format!("{}: {error}", path.display()))?;
    if arguments.json {
        output::line(&serde_json::to_string(&record)?);
    } else {
        output::line(&table.to_string());
        output::line(&rate.to_string());
        output::line(&format!("trace {} (chrome://tracing, ui.perfetto.dev)", profiled.trace.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// Where table and trace go.
fn folder(arguments: &Profile, recipe: &Recipe) -> PathBuf {
    let name = format!("{}-profile", recipe.name());
    arguments.run_dir.clone().unwrap_or_else(|| PathBuf::from("runs").join(name))
}

/// How fast steps are, operation by operation and without a profiler.
struct Rate {
    tokens_per_step: f64,
    tokens_per_second: f64,
    /// Model FLOPs utilisation; none where the stage has no sequences.
    mfu: Option<f64>,
    text: String,
}

impl Rate {
    fn of(recipe: &Recipe, profiled: &Profiled, ceilings: &Ceilings) -> Self {
        let tokens_per_step = profiled.tokens as f64 / profiled.steps.max(1) as f64;
        let tokens_per_second = tokens_per_step / profiled.step_seconds.max(1e-9);
        let length = recipes::sequence_length(recipe, &profiled.stage);
        let plan = recipes::plan_model(recipe).ok().flatten();
        let flops_per_token =
            plan.zip(length).map(|(plan, length)| 3.0 * plan.totals(length).flops_per_token);
        let mfu = flops_per_token.map(|flops| flops * tokens_per_second / ceilings.flops_per_second);
        let mut lines = vec![format!(
            "{:.1} ms per step of {} targets, operation by operation and without the profiler: {} per second",
            profiled.step_seconds * 1e3,
            grouped(tokens_per_step as u64),
            grouped(tokens_per_second as u64),
        )];
        if let Some(peak) = profiled.peak_bytes {
            lines.push(format!("{:.2} GiB at most on the device", peak as f64 / f64::from(1_u32 << 30)));
        }
        let (gb, tflop) = (ceilings.bytes_per_second * 1e-9, ceilings.flops_per_second * 1e-12);
        if let (Some(flops), Some(mfu)) = (flops_per_token, mfu) {
            lines.push(format!(
                "MFU {:.1} % = {:.3} GFLOP per token (3 x forward) x {} tokens/s / {tflop:.1} TFLOP/s (a product of \
                 square matrices here)",
                mfu * 100.0,
                flops * 1e-9,
                grouped(tokens_per_second as u64),
            ));
        }
        lines.push(format!("floor: {gb:.0} GB/s (a copy here), {tflop:.1} TFLOP/s"));
        let text = lines.join("\n");
        Self { tokens_per_step, tokens_per_second, mfu, text }
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}
