//! What can go wrong with data.

use std::path::PathBuf;

use super::Modality;
use crate::tokenizer::TokenizerError;

/// Why data could not be read, split, cut or continued.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A path or glob matches nothing.
    #[error(
        "`{pattern}` matches no file{}",
        nearest.as_ref().map(|path| format!("; the nearest is `{}`", path.display())).unwrap_or_default()
    )]
    NoMatch {
        /// The path or glob, resolved.
        pattern: String,
        /// The file whose name comes nearest.
        nearest: Option<PathBuf>,
    },
    /// A glob that cannot be read as one.
    #[error("`{pattern}` is not a valid glob: {message}")]
    Glob {
        /// The glob.
        pattern: String,
        /// Where and why.
        message: String,
    },
    /// No path at all was given.
    #[error("`paths` is empty: name at least one file or glob")]
    NoPaths,
    /// A file could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A text file is not UTF-8.
    #[error(
        "{path} is not UTF-8: byte {byte:#04x} at offset {offset} (line {line}); convert it, for example with \
         `iconv -f latin1 -t utf-8`"
    )]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Offset of the first byte that does not fit, from 0.
        offset: usize,
        /// Line of that byte, from 1.
        line: usize,
        /// The byte.
        byte: u8,
    },
    /// There is no text in the files.
    #[error("no text: every one of the {files} files is empty (the first is {first})")]
    Empty {
        /// How many files there are.
        files: usize,
        /// The first of them.
        first: PathBuf,
    },
    /// A split would be empty.
    #[error("validation_fraction {fraction} of {what} leaves the {split} split empty; {help}")]
    EmptySplit {
        /// The fraction asked for.
        fraction: f64,
        /// How much there is to split.
        what: String,
        /// Which split is empty.
        split: &'static str,
        /// What would do.
        help: &'static str,
    },
    /// A known data set is not on this machine.
    #[error(
        "data set `{name}` is not here: no `{file}` in {1}\nGet it ({size} bytes, {licence}) with:\n  mkdir -p {0} && curl -L -o {0}/{file} {address}",
        searched.first().map_or("data", String::as_str),
        searched.join(" or ")
    )]
    NotDownloaded {
        /// The data set.
        name: &'static str,
        /// Its file name.
        file: &'static str,
        /// Its size in bytes.
        size: u64,
        /// Its licence.
        licence: &'static str,
        /// Its public address.
        address: &'static str,
        /// Directories that were searched, the one to put it in first.
        searched: Vec<String>,
    },
    /// A known data set's file is not the published one.
    #[error(
        "{path} is not the published `{name}`: expected {expected_size} bytes with SHA-256 {expected}, got {size} bytes with {found}; \
         delete it and download it again"
    )]
    WrongFile {
        /// The data set.
        name: &'static str,
        /// The file.
        path: PathBuf,
        /// Published SHA-256.
        expected: &'static str,
        /// Published size.
        expected_size: u64,
        /// SHA-256 of the file.
        found: String,
        /// Size of the file.
        size: u64,
    },
    /// The stream is shorter than one window.
    #[error(
        "the {split} split has {tokens} tokens, too few for one window of sequence_length {sequence_length} and its next token; \
         use sequence_length {} or less, or more text",
        tokens.saturating_sub(1)
    )]
    TooShort {
        /// Which split.
        split: &'static str,
        /// Tokens it has.
        tokens: usize,
        /// Window asked for.
        sequence_length: usize,
    },
    /// A stage wants data of another kind.
    #[error("the data are {got}, and {wanted} are wanted")]
    Modality {
        /// What is wanted.
        wanted: Modality,
        /// What there is.
        got: Modality,
    },
    /// Data that are made of other data, which cannot be made.
    #[error("{message}")]
    Inner {
        /// Why.
        message: String,
    },
    /// A document holds numbers, and the tokenizer has no tokens for them.
    #[error(
        "the documents hold numbers, and the tokenizer has no tokens for them: put it into `kind: with_series`"
    )]
    NoNumbers,
    /// There is nothing in a split.
    #[error("the {split} split has no samples")]
    NoSamples {
        /// Which split.
        split: &'static str,
    },
    /// A table of numbers has something else in it.
    #[error("{}:{line}: {message}", path.file_name().unwrap_or_default().display())]
    Table {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong there.
        message: String,
    },
    /// A series has fewer rows than its splits.
    #[error(
        "the series has {have} rows, and its splits need at least one for training and {wanted} together"
    )]
    SeriesRows {
        /// Rows that there are.
        have: usize,
        /// Rows of all splits.
        wanted: usize,
    },
    /// A split of a series is shorter than one window.
    #[error(
        "the {split} split has {rows} rows (what may be looked at before it included), too few for input_length \
         {input_length} and horizon {horizon}: they need {}",
        input_length + horizon
    )]
    SeriesTooShort {
        /// Which split.
        split: &'static str,
        /// Rows it has, with those before it that a window may look at.
        rows: usize,
        /// Rows a forecast looks at.
        input_length: usize,
        /// Rows it forecasts.
        horizon: usize,
    },
    /// A document of a series is known to its end.
    #[error(
        "documents of {length} rows of which {known} are known leave nothing to forecast: make `known` smaller than `length`"
    )]
    NothingToForecast {
        /// Rows that are known.
        known: usize,
        /// Rows of a document.
        length: usize,
    },
    /// A size that must be positive is not.
    #[error("{name} must be at least 1")]
    Zero {
        /// The setting.
        name: &'static str,
    },
    /// A batch cannot be cut into equal parts.
    #[error(
        "batch_size {batch_size} cannot be cut into accumulation {accumulation} equal parts; the nearest that can are {below} and {above}"
    )]
    Indivisible {
        /// Sequences per step.
        batch_size: usize,
        /// Parts asked for.
        accumulation: usize,
        /// Nearest batch size below that divides (at least one per part).
        below: usize,
        /// Nearest batch size above that divides.
        above: usize,
    },
    /// The state of a loader in a checkpoint does not fit this loader.
    #[error("the saved data position does not fit: {message}")]
    State {
        /// Why.
        message: String,
    },
    /// The tokenizer failed on the data.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// libtorch failed.
    #[error("making a batch: {0}")]
    Torch(#[from] torch_bridge::Error),
}

impl From<tch::TchError> for DataError {
    fn from(error: tch::TchError) -> Self {
        Self::Torch(error.into())
    }
}
