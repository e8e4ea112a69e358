//! All tokens of a split in one line, with the borders of its documents.

use super::{DataError, Document, Numbers};
use crate::tokenizer::{SeriesTokens, Tokenizer};

/// The tokens of many documents with end-of-text tokens between them, before the first and after the last.
///
/// The end-of-text token before a document is that document's first: from it the model learns how a document begins, as
/// it must when it writes one. It is also what the last token before it learns to predict, the end of its document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenStream {
    tokens: Vec<u32>,
    /// Where documents start, rising: the places of their end-of-text tokens; the first is 0.
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
            for (document, mut ids) in chunk.iter().zip(tokenizer.encode_batch(&texts)?) {
                if let Some(Numbers { values, known }) = &document.numbers {
                    let tokens = tokenizer.series().ok_or(DataError::NoNumbers)?;
                    let scale = SeriesTokens::scale(&values[..values.len().min(*known)]);
                    ids.extend(tokens.encode(values, scale));
                }
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
        if self.tokens.is_empty() {
            self.tokens.push(end_of_text);
        }
        self.starts.push(self.tokens.len() - 1);
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

    /// Number of tokens that can be predicted: all but the first.
    pub fn targets(&self) -> usize {
        self.tokens.len().saturating_sub(1)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_document_begins_with_the_end_of_text_and_its_end_is_learnt_once() {
        let documents: [&[u32]; 3] = [&[5, 6], &[7], &[8, 9]];
        let stream = TokenStream::from_documents(documents, 0);
        assert_eq!(stream.tokens(), [0, 5, 6, 0, 7, 0, 8, 9, 0]);
        assert_eq!((stream.documents(), stream.targets()), (3, 8));
        let mut rows = Rows::default();
        stream.window(0, 8, 99, &mut rows);
        let starts: Vec<usize> = (0..8).filter(|&at| rows.resets[at]).collect();
        assert_eq!(starts, [0, 3, 5]);
        for (token, target) in [(5, 6), (6, 0), (7, 0), (9, 0)] {
            let at = rows.tokens.iter().position(|&known| known == token).unwrap();
            assert_eq!(rows.targets[at], target);
        }
        // What generation begins with, the initial state and this token, is trained for each document.
        let firsts: Vec<i64> = starts.iter().map(|&at| rows.targets[at]).collect();
        assert_eq!(firsts, [5, 7, 8]);
    }
}
