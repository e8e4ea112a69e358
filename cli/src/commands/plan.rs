//! `hymba plan`: the model as numbers.

use std::process::ExitCode;

use serde_json::json;

use super::{Outcome, load, rendered};
use crate::{args::Plan, output};

/// Tokens of a document when neither the command line nor the recipe says.
const DEFAULT_TOKENS: i64 = 2048;

pub(super) fn run(arguments: &Plan) -> Outcome {
    let recipe = load(&arguments.recipe)?;
    let plan = recipes::plan_model(&recipe).map_err(|findings| rendered(recipe.diagnose(findings)))?;
    let Some(plan) = plan else {
        return Err(
            format!("{}: there is no section `model` to plan", arguments.recipe.recipe.display()).into()
        );
    };
    let sequence_length =
        || recipe.values().get("stages")?.as_array()?.iter().find_map(|s| s.get("sequence_length")?.as_i64());
    let tokens = arguments.tokens.or_else(sequence_length).unwrap_or(DEFAULT_TOKENS);
    if let Some(path) = &arguments.svg {
        let picture = plan.svg(recipe.name(), tokens);
        if path.as_os_str() == "-" {
            output::print(&picture);
        } else {
            output::file(path, &picture)?;
            output::line(&format!("wrote {}", path.display()));
        }
    } else if arguments.json {
        let report = json!({ "recipe": recipe.name(), "hash": recipe.hash(), "totals": plan.totals(tokens), "layers": plan.layer_summaries(tokens), "plan": plan });
        output::line(&serde_json::to_string_pretty(&report)?);
    } else {
        output::print(&plan.render(tokens));
    }
    Ok(ExitCode::SUCCESS)
}
