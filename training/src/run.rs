//! A run: one process that works through the stages of a recipe in one run directory.

use std::path::PathBuf;

use hymba_plus::config::Recipe;
use serde_json::Value;
use tch::Device;

use crate::{
    environment::{Environment, Execution, now_utc},
    error::TrainError,
    profile::Window,
    run_dir::{Existing, RunDir},
    telemetry::{Console, MetricRecord, MetricsFile},
    trainer::{GraphPolicy, KernelPolicy, TrainerConfig},
};

/// What the command line says about a run.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The run directory.
    pub run_dir: PathBuf,
    /// The command that began this run, up to its recipe and settings, as a user would type it: `hymba run
    /// recipe.yaml`. The command that goes on is made from it.
    pub command: String,
    /// Go on with the run in the directory.
    pub resume: bool,
    /// Remove the run in the directory first.
    pub overwrite: bool,
    /// Resume although the recipe, the threads or the CPU differ.
    pub force: bool,
    /// Steps of the first stage that trains to watch; the run ends after them.
    pub profile: Option<Window>,
    /// Where the run speaks to its user.
    pub console: Console,
}

impl RunOptions {
    /// A new run in a directory, speaking to standard output.
    pub fn new(run_dir: impl Into<PathBuf>, command: impl Into<String>) -> Self {
        Self {
            run_dir: run_dir.into(),
            command: command.into(),
            resume: false,
            overwrite: false,
            force: false,
            profile: None,
            console: Console::stdout(),
        }
    }
}

/// A run that has its directory, its device and its threads.
#[derive(Debug)]
pub struct Run {
    directory: RunDir,
    trainer: TrainerConfig,
    device: Device,
    seed: u64,
    recipe_hash: String,
    execution: Execution,
    metrics: MetricsFile,
    console: Console,
    records_graphs: bool,
    profile: Option<Window>,
    resumed: bool,
    force: bool,
    command: String,
}

impl Run {
    /// Sets up libtorch, takes the run directory and writes what a run leaves at its start.
    ///
    /// # Errors
    /// When the device is not there, or the directory cannot be used, or belongs to a run of another recipe.
    pub fn open(recipe: &Recipe, options: RunOptions) -> Result<Self, TrainError> {
        let trainer: TrainerConfig = match recipe.section()? {
            Some(trainer) => trainer,
            None => hymba_plus::registry::parse_config(serde_json::json!({})).map_err(|error| {
                recipe.diagnose(vec![hymba_plus::registry::Finding {
                    path: "trainer".to_owned(),
                    message: error.to_string(),
                    rule: "the section `trainer` has a default for every key".to_owned(),
                    help: None,
                }])
            })?,
        };
        let device = set_up(&trainer)?;
        // A recorded graph does not tell which operation a kernel belongs to.
        let records_graphs = options.profile.is_none() && side_stream(&trainer, device, &options.console)?;
        let execution =
            Execution::now(device, trainer.precision, trainer.deterministic).map_err(TrainError::Setup)?;
        let existing = match (options.overwrite, options.resume) {
            (true, _) => Existing::Overwrite,
            (_, true) => Existing::Resume,
            _ => Existing::Refuse,
        };
        let directory = RunDir::open(&options.run_dir, existing)?;
        if let Some(holder) = directory.recovered_from() {
            options.console.line(&format!("the last run here, {holder}, did not end by itself"));
        }
        let resumed = begin(&directory, recipe, &options)?;
        directory.write_recipe(&recipe.resolved_yaml())?;
        directory.write_environment(&Environment::collect(execution.clone(), recipe.folder()))?;
        let metrics = MetricsFile::open(&directory.metrics())?;
        Ok(Self {
            directory,
            trainer,
            device,
            seed: recipe.seed(),
            recipe_hash: recipe.hash(),
            execution,
            metrics,
            console: options.console,
            records_graphs,
            profile: options.profile,
            resumed,
            force: options.force,
            command: options.command,
        })
    }

    /// The run directory.
    pub fn directory(&self) -> &RunDir {
        &self.directory
    }

    /// The steps to watch.
    pub(crate) fn profile_window(&self) -> Option<&Window> {
        self.profile.as_ref()
    }

