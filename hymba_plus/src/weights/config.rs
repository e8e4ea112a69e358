//! Reading a foreign `config.json` so that no key of it goes unnoticed.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::json::FLOAT;

/// A foreign configuration, or a section of one, while a format reads it.
///
/// Every key that a format reads is remembered, and what is left over at the end is an error: a key that nobody read may
/// change what the model computes. Mistakes are collected, so that one pass shows all of them; a reader that fails
/// returns a stand-in (1, an empty text) and the result is thrown away in the end.
#[derive(Debug)]
pub struct ForeignConfig {
    values: Map<String, Value>,
    prefix: String,
    read: BTreeSet<String>,
    without_effect: BTreeMap<String, Value>,
    problems: Vec<String>,
    notes: Vec<String>,
}

impl ForeignConfig {
    /// A configuration before anything of it was read.
    pub fn new(values: Map<String, Value>) -> Self {
        Self {
            values,
            prefix: String::new(),
            read: BTreeSet::new(),
            without_effect: BTreeMap::new(),
            problems: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// The value of a key; none when it is absent or `null`.
    pub fn value(&mut self, key: &str) -> Option<Value> {
        self.read.insert(key.to_owned());
        self.values.get(key).filter(|value| !value.is_null()).cloned()
    }

    /// Whether the key is there and not `null`; does not count as reading it.
    pub fn has(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(|value| !value.is_null())
    }

    /// Whether the key is there and `null`, which is not always what its absence means.
    pub fn is_null(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(Value::is_null)
    }

    /// A whole number.
    pub fn integer(&mut self, key: &str) -> Option<i64> {
        let value = self.value(key)?;
        let whole = |number: f64| (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64);
        let number = value.as_i64().or_else(|| value.as_f64().and_then(whole));
        if number.is_none() {
            self.wrong(key, &value, "a whole number");
        }
        number
    }

    /// A whole number of at least 1 that must be there.
    pub fn count(&mut self, key: &str) -> i64 {
        match self.integer(key) {
            Some(number) if number >= 1 => number,
            Some(number) => self.wrong(key, &Value::from(number), "at least 1").map_or(1, |()| 1),
            None => {
                if !self.has(key) {
                    self.missing(key);
                }
                1
            }
        }
    }

    /// A whole number of at least 1, or the foreign default.
    pub fn count_or(&mut self, key: &str, default: i64) -> i64 {
        if self.has(key) {
            return self.count(key);
        }
        self.read.insert(key.to_owned());
        default
    }

    /// A number; `{"__float__": "Infinity"}` counts as one.
    pub fn number(&mut self, key: &str) -> Option<f64> {
        let value = self.value(key)?;
        let number = number(&value);
        if number.is_none() {
            self.wrong(key, &value, "a number");
        }
        number
    }

    /// A number, or the foreign default.
    pub fn number_or(&mut self, key: &str, default: f64) -> f64 {
        self.number(key).unwrap_or(default)
    }

    /// `true` or `false`, or the foreign default.
    pub fn flag_or(&mut self, key: &str, default: bool) -> bool {
        match self.value(key) {
            None => default,
            Some(Value::Bool(flag)) => flag,
            Some(other) => self.wrong(key, &other, "true or false").map_or(default, |()| default),
        }
    }

    /// A text, or the foreign default.
    pub fn text_or(&mut self, key: &str, default: &str) -> String {
        match self.value(key) {
            None => default.to_owned(),
            Some(Value::String(text)) => text,
            Some(other) => {
                self.wrong(key, &other, "a text");
                default.to_owned()
            }
        }
    }

    /// A list of numbers, or none; `{"__float__": "Infinity"}` counts as one.
    pub fn numbers(&mut self, key: &str) -> Option<Vec<f64>> {
        let value = self.value(key)?;
        let list = value.as_array().and_then(|list| list.iter().map(number).collect());
        if list.is_none() {
            self.wrong(key, &value, "a list of numbers");
        }
        list
    }

    /// A list of whole numbers that are not negative, or none.
    pub fn indices(&mut self, key: &str) -> Option<Vec<usize>> {
        let value = self.value(key)?;
        let list = value.as_array().and_then(|list| indices(list));
        if list.is_none() {
            self.wrong(key, &value, "a list of layer indices");
        }
        list
    }

    /// A list of such lists, or none.
    pub fn groups(&mut self, key: &str) -> Option<Vec<Vec<usize>>> {
        let value = self.value(key)?;
        let list =
            value.as_array().and_then(|list| list.iter().map(|group| indices(group.as_array()?)).collect());
        if list.is_none() {
            self.wrong(key, &value, "a list of lists of layer indices");
        }
        list
    }

    /// Refuses every value of a key but these; absent and `null` are fine when they mean one of them.
    pub fn only(&mut self, key: &str, allowed: &[Value], why: &str) {
        let Some(value) = self.value(key) else { return };
        let same =
            |other: &Value| *other == value || (other.as_f64().is_some() && other.as_f64() == value.as_f64());
        if !allowed.iter().any(same) {
            let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
            let key = self.path(key);
            self.refuse(format!("{key} is {value}, only {} can be read: {why}", allowed.join(" or ")));
        }
    }

    /// Keys that change nothing of what the model computes; those that are there are listed for the user.
    pub fn without_effect(&mut self, keys: &[&str]) {
        for key in keys {
            self.read.insert((*key).to_owned());
            if let Some(value) = self.values.get(*key) {
                self.without_effect.insert(self.path(key), value.clone());
            }
        }
    }

    /// A mapping inside the configuration, to be given back with [`merge`](Self::merge).
    pub fn section(&mut self, key: &str) -> Option<Self> {
        match self.value(key)? {
            Value::Object(values) => {
                Some(Self { prefix: format!("{}.", self.path(key)), ..Self::new(values) })
            }
            other => self.wrong(key, &other, "a mapping").and(None),
        }
    }

    /// Takes back a section after it was read: what is left of it is as bad as what is left here.
    pub fn merge(&mut self, mut section: Self) {
        self.problems.append(&mut section.problems);
        self.problems.extend(section.unread().map(|key| unknown(&key)));
        self.without_effect.append(&mut section.without_effect);
        self.notes.append(&mut section.notes);
    }

    /// Notes something that cannot be reproduced.
    pub fn refuse(&mut self, problem: impl Into<String>) {
        self.problems.push(problem.into());
    }

    /// Tells the user of a reading that was chosen.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Everything that is wrong; keys in `ignored` may be left over.
    pub(super) fn finish(self, ignored: &[String]) -> Result<Read, Vec<String>> {
        let mut problems = self.problems.clone();
        let mut without_effect = self.without_effect.clone();
        for key in self.unread() {
            if ignored.contains(&key) {
                without_effect.insert(key.clone(), self.values[&key].clone());
            } else {
                problems.push(unknown(&key));
            }
        }
        if problems.is_empty() { Ok(Read { without_effect, notes: self.notes }) } else { Err(problems) }
    }

    fn unread(&self) -> impl Iterator<Item = String> {
        self.values.keys().filter(|key| !self.read.contains(*key)).map(|key| self.path(key))
    }

    fn path(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn missing(&mut self, key: &str) {
        let key = self.path(key);
        self.refuse(format!("{key} is missing"));
    }

    #[allow(clippy::unnecessary_wraps)] // lets a caller go on with a stand-in in one expression
    fn wrong(&mut self, key: &str, value: &Value, expected: &str) -> Option<()> {
        let key = self.path(key);
        self.refuse(format!("{key} is {value}, expected {expected}"));
        Some(())
    }
}

/// What reading a configuration found besides the model.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) without_effect: BTreeMap<String, Value>,
    pub(super) notes: Vec<String>,
}

fn unknown(key: &str) -> String {
    format!("{key} is not a key that this format knows, and it may change what the model computes")
}

fn number(value: &Value) -> Option<f64> {
    match value.get(FLOAT).and_then(Value::as_str) {
        Some("Infinity") => Some(f64::INFINITY),
        Some("-Infinity") => Some(f64::NEG_INFINITY),
        Some(_) => None,
        None => value.as_f64(),
    }
}

fn indices(list: &[Value]) -> Option<Vec<usize>> {
    list.iter().map(|item| usize::try_from(item.as_u64()?).ok()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(value: Value) -> ForeignConfig {
        match value {
            Value::Object(values) => ForeignConfig::new(values),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn every_mistake_is_collected() {
        let mut config = config(json!({
            "hidden_size": "wide", "heads": 0, "act": "gelu", "flag": 1, "surprise": 3, "note": null,
            "rope": { "theta": 5.0, "factor": "two", "secret": true },
        }));
        assert_eq!((config.count("hidden_size"), config.count("heads"), config.count("layers")), (1, 1, 1));
        config.only("act", &[json!("silu")], "the others are not built");
        assert!(!config.flag_or("flag", false));
        config.without_effect(&["note", "absent"]);
        let mut rope = config.section("rope").unwrap();
        assert_eq!((rope.number_or("theta", 1.0), rope.number("factor")), (5.0, None));
        config.merge(rope);
        let problems = config.finish(&[]).unwrap_err();
        for (problem, part) in problems.iter().zip([
            "hidden_size is \"wide\", expected a whole number",
            "heads is 0, expected at least 1",
            "layers is missing",
            "act is \"gelu\", only \"silu\" can be read: the others are not built",
            "flag is 1, expected true or false",
            "rope.factor is \"two\", expected a number",
            "rope.secret is not a key",
            "surprise is not a key",
        ]) {
            assert!(problem.contains(part), "{problem} lacks {part}");
        }
        assert_eq!(problems.len(), 8, "{problems:?}");
    }

    #[test]
    fn keys_can_be_ignored_and_are_listed() {
        let mut config = config(json!({ "a": 2.0, "b": 1, "c": { "__float__": "Infinity" } }));
        assert_eq!((config.integer("a"), config.number("c")), (Some(2), Some(f64::INFINITY)));
        let read = config.finish(&["b".to_owned()]).unwrap();
        assert_eq!(read.without_effect.into_iter().collect::<Vec<_>>(), [("b".to_owned(), json!(1))]);
    }
}
