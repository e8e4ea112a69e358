//! A recipe small enough to run in a second, and the command that runs it.
#![allow(dead_code)] // each test binary uses a part

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// A folder with a text and a recipe of 12 steps with everything that a checkpoint must keep.
pub struct Project {
    /// The folder.
    pub folder: tempfile::TempDir,
}

const RECIPE: &str = "\
schema: 1
name: tiny
seed: 5
model:
  d_model: 16
  n_layers: 3
  meta_tokens: 4
  embedding: token
  norm: rms_norm
  head: language
  block_pattern:
    kind: parallel
    global_layers: [0]
    kv_sharing: { groups: [[1, 2]] }
    layer:
      mixers:
        - { kind: attention, n_heads: 2, n_kv_heads: 1, window: 8, position: rope, dropout: 0.1 }
        - { kind: mamba, d_inner: 16, d_state: 4, inner_norm: rms_norm }
      fusion: { kind: mean, norm: rms_norm }
      channel_mixer: { kind: swiglu, d_hidden: 24 }
      dropout: 0.1
tokenizer: { kind: byte_level_bpe, vocab_size: 300 }
data: { kind: text, paths: [text.txt], document_separator: \"\\n\\n\" }
trainer:
  device: cpu
  threads: 2
  checkpoint: { every_steps: 3, keep_last: 2, keep_best: 1 }
  log: { every_steps: 1, tensorboard: true }
stages:
  - kind: pretrain
    steps: 12
    batch_size: 4
    accumulation: 2
    sequence_length: 16
    optimizer: { kind: adamw, lr: 0.01 }
    schedule: { kind: wsd, warmup_steps: 2 }
    evaluate_every: 4
  - { kind: evaluate, sequence_length: 16 }
  - { kind: generate, max_new_tokens: 20, prompts: [\"the \"] }
";

impl Project {
    /// Writes the text and the recipe.
    pub fn new() -> Self {
        Self::of(RECIPE)
    }

    /// Writes the text and another recipe.
    pub fn of(recipe: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let words =
            ["the", "state", "of", "a", "layer", "is", "value", "and", "meta", "tokens", "come", "first"];
        let mut text = String::new();
        for i in 0..900_usize {
            text.push_str(words[(i * i + i / 7) % words.len()]);
            text.push_str(if i % 40 == 39 { ".\n\n" } else { " " });
        }
        std::fs::write(folder.path().join("text.txt"), text).expect("the text is written");
        std::fs::write(folder.path().join("recipe.yaml"), recipe).expect("the recipe is written");
        Self { folder }
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The command with these arguments, in the folder.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hymba"));
        command.current_dir(self.folder.path()).args(arguments);
        command
    }

    /// Runs the command to its end.
    pub fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the command starts")
    }

    /// Runs the command and expects it to succeed; its standard output.
    pub fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "hymba {arguments:?}: {}\n{out}\n{err}", output.status);
        out.into_owned()
    }
}

/// Weights and optimizer after step 12, the last of the stage, byte by byte.
pub fn final_bytes(run: &Path, stage: &str) -> (Vec<u8>, Vec<u8>) {
    let folder = run.join(format!("checkpoints/{stage}/step-00000012"));
    let read =
        |name: &str| std::fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    (read("model.safetensors"), read("optimizer.safetensors"))
}
