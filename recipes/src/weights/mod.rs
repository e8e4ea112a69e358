//! Weights of other libraries as runs, runs as folders of other libraries, and the logits of either.

mod export;
mod import;
mod logits;
mod open;
mod tokenizer;

pub use export::{ExportRun, export_run};
pub use import::{ImportRun, Imported, import_run};
pub use logits::{LogitsReport, LogitsRequest, logits};
pub use open::{OpenedModel, open_model};

/// Name under which an imported run keeps its one checkpoint, where a trained run has the name of a stage.
pub(crate) const IMPORT: &str = "import";
