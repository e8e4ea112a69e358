//! The commands and what each runs.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use clap::Subcommand;

use crate::bench::Bench;
use crate::failure::{Doing, Failure, Result};
use crate::setup::pins::Parts;
use crate::setup::stamp::Origin;
use crate::setup::{self, Wanted};
use crate::{doctor, lint, workspace};

/// What `cargo xtask` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Put libtorch 2.11.0 into .libtorch, so that plain `cargo build`, `test` and `run` work
    ///
    /// Uses what is installed already when it is the same version: the folder in LIBTORCH, or the torch of a python3
    /// on the PATH, by symlinks. Otherwise fetches pinned wheels through pip, verifies their SHA-256 and unpacks the
    /// libraries: 540 MB to fetch, 500 MB on disk. A fetch that was stopped goes on where it was. Nothing outside the
    /// checkout is touched.
    #[command(after_help = "Examples:\n  \
        cargo xtask setup               what training on a CPU needs\n  \
        cargo xtask setup --cuda        what an NVIDIA GPU needs (2.6 GB to fetch, 4 GB on disk)\n  \
        cargo xtask setup --nvrtc       compile every GPU kernel, on a machine without a GPU\n  \
        LIBTORCH=/opt/libtorch cargo xtask setup")]
    Setup {
        /// Also everything an NVIDIA GPU needs: libtorch_cuda and the NVIDIA libraries it pins
        #[arg(long)]
        cuda: bool,
        /// Also NVRTC, which compiles GPU kernels without a GPU (90 MB to fetch, 114 MB on disk); `test` does it itself
        #[arg(long)]
        nvrtc: bool,
        /// Fetch even when a libtorch of this version is installed already
        #[arg(long)]
        no_adopt: bool,
    },
    /// Set up, build the release binary and run a recipe with it
    ///
    /// Everything after the recipe is passed on to `hymba run`; so are signals and the exit code.
    #[command(after_help = "Examples:\n  \
        cargo xtask run recipes/quickstart.yaml\n  \
        cargo xtask run my.yaml --help      the options of `hymba run`")]
    Run {
        /// The recipe, relative to the current folder
        recipe: PathBuf,
        /// Arguments for `hymba run`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Set up and run every test of the workspace, doc tests included
    #[command(after_help = "Examples:\n  \
        cargo xtask test\n  \
        cargo xtask test packing                   tests whose name contains `packing`\n  \
        cargo xtask test -p kernels -- --nocapture")]
    Test {
        /// Filters and flags for `cargo test`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Check the format, the lints, the dependencies and the rules of the architecture
    #[command(after_help = "Examples:\n  \
        cargo xtask lint\n  \
        cargo xtask lint --rules     only the rules of the architecture, in a second, without libtorch")]
    Lint {
        /// Only the rules of the architecture
        #[arg(long)]
        rules: bool,
    },
    /// Set up and measure the fused operations against their rivals, in one table
    #[command(after_help = "Examples:\n  \
        cargo xtask bench\n  \
        cargo xtask bench selective_scan\n  \
        cargo xtask bench --gpu --json > cases.jsonl")]
    Bench(Bench),
    /// Say what this machine has and lacks; changes nothing
    ///
    /// The exit code is 1 when something is missing that building or training on a CPU needs.
    Doctor,
}

impl Command {
    /// Does it.
    ///
    /// # Errors
    /// What stopped it, or the exit code of the program that did.
    pub fn execute(self, root: &Path) -> Result<()> {
        match self {
            Self::Setup { cuda, nvrtc, no_adopt } => {
                let parts = match (cuda, nvrtc) {
                    (true, _) => Parts::Cuda,
                    (false, true) => Parts::Nvrtc,
                    (false, false) => Parts::Cpu,
                };
                set_up(root, Wanted { parts, adopt: !no_adopt })
            }
            Self::Run { recipe, args } => run(root, &recipe, &args),
            Self::Test { args } => test(root, &args),
            Self::Bench(bench) => bench.execute(root),
            Self::Lint { rules } => lint::lint(root, rules),
            Self::Doctor => doctor::doctor(root),
        }
    }
}

fn set_up(root: &Path, wanted: Wanted) -> Result<()> {
    let stamp = setup::ensure(root, wanted)?;
    let (version, home) = (&stamp.version, root.join(".libtorch"));
    match &stamp.origin {
        Origin::Adopted(from) => {
            eprintln!("libtorch {version} is ready: {} points to {}", home.display(), from.display());
        }
        Origin::Downloaded | Origin::Found => eprintln!("libtorch {version} is ready in {}", home.display()),
    }
    if wanted.parts < Parts::Cuda && stamp.parts < Parts::Cuda && doctor::gpu::driver().is_some() {
        eprintln!("there is an NVIDIA GPU: `cargo xtask setup --cuda` adds what it needs");
    }
    if let Some(users) = workspace::users_libtorch(root)
        && !wanted.adopt
    {
        eprintln!("note: LIBTORCH={} is set, and cargo builds with that one: unset it", users.display());
    }
    Ok(())
}

/// `cargo test` over the workspace; a `-p` among the arguments narrows it down.
fn test(root: &Path, args: &[OsString]) -> Result<()> {
    // The tests compile every GPU kernel.
    setup::ensure_nvrtc(root)?;
    let mut command = workspace::cargo();
    command.arg("test");
    if !chooses_packages(args) {
        command.arg("--workspace");
    }
    workspace::run(command.args(args))
}

fn chooses_packages(args: &[OsString]) -> bool {
    let before_dashes = args.iter().take_while(|arg| *arg != "--");
    before_dashes
        .filter_map(|arg| arg.to_str())
        .any(|arg| arg.starts_with("-p") || arg.starts_with("--package"))
}

fn run(root: &Path, recipe: &Path, args: &[OsString]) -> Result<()> {
    // Before a download and a build of minutes, not after.
    let is_path = recipe.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
    if is_path && !recipe.exists() {
        return Err(Failure::new(
            format!("there is no recipe {}", recipe.display()),
            "give its path relative to the current folder; the project's own are in recipes/",
        ));
    }
    setup::ensure(root, Wanted::default())?;
    let binary = build()?;
    // The runner that cargo uses too: one place knows how a binary finds libtorch.
    let mut hymba = std::process::Command::new(root.join(".cargo/with-libtorch.sh"));
    hymba.arg(&binary).arg("run").arg(recipe).args(args);
    // In our place, so that signals and the exit code are its own; returns only when it could not be started.
    Err(hymba.exec()).doing(|| format!("start {}", binary.display()))
}

/// Builds the release binary with cargo's own progress shown; its path, wherever the target folder is.
fn build() -> Result<PathBuf> {
    let mut command = workspace::cargo();
    command.args(["build", "--release", "-p", "hymba_cli", "--message-format", "json-render-diagnostics"]);
    // In the caller's folder: a relative CARGO_TARGET_DIR counts from there.
    let output = command.stderr(Stdio::inherit()).output().doing(|| "start cargo".into())?;
    if !output.status.success() {
        return Err(Failure::Exit(workspace::exit_code(output.status)));
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    messages.lines().find_map(executable).ok_or_else(|| {
        Failure::new("cargo built no binary named hymba", "check the [[bin]] section of cli/Cargo.toml")
    })
}

/// The path in cargo's message that the binary `hymba` is built.
fn executable(message: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    let is_ours = message["target"]["name"] == "hymba";
    message["executable"].as_str().filter(|_| is_ours).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_flag_narrows_the_workspace() {
        let args = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        assert!(chooses_packages(&args(&["-p", "kernels"])));
        assert!(chooses_packages(&args(&["--package=kernels"])));
        assert!(!chooses_packages(&args(&["scan", "--", "-p"])));
    }

    #[test]
    fn the_binary_is_where_cargo_says() {
        let message =
            r#"{"reason":"compiler-artifact","target":{"name":"hymba"},"executable":"/t/release/hymba"}"#;
        assert_eq!(executable(message), Some("/t/release/hymba".into()));
        assert_eq!(executable(r#"{"target":{"name":"other"},"executable":"/t/other"}"#), None);
        assert_eq!(executable(r#"{"target":{"name":"hymba"},"executable":null}"#), None);
        assert_eq!(executable("not json"), None);
    }

    #[test]
    fn a_missing_recipe_is_refused_before_anything_is_fetched() {
        let failure = run(Path::new("/nowhere"), Path::new("no/such.yaml"), &[]).unwrap_err();
        assert!(failure.to_string().contains("there is no recipe no/such.yaml"));
    }
}
