//! A tokenizer's chats.

use std::collections::BTreeMap;

use super::{
    super::{Tokenizer, TokenizerError},
    Chat, ChatError, ChatTemplate,
    encode::{Encoder, encode},
};

/// The templates of a tokenizer, compiled.
#[derive(Debug)]
pub(in super::super) struct Templates {
    by_name: BTreeMap<String, Result<ChatTemplate, ChatError>>,
}

impl Templates {
    pub(in super::super) fn new(sources: &BTreeMap<String, String>) -> Self {
        let compiled = sources.iter().map(|(name, source)| (name.clone(), ChatTemplate::new(source)));
        Self { by_name: compiled.collect() }
    }

    /// The template for a chat: `tool_use` for one with tools where there is one, else `default`.
    fn find(&self, tools: bool) -> Result<&ChatTemplate, ChatError> {
        if self.by_name.is_empty() {
            return Err(ChatError::NoTemplate);
        }
        let found = self.by_name.get("tool_use").filter(|_| tools).or_else(|| self.by_name.get("default"));
        match found {
            Some(template) => template.as_ref().map_err(Clone::clone),
            None => Err(ChatError::NoDefault(self.by_name.keys().cloned().collect())),
        }
    }
}

impl Tokenizer {
    /// The chat template; for a chat with tools the one for them, where the tokenizer has one.
    ///
    /// # Errors
    /// When there is none, or it is no template.
    pub fn chat_template(&self, tools: bool) -> Result<&ChatTemplate, ChatError> {
        self.templates().find(tools)
    }

    /// The text of a chat by the tokenizer's template.
    ///
    /// # Errors
    /// When there is no template, or it refuses the chat.
    pub fn render_chat(&self, chat: &Chat) -> Result<String, ChatError> {
        self.chat_template(chat.has_tools())?.render(chat, &self.special_tokens())
    }

    /// The tokens of a chat by the tokenizer's template. Special tokens that the template writes are such; those that
    /// stand in the chat itself are text, letter by letter.
    ///
    /// # Errors
    /// When there is no template, it refuses the chat, or the tokenizer fails.
    pub fn encode_chat(&self, chat: &Chat) -> Result<Vec<u32>, TokenizerError> {
        let template = self.chat_template(chat.has_tools())?;
        encode(template, chat, &self.special_tokens(), &self.special_texts(), self)
    }
}

impl Encoder for Tokenizer {
    type Error = TokenizerError;

    fn encode(&self, text: &str, specials: bool) -> Result<Vec<u32>, TokenizerError> {
        if specials { self.encode_with_specials(text) } else { self.encode(text) }
    }

    fn special(&self, token: &str) -> Option<u32> {
        self.id(token)
    }
}