    /// Whether steps are to be recorded as CUDA graphs.
    pub(crate) fn records_graphs(&self) -> bool {
        self.records_graphs
    }

    /// The section `trainer`.
    pub fn trainer(&self) -> &TrainerConfig {
        &self.trainer
    }

    /// The device of the run.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The recipe's seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Hash of the resolved recipe.
    pub fn recipe_hash(&self) -> &str {
        &self.recipe_hash
    }

    /// What the bits of the results depend on.
    pub fn execution(&self) -> &Execution {
        &self.execution
    }

    /// Where the run speaks to its user.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Whether the directory held a run, which this one continues.
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Whether differences of recipe and machine are accepted.
    pub fn is_forced(&self) -> bool {
        self.force
    }

    /// The command that goes on with this run.
    pub fn continue_command(&self) -> String {
        format!(
            "{} --run-dir {} --resume",
            self.command,
            shell_word(&self.directory.path().to_string_lossy())
        )
    }

    /// Autocast for a forward pass, as the precision wants it. It must end before the weights change.
    pub fn autocast(&self) -> torch_bridge::guards::Autocast {
        self.trainer.precision.autocast(self.device)
    }

    /// Notes in `progress.json` that a stage begins. For one that begins again the metrics it wrote before are
    /// removed, unless it or a stage after it is finished. [`train`](crate::train) does this itself.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn start_stage(&mut self, stage: &str) -> Result<(), TrainError> {
        let mut progress = self.directory.progress()?;
        let metrics_start = progress.start(stage, self.metrics.length());
        if !progress.is_followed(stage) {
            self.metrics.truncate(metrics_start)?;
        }
        Ok(self.directory.write_progress(&progress)?)
    }

    /// Notes in `progress.json` that a stage is done.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn finish_stage(&mut self, stage: &str) -> Result<(), TrainError> {
        let mut progress = self.directory.progress()?;
        progress.finish(stage);
        self.metrics.sync()?;
        Ok(self.directory.write_progress(&progress)?)
    }

    /// Whether a stage was done before this process began it.
    ///
    /// # Errors
    /// When `progress.json` cannot be read.
    pub fn is_stage_finished(&self, stage: &str) -> Result<bool, TrainError> {
        Ok(self.directory.progress()?.is_finished(stage))
    }

    /// A finished stage has more to do: it, and every stage that began after it, is no longer finished. What those
    /// after it learnt is set aside, for they began with what this stage had left.
    pub(crate) fn reopen_stage(&mut self, stage: &str) -> Result<(), TrainError> {
        let mut progress = self.directory.progress()?;
        for later in progress.reopen(stage) {
            if let Some(aside) = self.directory.set_checkpoints_aside(&later)? {
                self.console
                    .line(&format!("{later}: begins again; its checkpoints are now in {}", aside.display()));
            }
        }
        Ok(self.directory.write_progress(&progress)?)
    }

    /// Adds a line to `metrics.jsonl`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn log(&mut self, record: &MetricRecord) -> Result<(), TrainError> {
        Ok(self.metrics.append(record)?)
    }

    pub(crate) fn metrics(&mut self) -> &mut MetricsFile {
        &mut self.metrics
    }
}

/// Sets threads, determinism and the choice of kernels, which are the process', and finds the device.
fn set_up(trainer: &TrainerConfig) -> Result<Device, TrainError> {
    let device = trainer.device.resolve()?;
    if trainer.deterministic && matches!(device, Device::Cuda(_)) {
        let workspace = std::env::var("CUBLAS_WORKSPACE_CONFIG").unwrap_or_default();
        if ![":4096:8", ":16:8"].contains(&workspace.as_str()) {
            return Err(TrainError::CublasWorkspace { found: workspace });
        }
    }
    let set = || -> torch_bridge::Result<()> {
        if let Some(threads) = trainer.threads {
            torch_bridge::device::set_intra_threads(threads)?;
        }
        torch_bridge::device::deterministic_algorithms(trainer.deterministic, false)?;
        torch_bridge::device::set_backend_determinism(trainer.deterministic, trainer.deterministic, false)
    };
    set().map_err(TrainError::Setup)?;
    trainer.kernels.apply();
    if trainer.kernels == KernelPolicy::Require && matches!(device, Device::Cuda(_)) {
        kernels::cuda::ready(device).map_err(|missing| {
            TrainError::Setup(torch_bridge::Error::other(format!("trainer.kernels is `require`: {missing}")))
        })?;
    }
    Ok(device)
}

