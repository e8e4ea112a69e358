//! `hymba import`, `hymba export` and `hymba logits`: what can be said.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use hymba_plus::weights::ImportOptions;
use serde_json::{Map, Value};
use tch::Kind;
use training::{checkpoint::Which, trainer::DeviceChoice};

use super::generate::checkpoint;

/// Shown below the options of `hymba import hf`.
const IMPORT_EXAMPLES: &str = "\
The run opens like one that was trained here (generate, logits, export), and its recipe.yaml is a base that a recipe extends.
docs/weights.md says what each format reads.

Examples:
  hymba import hf models/Hymba-1.5B-Base --out runs/hymba-1.5b
  hymba import hf models/Hymba-1.5B-Base --out runs/hymba-decoding --window-reading cache
  hymba import hf models/llama --out runs/llama --ignore-key my_training_note";

/// Shown below the options of `hymba export hf`.
const EXPORT_EXAMPLES: &str = "\
The format is that of the import, else the first that can say the model; what it has no words for is refused.

Examples:
  hymba export hf runs/hymba-1.5b exported
  hymba export hf runs/quickstart exported --format hymba --dtype bfloat16 --max-shard-size 2GB";

/// Shown below the options of `hymba logits`.
pub(super) const LOGITS_EXAMPLES: &str = "\
Reads `input_ids [batch, time]` int64, and where they are there `attention_mask` (0 where a token is padding) and `resets` (1 where
a document begins). Writes `logits [batch, time, vocab]` and taps in 32 bits; taps of the meta tokens as `meta_tokens.NAME`.

Examples:
  hymba logits --model runs/quickstart --ids ids.safetensors --out logits.safetensors
  hymba logits --model models/llama --ids ids.safetensors --out logits.safetensors --taps --dtype float64 --call-length 1";

/// `hymba import`.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub struct Import {
    #[command(subcommand)]
    pub from: ImportFrom,
}

/// The libraries that are read.
#[derive(Debug, Subcommand)]
pub enum ImportFrom {
    /// Make a run of a folder as the Hugging Face libraries write it: config.json, safetensors, tokenizer.json
    #[command(after_help = IMPORT_EXAMPLES)]
    Hf(ImportHf),
}

/// `hymba import hf`.
#[derive(Debug, Args)]
pub struct ImportHf {
    /// The folder
    pub folder: PathBuf,
    /// Folder of the run to make
    #[arg(long, value_name = "RUN")]
    pub out: PathBuf,
    /// Name of the run; left out, that of the folder
    #[arg(long)]
    pub name: Option<String>,
    #[command(flatten)]
    pub reading: Reading,
    /// Leave the tokenizer out
    #[arg(long)]
    pub no_tokenizer: bool,
    /// The token between documents, as the tokenizer spells it; left out, its end-of-text token
    #[arg(long, value_name = "TOKEN", conflicts_with = "no_tokenizer")]
    pub end_of_text: Option<String>,
}

/// How a foreign folder is read.
#[derive(Debug, Args, Default)]
pub struct Reading {
    /// The format; left out, config.json says it (`hymba components weight_format` lists them)
    #[arg(long, value_name = "NAME")]
    pub format: Option<String>,
    #[command(flatten)]
    pub settings: Settings,
    /// A key of config.json that shall not matter although the format does not know it; may be given often
    #[arg(long, value_name = "KEY")]
    pub ignore_key: Vec<String>,
}

impl Reading {
    /// As the importer takes it.
    pub fn options(&self) -> ImportOptions {
        ImportOptions {
            format: self.format.clone(),
            settings: self.settings.values(),
            ignored_keys: self.ignore_key.clone(),
        }
    }
}

/// Settings of a format.
#[derive(Debug, Args, Default)]
pub struct Settings {
    /// What the official Hymba's sliding_window W means: W + 1 tokens, as its full pass (and its training) sees them, or W,
    /// as its cache keeps them [default: prefill]
    #[arg(long, value_name = "READING")]
    pub window_reading: Option<WindowReading>,
    /// A setting of the format, as `window_reading=cache`; may be given often
    #[arg(long, value_name = "KEY=VALUE", value_parser = setting)]
    pub option: Vec<(String, Value)>,
}

/// Readings of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WindowReading {
    /// As in a full pass
    Prefill,
    /// As in decoding
    Cache,
}

