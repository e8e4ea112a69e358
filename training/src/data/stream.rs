//! All tokens of a split in one line, with the borders of its documents.

use super::{DataError, Document};
use crate::tokenizer::Tokenizer;

/// The tokens of many documents, an end-of-text token after each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenStream {
    tokens: Vec<u32>,
    /// Where documents start, rising; the first is 0.
    starts: Vec<usize>,
}

/// Documents that are encoded at one time: bounds the memory of the intermediate encodings.
const ENCODED_TOGETHER: usize = 1024;

impl TokenStream {
    /// Encodes documents and joins them.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn encode(documents: &[Document], tokenizer: &Tokenizer) -> Result<Self, DataError> {
        let mut stream = Self { tokens: Vec::new(), starts: Vec::with_capacity(documents.len()) };
        for chunk in documents.chunks(ENCODED_TOGETHER) {
            let texts: Vec<&str> = chunk.iter().map(|document| document.text.as_str()).collect();
            for ids in tokenizer.encode_batch(&texts)? {
                stream.push(&ids, tokenizer.eos());
            }
        }
        Ok(stream)
    }

    /// A stream of documents that are tokens already.
    pub fn from_documents<'a>(documents: impl IntoIterator<Item = &'a [u32]>, end_of_text: u32) -> Self {
        let mut stream = Self { tokens: Vec::new(), starts: Vec::new() };
        documents.into_iter().for_each(|ids| stream.push(ids, end_of_text));
        stream
    }

    fn push(&mut self, ids: &[u32], end_of_text: u32) {
        self.starts.push(self.tokens.len());
        self.tokens.extend_from_slice(ids);
        self.tokens.push(end_of_text);
    }

    /// Number of tokens, end-of-text tokens included.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no document.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Number of documents.
    pub fn documents(&self) -> usize {
        self.starts.len()
    }

    /// All tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Appends a window to the rows of a batch: `length` inputs from `start`, what follows each, and where documents
    /// start. Beyond the stream, inputs are `filler` and targets are ignored.
    pub(super) fn window(&self, start: usize, length: usize, filler: u32, rows: &mut Rows) {
        let token = |at: usize| self.tokens.get(at).map(|&token| i64::from(token));
        let mut next_start = self.starts.partition_point(|&at| at < start);
        for at in start..start + length {
            rows.tokens.push(token(at).unwrap_or(i64::from(filler)));
            rows.targets.push(token(at + 1).unwrap_or(super::IGNORE_INDEX));
            let is_start = self.starts.get(next_start) == Some(&at);
            rows.resets.push(is_start);
            next_start += usize::from(is_start);
        }
    }
}

/// Rows of a batch before they are tensors, laid end to end.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) tokens: Vec<i64>,
    pub(super) targets: Vec<i64>,
    pub(super) resets: Vec<bool>,
}
