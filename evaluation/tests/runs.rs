//! Runs from a recipe to a model that is measured and used: what they refuse, repeat, leave behind and need.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use components as _;
use evaluation::ngram::{NGram, bytes_of};
use hymba_plus::{
    config::{Diagnostics, LoadOptions, Recipe},
    generate::{GenerateOptions, Sampling, generate},
};
use recipes::{
    GeneratedText, SavedRun, StageError, TextEvent, TextOptions, Which, generate_text, prompt_tokens,
};
use tch::{Device, Kind};
use training::{
    run::RunOptions,
    slot::tokenizer,
    telemetry::{Console, MetricRecord, MetricsFile},
    tokenizer::Tokenizer,
};

const RECIPE: &str = "\
schema: 1
name: tiny
seed: 5
model:
  d_model: 8
  n_layers: 1
  max_positions: 16
  embedding: token
  norm: rms_norm
  head: language
  block_pattern:
    kind: parallel
    layer:
      mixers: [{ kind: attention, n_heads: 1, head_dim: 8, position: none }]
      fusion: none
      channel_mixer: none
tokenizer: bytes
data: { kind: text, paths: [text.txt], document_separator: \"\\n\", validation_fraction: 0.2, split: documents }
trainer: { device: cpu, threads: 1, checkpoint: { every_steps: 2 }, log: { every_steps: 1, tensorboard: false } }
stages:
  - { kind: pretrain, steps: 4, batch_size: 2, sequence_length: 8, schedule: constant }
  - { kind: evaluate, sequence_length: 8 }
  - { kind: generate, max_new_tokens: 3, prompts: [ab] }
";

/// What a recipe has, and what stands there instead.
type Changes<'a> = &'a [(&'a str, &'a str)];

/// One run at a time: libtorch's random numbers are the process'.
static ALONE: Mutex<()> = Mutex::new(());

/// A folder with a text of short documents.
struct Project(tempfile::TempDir);

impl Project {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let documents: Vec<String> =
            (0..40).map(|i| format!("{}{}", "ab".repeat(1 + i % 5), i % 3)).collect();
        std::fs::write(folder.path().join("text.txt"), documents.join("\n")).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn recipe(&self, changes: Changes<'_>) -> Result<Recipe, Diagnostics> {
        let text = changes.iter().fold(RECIPE.to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        });
        let options = LoadOptions { cwd: Some(self.0.path().to_owned()), ..LoadOptions::default() };
        Recipe::from_yaml(&text, &options)
    }

    /// Runs a changed recipe in the folder `run`; what it said.
    fn run(&self, changes: Changes<'_>, change: impl FnOnce(&mut RunOptions)) -> String {
        let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let pipe = Pipe::default();
        let mut options = RunOptions::new(self.path("run"), "hymba run recipe.yaml");
        options.console = Console::to(pipe.clone());
        change(&mut options);
        recipes::run(&self.recipe(changes).unwrap(), options).unwrap();
        let said = pipe.0.lock().unwrap().clone();
        String::from_utf8(said).unwrap()
    }

    fn metrics(&self) -> Vec<MetricRecord> {
        MetricsFile::read(&self.path("run/metrics.jsonl")).unwrap()
    }
}

#[derive(Clone, Default)]
struct Pipe(Arc<Mutex<Vec<u8>>>);

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Every file below a directory with its bytes.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(contents(&path));
        } else {
            all.insert(path.clone(), std::fs::read(path).unwrap());
        }
    }
    all
}

/// One text, greedily; what was heard of it as it came.
fn continue_text(saved: &SavedRun, prompt: &str, most: usize) -> Result<(GeneratedText, String), StageError> {
    let mut options = TextOptions::default();
    (options.generate.max_new_tokens, options.generate.sampling) = (most, Sampling::greedy());
    let (ids, mut heard) = (prompt_tokens(saved.tokenizer().unwrap(), prompt)?, String::new());
    let mut texts = generate_text(&saved.model, saved.tokenizer().unwrap(), &[ids], &options, |event| {
        if let TextEvent::Piece(0, text) = event {
            heard.push_str(text);
        }
        true
    })?;
    Ok((texts.remove(0), heard))
}

