//! `cargo xtask bench`: every benchmark says what it found in JSON lines; here they become a table.
//!
//! A line is a case: `op`, `device`, `case` (such as `forward 8x2048x3200x16`), `ours_ms`, `against`, `against_ms`, `ratio`
//! (against / ours) and `floor_share`, where a floor is known.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use serde_json::Value;

use crate::failure::{Doing, Failure, Result};
use crate::setup::{self, Wanted};
use crate::workspace;

/// What is measured.
#[derive(Debug, Args)]
pub struct Bench {
    /// Only operations whose name contains this
    pub op: Option<String>,
    /// On an NVIDIA GPU, against libtorch and against whatever peers the PyTorch of python3 finds
    #[arg(long)]
    pub gpu: bool,
    /// The JSON lines as they come
    #[arg(long)]
    pub json: bool,
}

impl Bench {
    /// Does it.
    ///
    /// # Errors
    /// When nothing has that name, or a benchmark fails.
    pub fn execute(&self, root: &Path) -> Result<()> {
        setup::ensure(root, Wanted::default())?;
        let wanted = |name: &str| self.op.as_deref().is_none_or(|op| name.contains(op));
        let benches = names(&root.join("kernels/benches"), "rs")?;
        let (on_gpu, on_cpu): (Vec<_>, Vec<_>) = benches.into_iter().partition(|name| name == "cuda");
        let mut ran = 0;
        if self.gpu {
            for bench in on_gpu {
                let mut command = cargo_bench(&bench);
                command.args(self.op.iter());
                ran += self.show(command)?;
            }
            let folder = root.join("bench/gpu");
            for script in
                names(&folder, "py")?.into_iter().filter(|name| name.starts_with("time_") && wanted(name))
            {
                let mut command = Command::new("python3");
                command.arg(folder.join(&script).with_extension("py"));
                ran += self.show(command)?;
            }
        } else {
            for bench in on_cpu.into_iter().filter(|name| wanted(name)) {
                ran += self.show(cargo_bench(&bench))?;
            }
        }
        if ran == 0 {
            let what = self.op.as_deref().map_or("any".to_owned(), |op| format!("`{op}`"));
            return Err(Failure::new(
                format!("no benchmark measured {what}"),
                "kernels/benches has those of the CPU, bench/gpu those that need a GPU (--gpu)",
            ));
        }
        Ok(())
    }

    /// Runs a benchmark; the number of cases that it measured.
    fn show(&self, mut command: Command) -> Result<usize> {
        let name = format!("{command:?}");
        let mut child = command.stdout(Stdio::piped()).spawn().doing(|| format!("start {name}"))?;
        let mut cases = 0;
        if let Some(stdout) = child.stdout.take() {
            for line in BufReader::new(stdout).lines() {
                let line = line.doing(|| format!("read what {name} prints"))?;
                match Case::parse(&line) {
                    Some(case) => {
                        if self.json {
                            println!("{line}");
                        } else {
                            if cases == 0 {
                                println!("{}", Case::titles());
                            }
                            println!("{}", case.row());
                        }
                        cases += 1;
                    }
                    // What a benchmark says besides is for whoever watches.
                    None => eprintln!("{line}"),
                }
            }
        }
        let status = child.wait().doing(|| format!("wait for {name}"))?;
        if status.success() { Ok(cases) } else { Err(Failure::Exit(workspace::exit_code(status))) }
    }
}

fn cargo_bench(name: &str) -> Command {
    let mut command = workspace::cargo();
    command.args(["bench", "--quiet", "-p", "kernels", "--bench", name, "--", "--json"]);
    command
}

/// The names of a folder's files of one kind, sorted, without their ending.
fn names(folder: &Path, ending: &str) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).doing(|| format!("read {}", folder.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path: &PathBuf| path.extension().is_some_and(|found| found == ending))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

/// One line of a benchmark.
struct Case(Value);

impl Case {
    fn parse(line: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(line).ok()?;
        (value.get("op")?.is_string() && value.get("ours_ms")?.is_number()).then_some(Self(value))
    }

    fn titles() -> String {
        format!(
            "\n{:<22}{:<42}{:>11}{:>12}{:>8}{:>8}  against",
            "operation", "case", "ours ms", "against ms", "ratio", "floor"
        )
    }

    fn row(&self) -> String {
        let text = |key: &str| self.0[key].as_str().unwrap_or("-").to_owned();
        let number = |key: &str, digits: usize| {
            self.0[key].as_f64().map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
        };
        let floor =
            self.0["floor_share"].as_f64().map_or("-".to_owned(), |share| format!("{:.0} %", share * 100.0));
        format!(
            "{:<22}{:<42}{:>11}{:>12}{:>8}{floor:>8}  {}",
            text("op"),
            text("case"),
            number("ours_ms", 4),
            number("against_ms", 4),
            number("ratio", 2),
            text("against")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_becomes_a_row_and_other_lines_do_not() {
        let line = r#"{"op":"selective_scan","device":"cuda","case":"forward 8x2048x3200x16","ours_ms":0.476,"against":"mamba_ssm","against_ms":0.903,"ratio":1.897,"floor_share":0.58}"#;
        let row = Case::parse(line).unwrap().row();
        assert!(row.starts_with("selective_scan        forward 8x2048x3200x16"), "{row}");
        assert!(row.contains("0.4760") && row.contains("1.90") && row.ends_with("58 %  mamba_ssm"), "{row}");
        let bare = Case::parse(r#"{"op":"x","case":"y","ours_ms":1}"#).unwrap().row();
        assert!(bare.contains("1.0000") && bare.ends_with('-'), "{bare}");
        assert!(
            Case::parse("compiling").is_none() && Case::parse("{}").is_none() && Case::parse("3").is_none()
        );
    }

    #[test]
    fn a_benchmark_that_is_not_there_is_refused() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels/benches");
        let found = names(&folder, "rs").unwrap();
        assert!(found.contains(&"selective_scan".to_owned()) && found.contains(&"cuda".to_owned()));
        assert!(names(Path::new("/nowhere"), "rs").is_err());
    }
}
