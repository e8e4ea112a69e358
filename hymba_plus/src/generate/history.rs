//! The tokens of one sequence so far, as penalties and bans look at them.

use std::collections::HashMap;

/// A prompt and the new tokens after it.
#[derive(Debug, Clone)]
pub struct History {
    tokens: Vec<i64>,
    prompt: usize,
    /// Every token that came, and how often among the new ones.
    counts: HashMap<i64, u32>,
}

impl History {
    /// A prompt without new tokens.
    pub fn new(prompt: &[i64]) -> Self {
        let counts = prompt.iter().map(|&token| (token, 0)).collect();
        Self { tokens: prompt.to_vec(), prompt: prompt.len(), counts }
    }

    /// Adds a new token.
    pub fn push(&mut self, token: i64) {
        self.tokens.push(token);
        *self.counts.entry(token).or_insert(0) += 1;
    }

    /// Prompt and new tokens.
    pub fn tokens(&self) -> &[i64] {
        &self.tokens
    }

    /// New tokens.
    pub fn new_tokens(&self) -> &[i64] {
        &self.tokens[self.prompt..]
    }

    /// Every token that came, once, with the number of times it came after the prompt; in no order.
    pub fn counts(&self) -> impl Iterator<Item = (i64, u32)> {
        self.counts.iter().map(|(&token, &count)| (token, count))
    }
}
