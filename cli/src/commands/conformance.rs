//! `hymba conformance`: proves that sequence mixers keep the laws.

use std::{fmt::Write, process::ExitCode};

use hymba_plus::{
    conformance::{Case, Report, cases, check, uncovered},
    model::slot::sequence_mixer,
    plan::Law,
    registry::{Registry, Slot},
};
use serde_json::json;

use super::Outcome;
use crate::{args::Conformance, output};

pub(super) fn run(arguments: &Conformance) -> Outcome {
    let all = cases()?;
    if arguments.list {
        return list(&all, arguments.json);
    }
    let chosen = match &arguments.kind {
        Some(kind) => of_kind(kind, arguments.config.as_deref(), all)?,
        None => all,
    };
    let missing = if arguments.kind.is_none() { uncovered(&chosen) } else { Vec::new() };
    let mut reports: Vec<Report> = Vec::new();
    for case in &chosen {
        let report = check(case);
        if !arguments.json {
            output::print(&report.render(arguments.kind.is_some()));
        }
        reports.push(report);
    }
    let broken: Vec<&Report> = reports.iter().filter(|report| !report.passed()).collect();
    let passed = broken.is_empty() && missing.is_empty();
    if arguments.json {
        let document = json!({ "passed": passed, "without_a_case": missing, "reports": reports });
        output::line(&serde_json::to_string_pretty(&document)?);
    } else {
        output::print(&summary(&reports, &broken, &missing));
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The registered cases of a kind, or one of the command line.
fn of_kind(
    kind: &str,
    config: Option<&str>,
    all: Vec<Case>,
) -> Result<Vec<Case>, Box<dyn std::error::Error>> {
    let registry = Registry::global()?;
    let Some(entry) = registry.get(sequence_mixer::NAME, kind) else {
        let known: Vec<_> = registry.in_slot(sequence_mixer::NAME).map(|entry| entry.kind).collect();
        return Err(format!("there is no sequence mixer `{kind}`; there are: {}", known.join(", ")).into());
    };
    if let Some(config) = config {
        return Ok(vec![Case::mixer(entry.kind, config)?]);
    }
    let mine: Vec<Case> = all.into_iter().filter(|case| case.kind == entry.kind).collect();
    if mine.is_empty() {
        let kind = entry.kind;
        let help = format!("conformance!(sequence_mixer \"{kind}\": {{ .. }});");
        return Err(format!(
            "`{kind}` has no case: write `{help}` beside its `register!` line, or give --config"
        )
        .into());
    }
    Ok(mine)
}

fn summary(reports: &[Report], broken: &[&Report], missing: &[&str]) -> String {
    let mut text = String::new();
    for kind in missing {
        let _ = writeln!(text, "no case for `{kind}`: its file has no `conformance!` line");
    }
    let seconds: f64 = reports.iter().map(|report| report.seconds).sum();
    let _ = writeln!(
        text,
        "{} cases, {} with a broken law, {} mixers without a case, {seconds:.1} s",
        reports.len(),
        broken.len(),
        missing.len()
    );
    text
}

fn list(all: &[Case], as_json: bool) -> Outcome {
    let laws: Vec<_> =
        Law::ALL.iter().map(|law| json!({ "law": law, "statement": law.statement() })).collect();
    if as_json {
        let document = json!({ "laws": laws, "cases": all, "without_a_case": uncovered(all) });
        output::line(&serde_json::to_string_pretty(&document)?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::from("laws\n");
    for law in Law::ALL {
        let _ = writeln!(text, "  {law:<22} {}", law.statement());
    }
    text.push_str("\ncases\n");
    for case in all {
        let place = case.origin.as_ref().map_or("", |(_, place)| place.as_str());
        let _ = writeln!(text, "  {}   [{place}]", case.title());
    }
    for kind in uncovered(all) {
        let _ = writeln!(text, "  {kind}: no case");
    }
    output::print(&text);
    Ok(ExitCode::SUCCESS)
}