#[test]
fn what_cannot_work_is_refused_before_it_runs() {
    let project = Project::new();
    let stages = RECIPE[RECIPE.find("stages:").unwrap()..].to_owned();
    let pretrain =
        "  - { kind: pretrain, steps: 4, batch_size: 2, sequence_length: 8, schedule: constant }\n";
    let huge = "batch_size: 1000000000000, accumulation: 999999999999";
    let table: [(Changes<'_>, &[&str]); 11] = [
        (&[(&stages, "stages: []\n")], &["`stages` has 0 items"]),
        (&[(pretrain, "")], &["stages[0]", "stage `evaluate` needs a model, and no stage before it"]),
        (
            &[("validation_fraction: 0.2", "validation_fraction: 0")],
            &["stage `evaluate` has nothing to measure on"],
        ),
        (
            &[("batch_size: 2, sequence_length: 8", "sequence_length: 17")],
            &["stages[0].sequence_length", "made for 16"],
        ),
        (
            &[("evaluate, sequence_length: 8", "evaluate, sequence_length: 17")],
            &["stages[1].sequence_length", "made for 16"],
        ),
        (&[("max_new_tokens: 3", "max_new_tokens: 17")], &["stages[2].max_new_tokens", "made for 16"]),
        (
            &[("max_new_tokens: 3", "max_new_tokens: 18446744073709551615")],
            &["stages[2].max_new_tokens", "made for 16"],
        ),
        (
            &[("head: language", "head: none")],
            &["stage `pretrain` needs logits over the vocabulary", "use `head: language`"],
        ),
        (&[("max_new_tokens: 3", "max_new_tokens: 3, top_p: 0")], &["top_p"]),
        (&[("batch_size: 2", huge)], &["stages[0].accumulation", "equal parts"]),
        (&[("steps: 4", "steps: 4, best_metric: x")], &["best_metric"]),
    ];
    for (changes, words) in table {
        let problems = project.recipe(changes).unwrap_err().render(false, 400);
        assert!(words.iter().all(|word| problems.contains(word)), "{changes:?}:\n{problems}");
    }
}

#[test]
fn a_finished_run_does_nothing_again() {
    let project = Project::new();
    project.run(&[], |_| ());
    let files = |project: &Project| {
        let mut files = contents(&project.path("run"));
        files.retain(|path, _| !path.ends_with("run.json") && !path.ends_with("environment.json"));
        files
    };
    let before = files(&project);
    let said = project.run(&[], |options| options.resume = true);
    assert!(said.contains("going on after step 4 of 4"), "{said}");
    for stage in ["evaluate", "generate"] {
        assert!(said.contains(&format!("{stage}: finished before; what it wrote is in")), "{said}");
    }
    assert!(files(&project) == before, "a file has changed");

    // With more steps, what was measured is measured again, and the metrics are those of one run.
    let force = |options: &mut RunOptions| (options.resume, options.force) = (true, true);
    let said = project.run(&[("steps: 4", "steps: 6")], force);
    assert!(!said.contains("finished before"), "{said}");
    let steps = |kind: &str| -> Vec<u64> {
        project.metrics().iter().filter(|line| line.kind == kind).map(|line| line.step).collect()
    };
    assert_eq!(steps("train"), [1, 2, 3, 4, 5, 6]);
    assert_eq!(steps("result").len(), 1);
    // A change of what only measures does not train again.
    let said = project.run(
        &[("steps: 4", "steps: 6"), ("evaluate, sequence_length: 8", "evaluate, sequence_length: 16")],
        |options| {
            force(options);
        },
    );
    assert!(said.contains("going on after step 6 of 6") && !said.contains("finished before"), "{said}");
    assert_eq!((steps("train").len(), steps("result").len()), (6, 1));
}

#[test]
fn what_learnt_from_a_stage_that_goes_on_begins_again() {
    let project = Project::new();
    let measure = "  - { kind: evaluate, sequence_length: 8 }\n";
    let twice = "  - { kind: pretrain, steps: 2, batch_size: 2, sequence_length: 8, schedule: constant }\n";
    project.run(&[(measure, twice)], |_| ());
    let force = |options: &mut RunOptions| (options.resume, options.force) = (true, true);
    let said = project.run(&[(measure, twice), ("steps: 4", "steps: 6")], |options| {
        force(options);
    });
    assert!(said.contains("pretrain-2: begins again"), "{said}");
    assert!(project.path("run/checkpoints/pretrain-2.before-1/step-00000002").exists());
    let lines = project.metrics();
    let steps = |stage: &str| lines.iter().filter(|line| line.stage == stage && line.kind == "train").count();
    assert_eq!((steps("pretrain"), steps("pretrain-2")), (6, 2));
}

#[test]
fn a_run_directory_stands_alone() {
    let project = Project::new();
    let bytes = hymba_plus::registry::Component::<tokenizer>::of("bytes").make().unwrap();
    bytes.build(&[], &|_| PathBuf::new()).unwrap().save(&project.path("elsewhere/tokenizer.json")).unwrap();
    let changes = [
        ("tokenizer: bytes", "tokenizer: { kind: file, path: elsewhere/tokenizer.json }"),
        ("device: cpu,", "device: cpu, precision: float64,"),
    ];
    project.run(&changes, |_| ());
    std::fs::remove_dir_all(project.path("elsewhere")).unwrap();
    std::fs::remove_file(project.path("text.txt")).unwrap();
    let run = project.path("run");
    // As beside a run that is under way: a checkpoint that is being written, and one that is damaged.
    let unfinished = run.join("checkpoints/pretrain/.step-00000006.tmp-4194304/model.safetensors");
    std::fs::create_dir_all(unfinished.parent().unwrap()).unwrap();
    std::fs::write(unfinished, "half").unwrap();
    let before = contents(&run);
    for (which, step) in [(Which::Last, 4), (Which::Step(2), 2)] {
        let saved = SavedRun::open(&run, which, Device::Cpu).unwrap();
        assert!(saved.checkpoint.ends_with(format!("step-{step:08}")) && saved.passed_over.is_empty());
        assert_eq!(saved.model.options().kind, Kind::Double);
        continue_text(&saved, "ab", 3).unwrap();
    }
    assert!(SavedRun::open(&run, Which::Best, Device::Cpu).is_ok());
    let error = SavedRun::open(&run, Which::Step(3), Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("no checkpoint of step 3; its steps are 2, 4"), "{error}");
    assert!(contents(&run) == before, "opening a run changes it");
    std::fs::write(run.join("checkpoints/pretrain/step-00000004/model.safetensors"), "torn").unwrap();
    let before = contents(&run);
    let saved = SavedRun::open(&run, Which::Last, Device::Cpu).unwrap();
    assert!(saved.checkpoint.ends_with("step-00000002") && saved.passed_over.len() == 1);
    assert!(contents(&run) == before, "opening a run changes it");
    let error = SavedRun::open(&project.path("."), Which::Last, Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("is not a run directory"), "{error}");
}

#[test]
fn every_row_of_the_table_pays_for_the_same() {
    let project = Project::new();
    let said = project.run(&[], |_| ());
    assert!(said.contains("read by the network in sequences of 8"), "{said}");
    let report = std::fs::read(project.path("run/stages/evaluate/evaluation.json")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    let text = std::fs::read_to_string(project.path("text.txt")).unwrap();
    let documents: Vec<&str> = text.lines().collect();
    let (train, held_out) = documents.split_at(32);
    let bytes: usize = held_out.iter().map(|document| document.len()).sum();
    // A byte is a token here: each document has its bytes and its end.
    assert_eq!(report["tokens"], bytes + held_out.len());
    assert_eq!((&report["bytes"], &report["sequence_length"]), (&bytes.into(), &8.into()));
    let bits = |name: &str| {
        let rows = report["results"].as_array().unwrap();
        let row = rows.iter().find(|row| row["name"].as_str().unwrap().starts_with(name));
        row.unwrap()["bits_per_byte"].as_f64().unwrap()
    };
    let (train, held_out) = (bytes_of(train.iter().copied()), bytes_of(held_out.iter().copied()));
    let slices = |sequences: &[Vec<u32>]| {
        sequences.iter().map(|sequence| sequence.as_slice().to_vec()).collect::<Vec<_>>()
    };
    let (train, held_out) = (slices(&train), slices(&held_out));
    let train: Vec<&[u32]> = train.iter().map(Vec::as_slice).collect();
    let held_out: Vec<&[u32]> = held_out.iter().map(Vec::as_slice).collect();
    for (order, name) in [(2, "bigram of bytes"), (3, "trigram of bytes")] {
        let (sum, count) = NGram::train(order, 257, &train).loss(&held_out);
        assert_eq!(count as u64, report["tokens"].as_u64().unwrap());
        assert!((bits(name) - sum / std::f64::consts::LN_2 / bytes as f64).abs() < 1e-12);
    }
    // Over tokens that are bytes the two bigrams differ by one symbol of the vocabulary only.
    assert!((bits("bigram of bytes") - bits("bigram of the same tokens")).abs() < 0.01);
}

#[test]
fn a_text_begins_as_documents_do_and_ends_where_the_model_does() {
    let project = Project::new();
    project.run(&[], |_| ());
    let saved = SavedRun::open(&project.path("run"), Which::Last, Device::Cpu).unwrap();
    let tokenizer: &Tokenizer = saved.tokenizer().unwrap();
    let eos = i64::from(tokenizer.eos());
    // Without a token that ends it, so that the length alone does.
    let expected = |prompt: &[i64], most: usize| {
        let options = GenerateOptions {
            max_new_tokens: most,
            stop_tokens: vec![eos],
            sampling: Sampling::greedy(),
            ..GenerateOptions::default()
        };
        let ids = generate(&saved.model, &[prompt.to_vec()], &options).unwrap().remove(0).tokens;
        let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
        (ids.len(), tokenizer.decode(&ids).unwrap())
    };
    for (prompt, ids) in [("", vec![eos]), ("ab", vec![eos, 97, 98])] {
        let (count, text) = expected(&ids, 5);
        let (new, heard) = continue_text(&saved, prompt, 5).unwrap();
        assert_eq!((new.sequence.tokens.len(), &new.text, heard), (count, &text, text.clone()));
    }
    let (new, _) = continue_text(&saved, &"a".repeat(15), usize::MAX).unwrap();
    let tokens = new.sequence.tokens.len();
    assert!(tokens <= 1, "{new:?}");
    assert_eq!(new.is_cut(), tokens == 1);
    let error = continue_text(&saved, &"a".repeat(16), 1).unwrap_err().to_string();
    assert!(error.contains("17 tokens") && error.contains("made for 16"), "{error}");
}
