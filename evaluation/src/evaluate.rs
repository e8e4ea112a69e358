//! The stage `evaluate`: the model's validation loss beside n-gram models of the same text.

use std::fmt::Write;

use hymba_plus::{
    component_config,
    config::Recipe,
    plan::ModelPlan,
    prelude::register,
    registry::{Finding, Section},
};
use recipes::{Stage, StageContext, StageError, check_language_model, stage, validation_loss};
use serde_json::json;
use torch_bridge::guards::NoGrad;
use training::{
    data::{Document, TokenStream},
    telemetry::MetricRecord,
    text_data::TextData,
    trainer::DataSection,
};

use crate::ngram::{NGram, bytes_of};

/// Measures the model on the validation split: loss per token, perplexity, bits per byte, beside n-gram models that
/// counted the training split. Each of them pays for every document's first symbol and for its end. The numbers are kept in the run directory as `stages/NAME/evaluation.json`.
#[component_config]
pub struct Evaluate {
    /// Tokens per sequence.
    #[default(256)]
    #[schemars(range(min = 1))]
    pub sequence_length: usize,
    /// Sequences at a time.
    #[default(8)]
    #[schemars(range(min = 1))]
    pub batch_size: usize,
    /// Whether n-gram models are counted for comparison.
    #[default(true)]
    pub baselines: bool,
}

register!(stage "evaluate" => Evaluate);

/// One line of the table.
struct Row {
    name: String,
    /// Nats per token of the run's tokenizer, where that is what the model predicts.
    loss: Option<f64>,
    bits_per_byte: f64,
}

impl Stage for Evaluate {
    fn check(&self, recipe: &Recipe, plan: Option<&ModelPlan>, path: &str) -> Vec<Finding> {
        let length = ("sequence_length", self.sequence_length as u64);
        let mut findings = check_language_model("evaluate", plan, path, length);
        if let Ok(Some(DataSection(data))) = recipe.section()
            && data.make().is_ok_and(|data| !data.holds_out())
        {
            findings.push(Finding {
                path: format!("{}.validation_fraction", DataSection::KEY),
                message: "stage `evaluate` has nothing to measure on".to_owned(),
                rule: "`evaluate` needs text that is held out".to_owned(),
                help: Some("use a fraction above 0, as 0.1".to_owned()),
            });
        }
        findings
    }

    fn run(&self, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let stage = context.stage.clone();
        context.run.start_stage(&stage)?;
        let text = context.data.text()?;
        let blocks = text.validation_blocks(self.sequence_length, self.batch_size, &context.run)?;
        let Some(blocks) = blocks else {
            let message = "there is nothing to evaluate on: the section `data` holds nothing out".to_owned();
            return Err(StageError::Other(message));
        };
        let bytes = text.validation_bytes.max(1) as f64;
        let bits = |loss: f64, count: f64| loss * count / std::f64::consts::LN_2 / bytes;
        let (loss, tokens) = {
            let _no_grad = NoGrad::new();
            let _autocast = context.run.autocast();
            validation_loss(context.trained_model()?, &blocks)?
        };
        let count = context.plan.parameter_count();
        let mut rows = vec![Row {
            name: format!("{} ({} parameters)", context.recipe.name(), hymba_plus::plan::grouped(count)),
            loss: Some(loss),
            bits_per_byte: bits(loss, tokens as f64),
        }];
        if self.baselines {
            rows.extend(token_baselines(text, bits));
            rows.extend(byte_baselines(text, bits));
        }
        self.report(context, &rows, tokens, text.validation_bytes)?;
        let record = MetricRecord::new("result", &stage, 0, tokens)
            .with("validation_loss", rows[0].loss.unwrap_or_default())
            .with("bits_per_byte", rows[0].bits_per_byte);
        context.run.log(&record)?;
        context.run.finish_stage(&stage)?;
        Ok(())
    }
}

/// N-gram models of the same tokens that the network sees; they are asked for each token that it is asked for.
fn token_baselines(text: &TextData, bits: impl Fn(f64, f64) -> f64) -> Vec<Row> {
    let (train, held_out): (&TokenStream, &TokenStream) = (&text.train, &text.validation);
    let vocabulary = text.tokenizer.vocab_size();
    let row = |(order, name): (usize, &str)| {
        let (sum, count) = NGram::train(order, vocabulary, &[train.tokens()]).loss(&[held_out.tokens()]);
        let loss = sum / count.max(1) as f64;
        Row {
            name: format!("{name} of the same tokens"),
            loss: Some(loss),
            bits_per_byte: bits(loss, count as f64),
        }
    };
    [(1, "unigram"), (2, "bigram")].map(row).into()
}

/// N-gram models of bytes: what needs no tokenizer.
fn byte_baselines(text: &TextData, bits: impl Fn(f64, f64) -> f64) -> Vec<Row> {
    let texts = |documents: &[Document]| bytes_of(documents.iter().map(|document| document.text.as_str()));
    let (train, held_out) = (texts(&text.corpus.train), texts(&text.corpus.validation));
    let train: Vec<&[u32]> = train.iter().map(Vec::as_slice).collect();
    let held_out: Vec<&[u32]> = held_out.iter().map(Vec::as_slice).collect();
    let row = |(order, name): (usize, &str)| {
        let (sum, _) = NGram::train(order, 257, &train).loss(&held_out);
        Row { name: format!("{name} of bytes"), loss: None, bits_per_byte: bits(sum, 1.0) }
    };
    [(2, "bigram"), (3, "trigram")].map(row).into()
}

impl Evaluate {
    fn report(
        &self,
        context: &StageContext<'_>,
        rows: &[Row],
        tokens: u64,
        bytes: usize,
    ) -> Result<(), StageError> {
        let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
        let grouped = hymba_plus::plan::grouped;
        let mut text = format!(
            "validation: {} tokens of {} bytes, read by the network in sequences of {}\n{:<width$}  loss/token  perplexity  bits/byte\n",
            grouped(tokens),
            grouped(bytes as u64),
            self.sequence_length,
            "",
        );
        for row in rows {
            let number = |value: Option<f64>, digits| {
                value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
            };
            let (loss, perplexity) = (number(row.loss, 4), number(row.loss.map(f64::exp), 2));
            let _ = writeln!(
                text,
                "{:<width$}  {loss:>10}  {perplexity:>10}  {:>9.3}",
                row.name, row.bits_per_byte
            );
        }
        context.run.console().line(text.trim_end());
        let json: Vec<_> = rows
            .iter()
            .map(|row| json!({ "name": row.name, "loss": row.loss, "bits_per_byte": row.bits_per_byte }))
            .collect();
        let report = json!({
            "sequence_length": self.sequence_length,
            "tokens": tokens,
            "bytes": bytes,
            "results": json,
        });
        let json =
            serde_json::to_vec_pretty(&report).map_err(|error| StageError::Other(error.to_string()))?;
        context.run.directory().write_stage_file(&context.stage, "evaluation.json", &json)?;
        Ok(())
    }
}
