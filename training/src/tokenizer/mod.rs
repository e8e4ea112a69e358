//! Tokenizers: trained on the run's own text or read from a `tokenizer.json`, saved beside the run.
//!
//! Whatever the kind, the result is one [`Tokenizer`] around one `tokenizer.json`. The kinds that this crate trains
//! work on bytes, so every text comes back from its tokens unchanged.

mod bpe;
mod bytes;
pub mod chat;
mod config;
mod error;
mod file;
mod series;
mod special;
mod stream;
#[cfg(test)]
mod tests;
mod unigram;
mod wrapper;

pub use bpe::ByteLevelBpe;
pub use bytes::Bytes;
pub use error::TokenizerError;
pub use file::TokenizerFile;
pub use series::{SeriesBins, SeriesTokens, WithSeries};
pub use special::{END_OF_TEXT, PAD};
pub use stream::StreamDecoder;
pub use unigram::Unigram;
pub use wrapper::Tokenizer;
