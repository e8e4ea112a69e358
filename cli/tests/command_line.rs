//! What the `hymba` command says, writes and ends with, as a user or a script sees it.

#![allow(clippy::unwrap_used)] // what fails here should fail loudly

mod common;

use std::{
    fs,
    process::{Output, Stdio},
    sync::OnceLock,
};

use common::Project;
use serde_json::Value;

/// A project whose recipe was run once, into `run`, and what that printed.
fn finished() -> &'static (Project, String) {
    static FINISHED: OnceLock<(Project, String)> = OnceLock::new();
    FINISHED.get_or_init(|| {
        let project = one_thread();
        let out = project.succeed(&["run", "recipe.yaml", "--run-dir", "run"]);
        (project, out)
    })
}

/// A project with nothing in it but its recipe and its text.
fn fresh() -> &'static Project {
    static FRESH: OnceLock<Project> = OnceLock::new();
    FRESH.get_or_init(one_thread)
}

/// The project on one thread: tests run beside each other, and threads that wait for a processor are slow.
fn one_thread() -> Project {
    let project = Project::new();
    let recipe = fs::read_to_string(project.path("recipe.yaml")).unwrap();
    fs::write(project.path("recipe.yaml"), recipe.replace("threads: 2", "threads: 1")).unwrap();
    project
}

fn repository(path: &str) -> String {
    format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"))
}

/// Standard error of a command that must end with this code.
fn fail(output: &Output, code: i32) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}\n{err}");
    err.into_owned()
}

#[track_caller]
fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is missing in:\n{text}");
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}:\n{text}"))
}

#[test]
fn validate_ends_with_0_or_1() {
    let project = fresh();
    contains(&project.succeed(&["validate", "recipe.yaml"]), &["recipe.yaml: ok (hash "]);
    fs::write(project.path("wrong.yaml"), "schema: 1\nmodel:\n  d_modle: 8\n").unwrap();
    let error = fail(&project.output(&["validate", "recipe.yaml", "wrong.yaml"]), 1);
    contains(&error, &["wrong.yaml:3:3", "did you mean `d_model`?", "1 of 2 files are not valid"]);
    contains(&fail(&project.output(&["validate", "nowhere.yaml"]), 1), &["there is no file nowhere.yaml"]);
    contains(&fail(&project.output(&["validate"]), 2), &["FILES"]);
    contains(&fail(&project.output(&["vaildate"]), 2), &["validate"]);
}

