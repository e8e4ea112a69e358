//! What is said in a chat.

use std::collections::BTreeMap;

use minijinja::{Value, value::ValueKind};

use super::ChatError;

/// A chat: messages, and what the model may use to answer. Mappings keep the order of their keys.
#[derive(Debug, Clone)]
pub struct Chat {
    pub(super) messages: Value,
    pub(super) tools: Value,
    pub(super) documents: Value,
    pub(super) variables: BTreeMap<String, Value>,
    /// Whether the text ends where the answer begins (so for generation) instead of after the last message.
    pub add_generation_prompt: bool,
}

const KEYS: [&str; 4] = ["messages", "tools", "documents", "chat_template_kwargs"];

impl Chat {
    /// A chat of texts: each with its role (`system`, `user`, `assistant`).
    pub fn of_texts<'a>(messages: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let message = |(role, content)| Value::from_pairs([("role", role), ("content", content)]);
        Self::of_messages(messages.into_iter().map(message).collect())
    }

    fn of_messages(messages: Value) -> Self {
        let nothing = || Value::from(());
        let (tools, documents) = (nothing(), nothing());
        Self { messages, tools, documents, variables: BTreeMap::new(), add_generation_prompt: true }
    }

    /// A chat in JSON: a list of messages, or an object with `messages` and perhaps `tools`, `documents` and
    /// `chat_template_kwargs`. Further keys of the object are refused.
    ///
    /// # Errors
    /// When it is not that: every message is an object with a `role`.
    pub fn from_json(json: &str) -> Result<Self, ChatError> {
        Self::of_value(parsed(json)?)
    }

    /// [`from_json`](Self::from_json) of what is parsed already.
    fn of_value(value: Value) -> Result<Self, ChatError> {
        if value.kind() != ValueKind::Map {
            let chat = Self::of_messages(value);
            chat.check()?;
            return Ok(chat);
        }
        let mut chat = Self::of_messages(Value::UNDEFINED);
        for (key, value) in pairs(&value) {
            match key.as_str() {
                "messages" => chat.messages = value,
                "tools" => chat.tools = value,
                "documents" => chat.documents = value,
                "chat_template_kwargs" => chat.variables = pairs(&value).collect(),
                _ => {
                    return Err(malformed(format!(
                        "there is no key `{key}`; the keys are {}",
                        KEYS.join(", ")
                    )));
                }
            }
        }
        chat.check()?;
        Ok(chat)
    }

    /// The same chat with tools, a JSON list of their schemas.
    ///
    /// # Errors
    /// When it is no list.
    pub fn with_tools(mut self, json: &str) -> Result<Self, ChatError> {
        self.tools = parsed(json)?;
        self.check()?;
        Ok(self)
    }

    /// Whether the model may use tools.
    pub fn has_tools(&self) -> bool {
        !self.tools.is_none()
    }

    fn check(&self) -> Result<(), ChatError> {
        if self.messages.kind() != ValueKind::Seq || self.messages.len() == Some(0) {
            return Err(malformed("expected a list of messages, at least one".to_owned()));
        }
        for (i, message) in items(&self.messages).enumerate() {
            let role = message.get_attr("role").unwrap_or_default();
            if message.kind() != ValueKind::Map || role.as_str().is_none() {
                return Err(malformed(format!("message {i} is no object with a `role`: {message}")));
            }
        }
        for (name, list) in [("tools", &self.tools), ("documents", &self.documents)] {
            if !matches!(list.kind(), ValueKind::Seq | ValueKind::None) {
                return Err(malformed(format!("`{name}` is no list: {list}")));
            }
        }
        Ok(())
    }

    /// The messages as transformers hands them to a template: without keys whose value is null, and with reasoning under
    /// each of the names that templates read.
    pub(super) fn prepared_messages(&self) -> Value {
        items(&self.messages).map(|message| prepared(&message)).collect()
    }

    /// The same chat with `change` made to every text in it but the keys of mappings.
    #[must_use]
    pub(super) fn map_texts(&self, change: &dyn Fn(&str) -> String) -> Self {
        Self {
            messages: map_texts(&self.messages, change),
            tools: map_texts(&self.tools, change),
            documents: map_texts(&self.documents, change),
            variables: self
                .variables
                .iter()
                .map(|(name, value)| (name.clone(), map_texts(value, change)))
                .collect(),
            add_generation_prompt: self.add_generation_prompt,
        }
    }
}

fn prepared(message: &Value) -> Value {
    let mut fields: Vec<(String, Value)> = pairs(message).filter(|(_, value)| !value.is_none()).collect();
    let find = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let reasoning = ["reasoning_content", "thinking", "reasoning"].into_iter().find_map(find);
    if let Some(reasoning) = reasoning {
        for name in ["thinking", "reasoning_content"] {
            if !fields.iter().any(|(key, _)| key == name) {
                fields.push((name.to_owned(), reasoning.clone()));
            }
        }
    }
    Value::from_pairs(fields)
}

fn map_texts(value: &Value, change: &dyn Fn(&str) -> String) -> Value {
    match value.kind() {
        ValueKind::String => value.as_str().map_or_else(|| value.clone(), |text| Value::from(change(text))),
        ValueKind::Seq => items(value).map(|item| map_texts(&item, change)).collect(),
        ValueKind::Map => {
            Value::from_pairs(pairs(value).map(|(key, value)| (key, map_texts(&value, change))))
        }
        _ => value.clone(),
    }
}

fn parsed(json: &str) -> Result<Value, ChatError> {
    serde_json::from_str(json).map_err(|error| malformed(format!("not JSON: {error}")))
}

fn malformed(problem: String) -> ChatError {
    ChatError::Malformed(problem)
}

pub(super) fn items(value: &Value) -> impl Iterator<Item = Value> {
    value.try_iter().into_iter().flatten()
}

/// Keys and values of a mapping, in its order.
pub(super) fn pairs(value: &Value) -> impl Iterator<Item = (String, Value)> + '_ {
    items(value).map(move |key| {
        let found = value.get_item(&key).unwrap_or_default();
        (key.to_str().map_or_else(|| key.to_string(), |key| key.to_string()), found)
    })
}
