//! Decoding token by token: only whole characters come out.

use super::{Tokenizer, TokenizerError};

/// Turns tokens into text as they come; what it has given plus [`finish`](Self::finish) is the text of them all.
#[derive(Debug, Clone)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    /// Tokens of the window: those already given, kept as context, then those still held back.
    window: Vec<u32>,
    /// How many of the window's tokens are context.
    context: usize,
    /// Bytes of the window's text that were given.
    given: usize,
}

impl<'a> StreamDecoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, window: Vec::new(), context: 0, given: 0 }
    }

    /// Takes a token; gives the text that is now certain, often empty in the middle of a character.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        self.window.push(id);
        let text = self.tokenizer.decode(&self.window)?;
        // A replacement character at the end is most often a character that is not complete yet.
        if text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        let new = text.get(self.given..).unwrap_or_default().to_owned();
        // Decoders look at a token's left neighbour (spaces), so the last piece stays as context.
        self.window.drain(..self.context);
        self.context = self.window.len();
        self.given = self.tokenizer.decode(&self.window)?.len();
        Ok(new)
    }

    /// The rest: an incomplete character becomes U+FFFD.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(self) -> Result<String, TokenizerError> {
        let text = self.tokenizer.decode(&self.window)?;
        Ok(text.get(self.given..).unwrap_or_default().to_owned())
    }
}
