//! Chats as the text that a model was taught to read: a template in Jinja, as Hugging Face tokenizers carry it.
//!
//! The template sees `messages`, `tools`, `documents`, `add_generation_prompt`, the special tokens by name
//! (`bos_token`, `eos_token`, ...) and whatever else a chat brings; it has `raise_exception`, `strftime_now`, `tojson`
//! with Python's layout, `break` and `continue`, and the methods of Python's strings, lists and mappings. Blocks are
//! trimmed as transformers trims them.

mod conversation;
mod encode;
mod error;
mod generation_tag;
mod json;
mod of_tokenizer;
mod python;

use std::collections::BTreeMap;

use minijinja::{AutoEscape, Environment, Value, context, syntax::SyntaxConfig};

pub use conversation::Chat;
pub use error::ChatError;
pub(super) use of_tokenizer::Templates;

/// A compiled template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
}

const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// When it is no Jinja template; with the line.
    pub fn new(source: &str) -> Result<Self, ChatError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| ChatError::syntax(&error))?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(python::method);
        environment.add_filter("tojson", json::tojson);
        environment.add_function("raise_exception", error::raise_exception);
        environment.add_function("strftime_now", python::strftime_now);
        let source = generation_tag::as_plain_blocks(source).into_owned();
        environment.add_template_owned(NAME, source).map_err(|error| ChatError::syntax(&error))?;
        Ok(Self { environment })
    }

    /// The text of a chat. `special_tokens` are the tokenizer's, by name; a variable of the chat goes before them.
    ///
    /// # Errors
    /// When the template refuses the chat (`raise_exception`) or cannot work with it.
    pub fn render(
        &self,
        chat: &Chat,
        special_tokens: &BTreeMap<String, String>,
    ) -> Result<String, ChatError> {
        let mut variables: BTreeMap<&str, Value> =
            special_tokens.iter().map(|(name, token)| (name.as_str(), Value::from(token.as_str()))).collect();
        variables.extend(chat.variables.iter().map(|(name, value)| (name.as_str(), value.clone())));
        let chat = context! {
            messages => chat.prepared_messages(),
            tools => chat.tools.clone(),
            documents => chat.documents.clone(),
            add_generation_prompt => chat.add_generation_prompt,
            ..Value::from_pairs(variables),
        };
        let template = self.environment.get_template(NAME).map_err(|error| ChatError::syntax(&error))?;
        template.render(chat).map_err(|error| ChatError::of(&error))
    }
}
