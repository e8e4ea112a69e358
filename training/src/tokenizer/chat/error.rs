//! Why a chat did not become a text.

use std::{error::Error as _, fmt};

use minijinja::{Error, ErrorKind, Value};

/// Why a chat did not become a text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// The tokenizer has no template.
    #[error(
        "the tokenizer has no chat template: one comes with a `tokenizer_config.json` (key `chat_template`) or a \
         `chat_template.jinja` beside the tokenizer.json of `tokenizer: {{ kind: file, path: ... }}`"
    )]
    NoTemplate,
    /// The tokenizer has templates by name, and none for this chat.
    #[error("the tokenizer has chat templates of the names {}, and none is `default`", .0.join(", "))]
    NoDefault(Vec<String>),
    /// It is no Jinja template.
    #[error("the chat template is not one that can be read: {0}")]
    Syntax(String),
    /// The template calls `raise_exception`.
    #[error("the chat template refuses this chat: {0}")]
    Refused(String),
    /// The template failed.
    #[error("the chat template fails on this chat: {0}")]
    Failed(String),
    /// It is no chat.
    #[error("this is not a chat: {0}")]
    Malformed(String),
    /// A text in the chat cannot be kept from being read as a special token.
    #[error("`{0}` stands in the chat, and the tokenizer would read it as a special token")]
    Forged(String),
}

impl ChatError {
    pub(super) fn syntax(error: &Error) -> Self {
        Self::Syntax(described(error))
    }

    /// What a failed rendering means.
    pub(super) fn of(error: &Error) -> Self {
        let mut cause = error.source();
        while let Some(inner) = cause {
            if let Some(Raised(message)) = inner.downcast_ref() {
                return Self::Refused(message.clone());
            }
            cause = inner.source();
        }
        Self::Failed(described(error))
    }
}

fn described(error: &Error) -> String {
    let line = error.line().map_or(String::new(), |line| format!(" (line {line})"));
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    format!("{what}{line}")
}

/// What a template said with `raise_exception`.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// The function `raise_exception(message)` of templates.
pub(super) fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}
