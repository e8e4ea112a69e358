//! Reading JSON as Python writes it.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::WeightsError;

/// Key of a number that JSON has no word for, as newer libraries write it: `{"__float__": "Infinity"}`.
pub(super) const FLOAT: &str = "__float__";

/// A file with one JSON object. The bare words `NaN`, `Infinity` and `-Infinity`, which Python writes and JSON does not
/// know, become `{"__float__": ...}`.
pub(super) fn read_object(path: &Path) -> Result<Map<String, Value>, WeightsError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| WeightsError::Io { path: path.to_owned(), source })?;
    let failed = |message: String| WeightsError::Format { path: path.to_owned(), message };
    match serde_json::from_str(&without_bare_words(&text)) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(failed("not a JSON object".to_owned())),
        Err(error) => Err(failed(format!("not JSON: {error}"))),
    }
}

fn without_bare_words(text: &str) -> String {
    let (mut out, mut rest, mut in_string) = (String::with_capacity(text.len()), text, false);
    while let Some(c) = rest.chars().next() {
        let word = ["-Infinity", "Infinity", "NaN"].into_iter().find(|word| rest.starts_with(word));
        if let (false, Some(word)) = (in_string, word) {
            out.push_str(&json!({ FLOAT: word }).to_string());
            rest = &rest[word.len()..];
            continue;
        }
        let mut length = c.len_utf8();
        match c {
            '"' => in_string = !in_string,
            '\\' if in_string => length += rest[1..].chars().next().map_or(0, char::len_utf8),
            _ => {}
        }
        out.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pythons_words_become_json() {
        let text = r#"{"a": [0.0, Infinity, -Infinity], "NaN \" NaN": "Infinity ä", "b": NaN}"#;
        let value: Value = serde_json::from_str(&without_bare_words(text)).unwrap();
        let float = |word: &str| json!({ FLOAT: word });
        let expected = json!({
            "a": [0.0, float("Infinity"), float("-Infinity")],
            "NaN \" NaN": "Infinity ä",
            "b": float("NaN"),
        });
        assert_eq!(value, expected);
    }
}