#[test]
fn validate_as_json_says_where() {
    let project = fresh();
    fs::write(project.path("typo.yaml"), "schema: 1\nmodel:\n  d_modle: 8\n").unwrap();
    let output = project.output(&["validate", "recipe.yaml", "typo.yaml", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report = json(&String::from_utf8(output.stdout).unwrap());
    assert_eq!((&report[0]["valid"], &report[1]["valid"]), (&true.into(), &false.into()));
    assert_eq!(report[0]["hash"].as_str().map(str::len), Some(64));
    let problems = report[1]["problems"].as_array().unwrap();
    let typo = problems.iter().find(|problem| problem["path"] == "model.d_modle").unwrap();
    assert_eq!((typo["line"].as_i64(), typo["column"].as_i64()), (Some(3), Some(3)));
    assert_eq!((typo["code"].as_str(), typo["file"].as_str()), (Some("unknown-key"), Some("typo.yaml")));
}

#[test]
fn plan_adds_up() {
    let project = fresh();
    let report = json(&project.succeed(&["plan", "recipe.yaml", "--json", "--tokens", "100"]));
    let totals = &report["totals"];
    assert_eq!((totals["tokens"].as_i64(), totals["parameters"].as_i64()), (Some(100), Some(13_147)));
    assert!(totals["flops_per_token"].as_f64().unwrap() > 2.0 * 13_147.0 - 2.0 * 300.0 * 16.0);
    assert_eq!(totals["weight_bytes"].as_i64(), Some(16 * 13_147));
    contains(&project.succeed(&["plan", "recipe.yaml"]), &["attention + mamba", "13,147", "of layer 1"]);
    // Without `--tokens` it is the recipe's sequence length.
    let report = json(&project.succeed(&["plan", "recipe.yaml", "--json"]));
    assert_eq!(report["totals"]["tokens"], 16);
    fs::write(project.path("empty.yaml"), "schema: 1\n").unwrap();
    contains(&fail(&project.output(&["plan", "empty.yaml"]), 1), &["no section `model`"]);
}

#[test]
fn the_released_hymba_has_its_parameters() {
    let plan = fresh().succeed(&["plan", &repository("configs/models/hymba-1.5b.yaml")]);
    contains(&plan, &["1,522,797,824"]);
}

#[test]
fn components_are_listed() {
    let project = fresh();
    let all = project.succeed(&["components"]);
    contains(
        &all,
        &["sequence_mixer", "attention", "stage", "pretrain", "evaluate", "byte_level_bpe", "adamw"],
    );
    let slot = project.succeed(&["components", "fusion"]);
    contains(
        &slot,
        &["kind: learned_beta", "init: number, default 0.5", "norm: component of slot norm, required"],
    );
    assert!(!slot.contains("swiglu"), "{slot}");
    let listed = json(&project.succeed(&["components", "sequence_mixer", "--json"]));
    let mamba =
        listed[0]["components"].as_array().unwrap().iter().find(|one| one["kind"] == "mamba").unwrap();
    assert_eq!(mamba["schema"]["properties"]["d_state"]["default"], 16);
    let error = fail(&project.output(&["components", "mixer"]), 1);
    contains(&error, &["there is no slot `mixer`", "sequence_mixer"]);
}

#[test]
fn a_shown_recipe_is_the_recipe() {
    let project = fresh();
    let layers = ["--set", "stages[0].steps=9", "--set", "seed=8"];
    let shown = project.succeed(&[&["config", "show", "recipe.yaml"][..], &layers].concat());
    fs::create_dir_all(project.path("elsewhere")).unwrap();
    fs::write(project.path("elsewhere/shown.yaml"), &shown).unwrap();
    let hash = |arguments: &[&str]| json(&project.succeed(arguments))[0]["hash"].clone();
    let original = hash(&[&["validate", "recipe.yaml", "--json"][..], &layers].concat());
    assert_eq!(hash(&["validate", "elsewhere/shown.yaml", "--json"]), original);
    assert_ne!(hash(&["validate", "recipe.yaml", "--json"]), original);
    assert_eq!(project.succeed(&["config", "show", "elsewhere/shown.yaml"]), shown);
}

#[test]
fn a_key_is_explained() {
    let project = fresh();
    let text = project.succeed(&[
        "config",
        "explain",
        "model.meta_tokens",
        "recipe.yaml",
        "--set",
        "model.meta_tokens=8",
    ]);
    contains(&text, &["model.meta_tokens = 8", "--set", "recipe.yaml:7:3", "which says 4", "default: 0"]);
    let text = project.succeed(&["config", "explain", "stages[0].gradient_clip", "recipe.yaml"]);
    contains(&text, &["default: 1.0"]);
    let error = fail(&project.output(&["config", "explain", "model.d_modle", "recipe.yaml"]), 1);
    contains(&error, &["d_modle", "d_model"]);
}

#[test]
fn schema_and_completions() {
    let project = fresh();
    let schema = json(&project.succeed(&["schema"]));
    assert!(schema["properties"]["model"].is_object() && schema["properties"]["stages"].is_object());
    contains(&project.succeed(&["completions", "bash"]), &["_hymba()", "validate", "--run-dir"]);
    fail(&project.output(&["completions", "dos"]), 2);
}

#[test]
fn a_run_directory_holds_what_a_run_leaves() {
    let (project, out) = finished();
    contains(out, &["13,147 parameters", "== pretrain", "== evaluate", "== generate", "perplexity"]);
    assert!(!out.contains('\u{1b}') && !out.contains('\r'), "a pipe gets plain lines:\n{out}");
    let run = project.path("run");
    for file in
        ["recipe.yaml", "run.json", "environment.json", "data.json", "tokenizer.json", "metrics.jsonl"]
    {
        assert!(fs::metadata(run.join(file)).unwrap().len() > 0, "{file}");
    }
    for file in
        ["run.json", "environment.json", "data.json", "tokenizer.json", "stages/evaluate/evaluation.json"]
    {
        json(&fs::read_to_string(run.join(file)).unwrap());
    }
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let steps = metrics.lines().map(json).filter(|record| record["kind"] == "train").count();
    assert_eq!(steps, 12);
    for folder in ["tensorboard/pretrain", "checkpoints/pretrain/step-00000012", "stages/generate"] {
        assert!(fs::read_dir(run.join(folder)).unwrap().next().is_some(), "{folder}");
    }
    // The recipe in it is the recipe: it is valid where it lies, and has the hash that the run noted.
    let report = json(&project.succeed(&["validate", "run/recipe.yaml", "--json"]));
    let record = json(&fs::read_to_string(run.join("run.json")).unwrap());
    assert_eq!(report[0]["hash"], record["recipe_hash"]);
    assert_eq!(report[0]["hash"], json(&project.succeed(&["validate", "recipe.yaml", "--json"]))[0]["hash"]);
}

#[test]
fn a_run_is_not_written_over() {
    let (project, _) = finished();
    let error = fail(&project.output(&["run", "recipe.yaml", "--run-dir", "run"]), 1);
    contains(&error, &["--resume", "--run-dir", "--overwrite"]);
    let changed = ["run", "recipe.yaml", "--run-dir", "run", "--resume", "--set", "stages[0].steps=13"];
    let error = fail(&project.output(&changed), 1);
    contains(&error, &["another recipe", "stages[0].steps: was 12, is 13", "--force"]);
    fail(&project.output(&["run", "recipe.yaml", "--force"]), 2);
    fail(&project.output(&["run", "recipe.yaml", "--resume", "--overwrite"]), 2);
}

#[test]
fn resuming_nothing_starts_afresh() {
    let project = fresh();
    let short = ["--set", "stages=[{kind: pretrain, steps: 1, sequence_length: 16}]"];
    let out =
        project.succeed(&[&["run", "recipe.yaml", "--run-dir", "new", "--resume"][..], &short].concat());
    contains(&out, &["nothing to continue in new: starting afresh", "step 1/1"]);
}

#[test]
fn generation_repeats_itself_for_a_seed() {
    let (project, _) = finished();
    let generate = |seed: &str| {
        let arguments = ["generate", "run", "--prompt", "the ", "--max-new-tokens", "20", "--seed", seed];
        let output = project.command(&arguments).env("OMP_NUM_THREADS", "1").output().unwrap();
        assert_eq!(fail(&output, 0), "");
        String::from_utf8(output.stdout).unwrap()
    };
    let first = generate("3");
    assert!(first.starts_with("the ") && first.len() > 8, "{first}");
    assert_eq!(generate("3"), first);
    assert_ne!(generate("4"), first);
    let mut child =
        project.command(&["generate", "run", "--prompt", "-", "--max-new-tokens", "20", "--seed", "3"]);
    let child = child.env("OMP_NUM_THREADS", "1").stdin(Stdio::piped());
    let mut child = child.stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"the ").unwrap();
    assert_eq!(String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap(), first);
    contains(&fail(&project.output(&["generate", "nowhere"]), 1), &["not a run directory"]);
    for wrong in [["--temperature", "-1"], ["--temperature", "nan"], ["--top-p", "1.5"], ["--top-k", "0"]] {
        let error = fail(&project.output(&[&["generate", "run"][..], &wrong].concat()), 2);
        contains(&error, &wrong);
    }
}

#[test]
fn generation_streams() {
    use std::io::Read;

    let (project, _) = finished();
    let mut child = project.command(&["generate", "run", "--prompt", "the ", "--max-new-tokens", "100000"]);
    let child = child.env("OMP_NUM_THREADS", "1").stdout(Stdio::piped());
    let mut child = child.stderr(Stdio::piped()).spawn().unwrap();
    // The first characters come long before the last token; a reader that has enough ends it quietly.
    let mut start = [0; 12];
    let mut reader = child.stdout.take().unwrap();
    reader.read_exact(&mut start).unwrap();
    assert!(start.starts_with(b"the "), "{start:?}");
    drop(reader);
    let output = child.wait_with_output().unwrap();
    let error = fail(&output, 0);
    assert!(error.is_empty(), "{error}");
}

/// `hymba ... | head`: a reader that goes away is no panic and no error.
#[test]
fn a_pipe_may_close() {
    let (project, _) = finished();
    let commands: [&[&str]; 8] = [
        &["components", "sequence_mixer"],
        &["schema"],
        &["plan", "recipe.yaml", "--json"],
        &["config", "show", "recipe.yaml"],
        &["completions", "zsh"],
        &["validate", "recipe.yaml"],
        &["--help"],
        &[
            "run",
            "recipe.yaml",
            "--run-dir",
            "closed",
            "--set",
            "stages=[{kind: pretrain, steps: 2, sequence_length: 16}]",
        ],
    ];
    for arguments in commands {
        let mut child =
            project.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let error = fail(&output, 0);
        assert!(error.is_empty(), "{arguments:?}:\n{error}");
    }
    // A run goes on to its end.
    assert!(project.path("closed/checkpoints/pretrain/step-00000002").is_dir());
}

/// The example's component is another program's: the stock binary refuses its recipe where it is named.
#[test]
fn a_plugins_recipe_is_refused() {
    let recipe = repository("examples/plugin/recipe.yaml");
    let error = fail(&fresh().output(&["run", &recipe]), 1);
    contains(&error, &["recipe.yaml:20:26", "there is no sequence_mixer named `decay_attention`"]);
    let output = fresh().output(&["validate", &recipe, "--json"]);
    let problems = json(&String::from_utf8(output.stdout).unwrap())[0]["problems"].clone();
    assert_eq!(problems.as_array().map(Vec::len), Some(1), "{problems}");
    contains(
        problems[0]["rule"].as_str().unwrap(),
        &["a sequence_mixer is one of: attention, mamba, mamba2, mla, mlstm, mlstm_block, none, slstm"],
    );
    let help = problems[0]["help"].as_str().unwrap();
    contains(help, &["a component of a plugin exists only in a program that its crate is linked into"]);
}
