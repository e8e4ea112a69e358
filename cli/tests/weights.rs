//! Weights of other libraries through the command: imported, run, exported.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tch::{Kind, Tensor};
use training::checkpoint::{TensorFile, write_tensors};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/transformers").join(name)
}

fn hymba(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hymba")).current_dir(folder).args(arguments).output().unwrap()
}

#[track_caller]
fn succeed(folder: &Path, arguments: &[&str]) -> String {
    let output = hymba(folder, arguments);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "hymba {arguments:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

#[track_caller]
fn fail(folder: &Path, arguments: &[&str]) -> String {
    let output = hymba(folder, arguments);
    assert_eq!(output.status.code(), Some(1), "hymba {arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A copy of a fixture without its expected numbers, as a user has a model.
fn model(folder: &Path, name: &str) -> String {
    let to = folder.join(name);
    std::fs::create_dir(&to).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture(name).join(file), to.join(file)).unwrap();
    }
    to.to_str().unwrap().to_owned()
}

fn read(path: &Path, name: &str) -> Tensor {
    TensorFile::open(path).unwrap().read(name).unwrap()
}

fn write_ids(path: &Path, tensors: &[(&str, Tensor)]) {
    let tensors: Vec<_> = tensors.iter().map(|(name, t)| ((*name).to_owned(), t.shallow_clone())).collect();
    write_tensors(path, &tensors).unwrap();
}

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

#[test]
fn an_imported_model_runs_as_a_run_and_as_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    for name in ["llama3_tied", "mistral", "mamba"] {
        let source = model(here, name);
        let io = fixture(name).join("io.safetensors");
        write_ids(&here.join("ids.safetensors"), &[("input_ids", read(&io, "input_ids"))]);
        let run = format!("runs/{name}");
        let said = succeed(here, &["import", "hf", &source, "--out", &run, "--name", "imported"]);
        assert!(said.contains("without effect on the model: ") && said.contains("no tokenizer"), "{said}");
        let recipe = std::fs::read_to_string(here.join(&run).join("recipe.yaml")).unwrap();
        assert!(recipe.contains("name: imported\n"), "{recipe}");
        let logits = ["logits", "--ids", "ids.safetensors", "--out", "o.safetensors", "--device", "cpu"];
        let mut seen = Vec::new();
        for more in [
            vec!["--model", run.as_str()],
            vec!["--model", source.as_str(), "--taps"],
            vec!["--model", run.as_str(), "--call-length", "1", "--dtype", "float64"],
            vec!["--model", run.as_str(), "--call-length", "7"],
        ] {
            succeed(here, &[&logits[..], &more].concat());
            let out = TensorFile::open(&here.join("o.safetensors")).unwrap();
            assert_eq!(out.names().contains("layers.1.out"), more.contains(&"--taps"));
            seen.push(out.read("logits").unwrap());
        }
        let expected = read(&io, "logits_full");
        for logits in &seen {
            assert_eq!(logits.kind(), Kind::Float);
            assert!(difference(logits, &expected) < 1e-4, "{name}: {}", difference(logits, &expected));
        }
        let back = format!("{name}-exported");
        succeed(here, &["export", "hf", &run, &back, "--max-shard-size", "10KB"]);
        succeed(here, &[&logits[..], &["--model", &back]].concat());
        let again = read(&here.join("o.safetensors"), "logits");
        assert!(again.equal(&seen[0]), "{name}: the exported model computes something else");
        let error = fail(here, &["generate", &run, "--prompt", "a"]);
        assert!(error.contains("this run has no tokenizer"), "{error}");
        let error = fail(here, &["import", "hf", &source, "--out", &run]);
        assert!(error.contains("exists and is not empty"), "{error}");
        let error = fail(here, &["export", "hf", &run, &back]);
        assert!(error.contains("exists and is not empty"), "{error}");
    }
}

#[test]
fn masks_and_documents_reach_the_logits_and_the_taps() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let source = model(here, "mistral");
    let ids = read(&fixture("mistral").join("io.safetensors"), "input_ids");
    let row = ids.narrow(0, 0, 1).narrow(1, 0, 20);
    // The row behind 4 tokens of padding, and once more as the second document of a row.
    let padded = Tensor::cat(&[&Tensor::zeros([1, 4], (Kind::Int64, tch::Device::Cpu)), &row], 1);
    let mask = Tensor::arange(24, (Kind::Int64, tch::Device::Cpu)).ge(4).to_kind(Kind::Int64).unsqueeze(0);
    let resets = Tensor::arange(24, (Kind::Int64, tch::Device::Cpu)).eq(4).to_kind(Kind::Int64).unsqueeze(0);
    let mut outputs = Vec::new();
    for tensors in [
        vec![("input_ids", row)],
        vec![("input_ids", padded.shallow_clone()), ("attention_mask", mask)],
        vec![("input_ids", padded), ("resets", resets)],
    ] {
        write_ids(&here.join("ids.safetensors"), &tensors);
        let words = ["--ids", "ids.safetensors", "--out", "o.safetensors", "--taps", "--call-length", "6"];
        let said = succeed(here, &[&["logits", "--model", &source][..], &words].concat());
        assert!(said.contains("taps"), "{said}");
        let out = TensorFile::open(&here.join("o.safetensors")).unwrap();
        outputs.push((out.read("logits").unwrap(), out.read("layers.1.out").unwrap()));
    }
    let tail = |tensor: &Tensor| tensor.narrow(1, tensor.size()[1] - 20, 20);
    for (logits, tap) in &outputs[1..] {
        assert!(difference(&tail(logits), &outputs[0].0) < 1e-4);
        assert!(difference(&tail(tap), &outputs[0].1) < 1e-4);
    }
}