/// Goes to a stream on which steps can be recorded, if they are to be; whether they are.
fn side_stream(trainer: &TrainerConfig, device: Device, console: &Console) -> Result<bool, TrainError> {
    if trainer.cuda_graph == GraphPolicy::Off || !matches!(device, Device::Cuda(_)) {
        return Ok(false);
    }
    match torch_bridge::cuda::graph::use_side_stream(device) {
        Ok(()) => Ok(true),
        Err(error) if trainer.cuda_graph == GraphPolicy::Auto => {
            console.line(&format!("steps are not recorded as CUDA graphs: {error}"));
            Ok(false)
        }
        Err(error) => Err(TrainError::Setup(error)),
    }
}

/// Writes `run.json`; whether there was a run before.
fn begin(directory: &RunDir, recipe: &Recipe, options: &RunOptions) -> Result<bool, TrainError> {
    let (hash, console) = (recipe.hash(), &options.console);
    let Some(mut record) = directory.record()? else {
        if options.resume {
            console.line(&format!("nothing to continue in {}: starting afresh", options.run_dir.display()));
        }
        directory.write_beginning(recipe.name(), &hash)?;
        return Ok(false);
    };
    if record.recipe_hash != hash {
        let before = std::fs::read_to_string(directory.recipe()).unwrap_or_default();
        let differences = differences(&before, &recipe.resolved_yaml());
        if !options.force {
            return Err(TrainError::RecipeChanged { path: options.run_dir.clone(), differences });
        }
        console
            .line(&format!("going on with another recipe, as --force says:\n  {}", differences.join("\n  ")));
        record.recipe_hash = hash;
        // What only measured or wrote has to do it again; what learnt goes on from its checkpoints.
        let mut progress = directory.progress()?;
        progress.clear(|stage| !directory.checkpoints(stage).exists());
        directory.write_progress(&progress)?;
    }
    record.resumed.push(now_utc());
    directory.write_record(&record)?;
    Ok(true)
}

/// What differs between two YAML texts, as `dotted.path: was A, is B`.
fn differences(before: &str, now: &str) -> Vec<String> {
    let parse = |text: &str| serde_yaml::from_str::<Value>(text).unwrap_or_default();
    let mut found = Vec::new();
    compare("", &parse(before), &parse(now), &mut found);
    if found.is_empty() {
        found.push("its hash differs, its text does not".to_owned());
    }
    found
}

fn compare(path: &str, was: &Value, is: &Value, found: &mut Vec<String>) {
    match (was, is) {
        (Value::Object(was), Value::Object(is)) => {
            let keys: std::collections::BTreeSet<&String> = was.keys().chain(is.keys()).collect();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let absent = Value::String("absent".to_owned());
                compare(&path, was.get(key).unwrap_or(&absent), is.get(key).unwrap_or(&absent), found);
            }
        }
        (Value::Array(was), Value::Array(is)) if was.len() == is.len() => {
            for (index, (was, is)) in was.iter().zip(is).enumerate() {
                compare(&format!("{path}[{index}]"), was, is, found);
            }
        }
        _ if was != is => found.push(format!("{path}: was {was}, is {is}")),
        _ => {}
    }
}

/// A word that a shell reads as it stands.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:@%,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_of_recipes_are_named_by_path() {
        let before = "seed: 1\nstages:\n- {kind: pretrain, steps: 10}\n";
        let now = "seed: 2\nstages:\n- {kind: pretrain, steps: 20, lr: 0.1}\n";
        assert_eq!(
            differences(before, now),
            ["seed: was 1, is 2", "stages[0].lr: was \"absent\", is 0.1", "stages[0].steps: was 10, is 20",]
        );
    }

    #[test]
    fn words_survive_a_shell() {
        for (word, quoted) in
            [("runs/a-1", "runs/a-1"), ("my run", "'my run'"), ("it's", r"'it'\''s'"), ("", "''")]
        {
            assert_eq!(shell_word(word), quoted);
        }
    }
}
