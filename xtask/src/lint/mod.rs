//! `cargo xtask lint`: the format, clippy, the dependencies, and rules that only this project has.
//!
//! Every rule names the place, what it forbids and the way out. An exception is a comment on the line, with its
//! reason: `// lint: <rule>-ok: <reason>`.

mod files;
mod kinds;
mod length;
mod names;
mod rooms;
mod rust_text;
mod unsafe_code;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use self::files::Source;
use crate::failure::{Doing, Failure, Result};
use crate::progress::rounded;
use crate::setup::{self, Wanted};
use crate::workspace;

/// One place that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file, relative to the root.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// The rule's short name.
    pub rule: &'static str,
    /// What is wrong here.
    pub what: String,
    /// The way out.
    pub help: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, rule, what, help } = self;
        write!(f, "{}:{line}: [{rule}] {what}\n    help: {help}", file.display())
    }
}

/// Runs every check, shows all that fails, and fails if one did.
///
/// # Errors
/// When a check failed or could not be made.
pub fn lint(root: &Path, only_rules: bool) -> Result<()> {
    let mut failed = Vec::new();
    check("rules", &mut failed, || rules(root));
    if !only_rules {
        check("fmt", &mut failed, || component(root, "fmt", "rustfmt", &["--all", "--check"]));
        check("deny", &mut failed, || deny(root));
        check("clippy", &mut failed, || {
            setup::ensure(root, Wanted::default())?;
            // One crate that fails must not hide what the others would say.
            let args = ["--workspace", "--all-targets", "--keep-going", "--", "-D", "warnings"];
            component(root, "clippy", "clippy", &args)
        });
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("lint failed: {}", failed.join(", ")), ""))
}

fn check(name: &'static str, failed: &mut Vec<&'static str>, run: impl FnOnce() -> Result<()>) {
    let started = Instant::now();
    let result = run();
    if let Err(failure @ Failure::Told { .. }) = &result {
        eprintln!("{failure}");
    }
    let verdict = if result.is_ok() { "ok" } else { "FAILED" };
    eprintln!("lint {name}: {verdict} ({})", rounded(started.elapsed()));
    if result.is_err() {
        failed.push(name);
    }
}

/// A cargo command that is a component of the toolchain and may not be installed.
fn component(root: &Path, command: &str, name: &str, args: &[&str]) -> Result<()> {
    if workspace::first_line(workspace::cargo().get_program(), &[command, "--version"]).is_none() {
        return Err(Failure::new(
            format!("the toolchain has no {name}"),
            format!("install it: rustup component add {name}"),
        ));
    }
    workspace::run(workspace::cargo().arg(command).args(args).current_dir(root))
}

/// Licences, bans, sources and advisories, by deny.toml; a notice where cargo-deny is not installed.
fn deny(root: &Path) -> Result<()> {
    if workspace::first_line(workspace::cargo().get_program(), &["deny", "--version"]).is_none() {
        eprintln!("notice: cargo-deny is not installed, so licences and advisories were NOT checked");
        eprintln!("        get it with: cargo install cargo-deny --locked");
        return Ok(());
    }
    let cargo_deny = |checks: &[&str]| {
        let mut command = workspace::cargo();
        command.args(["deny", "--workspace", "check"]).args(checks).current_dir(root);
        command
    };
    workspace::run(&mut cargo_deny(&["licenses", "bans", "sources"]))?;
    let output = cargo_deny(&["advisories"]).output().doing(|| "start cargo-deny".into())?;
    let report = String::from_utf8_lossy(&output.stderr);
    // The database of advisories is the one thing here that needs the network.
    if !output.status.success() && report.contains("failed to fetch advisory database") {
        eprintln!("notice: the database of advisories cannot be reached, so advisories were NOT checked");
        return Ok(());
    }
    eprint!("{report}");
    if output.status.success() { Ok(()) } else { Err(Failure::Exit(workspace::exit_code(output.status))) }
}

/// The rules of the architecture.
fn rules(root: &Path) -> Result<()> {
    let sources = files::sources(root)?;
    let mut findings = rooms::check(&rooms::packages(root)?);
    findings.extend(unsafe_code::check(&sources));
    findings.extend(kinds::check(&sources));
    findings.extend(length::check(&sources));
    findings.extend(names::check(&sources));
    findings.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
    for finding in &findings {
        eprintln!("{finding}");
    }
    match findings.len() {
        0 => Ok(()),
        n => Err(Failure::new(format!("{n} {} broken", if n == 1 { "rule is" } else { "rules are" }), "")),
    }
}

/// Whether a line carries the written exception from a rule: `lint: <rule>-ok: <reason>`, the reason not empty.
fn is_excepted(line: &str, rule: &str) -> bool {
    let marker = format!("lint: {rule}-ok:");
    line.split_once(marker.as_str()).is_some_and(|(_, reason)| !reason.trim().is_empty())
}

/// A finding in a source file.
fn finding(
    source: &Source,
    line: usize,
    rule: &'static str,
    what: impl Into<String>,
    help: impl Into<String>,
) -> Finding {
    Finding { file: source.path.clone(), line, rule, what: what.into(), help: help.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exception_needs_a_reason() {
        assert!(is_excepted("let x = 1; // lint: kind-name-ok: the default of the format", "kind-name"));
        assert!(!is_excepted("let x = 1; // lint: kind-name-ok:", "kind-name"));
        assert!(!is_excepted("let x = 1; // lint: long-file-ok: generated", "kind-name"));
    }

    #[test]
    fn a_finding_can_be_clicked() {
        let source = Source { path: "kernels/src/lib.rs".into(), text: String::new() };
        let text = finding(&source, 7, "unsafe", "what", "how").to_string();
        assert_eq!(text, "kernels/src/lib.rs:7: [unsafe] what\n    help: how");
    }

    #[test]
    fn this_project_keeps_its_rules_in_this_crate() {
        let sources: Vec<_> = files::sources(&workspace::root()).unwrap();
        let ours: Vec<_> = sources.into_iter().filter(|source| source.path.starts_with("xtask")).collect();
        assert!(!ours.is_empty());
        let mut findings = unsafe_code::check(&ours);
        findings.extend(length::check(&ours));
        findings.extend(names::check(&ours));
        assert_eq!(findings, []);
    }
}