#[test]
fn wrong_ids_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let source = model(here, "llama");
    let good = read(&fixture("llama").join("io.safetensors"), "input_ids");
    let cases = [
        (vec![("input_ids", &good + 1000)], "the model knows tokens 0 to 63"),
        (vec![("input_ids", good.to_kind(Kind::Float))], "expected 64-bit integers"),
        (vec![("input_ids", good.reshape([-1]))], "expected [batch, time]"),
        (vec![("ids", good.shallow_clone())], "`ids` is none of input_ids, attention_mask, valid, resets"),
        (vec![("valid", good.shallow_clone())], "it has no `input_ids`"),
        (vec![("input_ids", good.shallow_clone()), ("valid", good.narrow(1, 0, 3))], "`valid` is [2, 3]"),
    ];
    for (tensors, part) in cases {
        write_ids(&here.join("ids.safetensors"), &tensors);
        let words = ["logits", "--model", &source, "--ids", "ids.safetensors", "--out", "o.safetensors"];
        let error = fail(here, &words);
        assert!(error.contains(part), "{part:?} is not in\n{error}");
        assert!(!here.join("o.safetensors").exists());
    }
    write_ids(&here.join("ids.safetensors"), &[("input_ids", good)]);
    let error = fail(here, &["logits", "--model", ".", "--ids", "ids.safetensors", "--out", "o.safetensors"]);
    assert!(error.contains("neither a run (recipe.yaml) nor a folder"), "{error}");
}

/// A run that was trained here, tokenizer and all, as a folder of another library and back.
#[test]
fn a_trained_run_goes_out_with_its_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    std::fs::write(here.join("text.txt"), "a state is a value. a layer is a function.\n".repeat(40)).unwrap();
    let recipe = "\
schema: 1
name: tiny
model:
  d_model: 16
  n_layers: 2
  meta_tokens: 3
  embedding: token
  norm: rms_norm
  head: language
  block_pattern:
    kind: parallel
    global_layers: [0]
    layer:
      mixers:
        - { kind: attention, n_heads: 2, n_kv_heads: 1, v_head_dim: 16, window: 8, position: rope }
        - { kind: mamba, d_inner: 32, d_state: 4, inner_norm: rms_norm }
      fusion: { kind: mean, norm: rms_norm }
      channel_mixer: { kind: swiglu, d_hidden: 24 }
tokenizer: { kind: byte_level_bpe, vocab_size: 280 }
data: { kind: text, paths: [text.txt] }
trainer: { device: cpu, log: { tensorboard: false } }
stages:
  - { kind: pretrain, steps: 2, batch_size: 2, sequence_length: 8, optimizer: { kind: adamw, lr: 0.01 }, schedule: constant }
";
    std::fs::write(here.join("recipe.yaml"), recipe).unwrap();
    succeed(here, &["run", "recipe.yaml", "--run-dir", "trained"]);
    let said =
        succeed(here, &["export", "hf", "trained", "out", "--window-reading", "cache", "--format", "hymba"]);
    assert!(said.contains("format hymba"), "{said}");
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(here.join("out/config.json")).unwrap()).unwrap();
    assert_eq!((&config["sliding_window"], &config["num_memory_tokens"]), (&8.into(), &3.into()));
    assert_eq!(config["global_attn_idx"], serde_json::json!([0]));
    let tokenizer: serde_json::Value =
        serde_json::from_slice(&std::fs::read(here.join("out/tokenizer_config.json")).unwrap()).unwrap();
    assert_eq!(tokenizer["bos_token"], "<|endoftext|>");
    assert_eq!(tokenizer["tokenizer_class"], "PreTrainedTokenizerFast");
    let said = succeed(here, &["import", "hf", "out", "--out", "again", "--window-reading", "cache"]);
    assert!(said.contains("sliding_window 8 becomes window 8"), "{said}");
    let words = ["--prompt", "a state", "--max-new-tokens", "5", "--temperature", "0", "--device", "cpu"];
    let [first, second] =
        ["trained", "again"].map(|run| succeed(here, &[&["generate", run][..], &words].concat()));
    assert_eq!(first, second);
    let error = fail(here, &["export", "hf", "trained", "other", "--format", "llama"]);
    assert!(
        error.contains("this model cannot be written as llama") && !here.join("other").exists(),
        "{error}"
    );
}