impl Settings {
    /// By key.
    pub fn values(&self) -> Map<String, Value> {
        let mut settings: Map<String, Value> = self.option.iter().cloned().collect();
        if let Some(reading) = self.window_reading {
            let name = match reading {
                WindowReading::Prefill => "prefill",
                WindowReading::Cache => "cache",
            };
            settings.insert("window_reading".to_owned(), name.into());
        }
        settings
    }
}

/// `hymba export`.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub struct Export {
    #[command(subcommand)]
    pub to: ExportTo,
}

/// The libraries that are written for.
#[derive(Debug, Subcommand)]
pub enum ExportTo {
    /// Write a run as a folder that the Hugging Face libraries read: config.json, safetensors, tokenizer
    #[command(after_help = EXPORT_EXAMPLES)]
    Hf(ExportHf),
}

/// `hymba export hf`.
#[derive(Debug, Args)]
pub struct ExportHf {
    /// Folder of a run
    pub run: PathBuf,
    /// The folder to make
    pub folder: PathBuf,
    /// The format; left out, that of the import, else the first that can say the model
    #[arg(long, value_name = "NAME")]
    pub format: Option<String>,
    #[command(flatten)]
    pub settings: Settings,
    /// Type of the weights: float32, bfloat16, float16 or float64; left out, that of the imported files, else the run's
    #[arg(long, value_name = "TYPE", value_parser = kind)]
    pub dtype: Option<Kind>,
    /// Most bytes of one file, as 2GB or 500MB
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = size)]
    pub max_shard_size: u64,
    /// Which weights: last, best (lowest validation loss of the kept ones), or the step of a checkpoint
    #[arg(long, value_name = "WHICH", default_value = "last", value_parser = checkpoint)]
    pub checkpoint: Which,
}

/// `hymba logits`.
#[derive(Debug, Args)]
pub struct Logits {
    /// Folder of a run, or of another library's model
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// The tokens, a safetensors file
    #[arg(long, value_name = "FILE")]
    pub ids: PathBuf,
    /// The safetensors file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Write intermediate results too, by their names: layers.3.in_proj, layers.3.branch.attention, layers.3.out, ...
    #[arg(long)]
    pub taps: bool,
    /// Type to compute in: float32, bfloat16, float16 or float64; left out, the model's
    #[arg(long, value_name = "TYPE", value_parser = kind)]
    pub dtype: Option<Kind>,
    /// Tokens of a call; left out, all in one. The result does not depend on it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    pub call_length: Option<i64>,
    /// Where to compute: auto (the first GPU if there is one), cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Which weights of a run: last, best, or the step of a checkpoint
    #[arg(long, value_name = "WHICH", default_value = "last", value_parser = checkpoint)]
    pub checkpoint: Which,
    #[command(flatten)]
    pub reading: Reading,
}

fn kind(text: &str) -> Result<Kind, String> {
    hymba_plus::weights::parse_kind(text)
        .ok_or_else(|| "expected float32, bfloat16, float16 or float64".to_owned())
}

/// `KEY=VALUE`, the value as JSON where it is such, else as text.
fn setting(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
    Ok((key.to_owned(), value))
}

/// A size in bytes: a number, alone or with KB, MB, GB (thousands) or KiB, MiB, GiB.
fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no size: write it as 2GB, 500MB or a number of bytes");
    let split = text.find(|c: char| c.is_alphabetic()).unwrap_or(text.len());
    let (number, unit) = (text[..split].trim(), text[split..].trim());
    let factor = match unit.to_lowercase().as_str() {
        "" | "b" => 1_u64,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(factor).filter(|size| *size > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_settings() {
        for (text, bytes) in [("5GB", 5_000_000_000), ("2 MiB", 2 << 20), ("17", 17), ("3kb", 3000)] {
            assert_eq!(size(text), Ok(bytes));
        }
        for text in ["", "0", "GB", "1.5GB", "-1", "5 apples", "99999999999GB"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert_eq!(setting("a=1"), Ok(("a".to_owned(), Value::from(1))));
        assert_eq!(setting("a=b=c"), Ok(("a".to_owned(), Value::from("b=c"))));
        assert!(setting("a").is_err());
        let settings = Settings {
            window_reading: Some(WindowReading::Cache),
            option: vec![("x".to_owned(), Value::from(true))],
        };
        let expected = serde_json::json!({ "window_reading": "cache", "x": true });
        assert_eq!(Value::Object(settings.values()), expected);
    }
}
