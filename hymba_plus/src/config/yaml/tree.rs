//! The tree of a YAML text: values that know where they were written.

use std::{fmt::Write as _, sync::Arc};

use super::super::source::{Source, Span};

/// A value and its place.
#[derive(Debug, Clone)]
pub(in crate::config) struct Node {
    /// What it is.
    pub yaml: Yaml,
    /// Where it was written.
    pub span: Span,
    /// Whether a text was written in quotes (or as a block), so that `"12"` can be told from `12`.
    pub quoted: bool,
}

/// The kinds of values of YAML's core schema.
#[derive(Debug, Clone)]
pub(in crate::config) enum Yaml {
    /// `null`, `~` or nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number; wider than any that a key takes, so that one too large can be reported as such.
    Int(i128),
    /// Any other number, `.inf` and `.nan` included.
    Float(f64),
    /// Anything else.
    Text(String),
    /// `[a, b]`.
    List(Vec<Node>),
    /// `{a: b}`.
    Map(Map),
}

/// A mapping, in the order of the text, without repeated keys.
#[derive(Debug, Clone, Default)]
pub(in crate::config) struct Map {
    /// Its entries.
    pub entries: Vec<Entry>,
}

/// A key and its value.
#[derive(Debug, Clone)]
pub(in crate::config) struct Entry {
    /// The key.
    pub key: String,
    /// Where the key was written.
    pub key_span: Span,
    /// The value.
    pub value: Node,
}

impl Map {
    /// The entry of that key.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// The value of that key.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// Takes the entry of that key out.
    pub fn remove(&mut self, key: &str) -> Option<Entry> {
        let at = self.entries.iter().position(|entry| entry.key == key)?;
        Some(self.entries.remove(at))
    }
}

impl Node {
    /// A value at a place.
    pub fn new(yaml: Yaml, span: &Span) -> Self {
        Self { yaml, span: span.clone(), quoted: false }
    }

    /// The mapping, if it is one.
    pub fn map(&self) -> Option<&Map> {
        match &self.yaml {
            Yaml::Map(map) => Some(map),
            _ => None,
        }
    }

    /// The mapping, if it is one.
    pub fn map_mut(&mut self) -> Option<&mut Map> {
        match &mut self.yaml {
            Yaml::Map(map) => Some(map),
            _ => None,
        }
    }

    /// The text, if it is one.
    pub fn text(&self) -> Option<&str> {
        match &self.yaml {
            Yaml::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The value at a path, and the span of its key (of the element itself in a list).
    pub fn find(&self, path: &[Step]) -> Option<(&Self, &Span)> {
        let (mut here, mut key) = (self, &self.span);
        for step in path {
            match (&here.yaml, step) {
                (Yaml::Map(map), step) => {
                    let entry = map.entry(&step.key())?;
                    (here, key) = (&entry.value, &entry.key_span);
                }
                (Yaml::List(list), Step::Index(index)) => {
                    here = list.get(*index)?;
                    key = &here.span;
                }
                _ => return None,
            }
        }
        Some((here, key))
    }

    /// Makes the tree a part of another source, which has the same text.
    pub fn set_source(&mut self, source: &Arc<Source>) {
        self.span.source = Arc::clone(source);
        match &mut self.yaml {
            Yaml::List(list) => list.iter_mut().for_each(|node| node.set_source(source)),
            Yaml::Map(map) => {
                for entry in &mut map.entries {
                    entry.key_span.source = Arc::clone(source);
                    entry.value.set_source(source);
                }
            }
            _ => {}
        }
    }

    /// How many values it holds, itself included.
    pub fn count(&self) -> usize {
        1 + match &self.yaml {
            Yaml::List(list) => list.iter().map(Self::count).sum(),
            Yaml::Map(map) => map.entries.iter().map(|entry| entry.value.count()).sum(),
            _ => 0,
        }
    }

    /// How many levels it has, itself included.
    pub fn depth(&self) -> usize {
        1 + match &self.yaml {
            Yaml::List(list) => list.iter().map(Self::depth).max().unwrap_or(0),
            Yaml::Map(map) => map.entries.iter().map(|entry| entry.value.depth()).max().unwrap_or(0),
            _ => 0,
        }
    }

    /// The value in one line for a message, shortened: the text as it was written where it is short.
    pub fn brief(&self) -> String {
        match &self.yaml {
            Yaml::Null => "null".into(),
            Yaml::Bool(value) => value.to_string(),
            Yaml::Int(value) => value.to_string(),
            Yaml::Float(value) if value.is_nan() => ".nan".into(),
            Yaml::Float(value) if value.is_infinite() => if *value > 0.0 { ".inf" } else { "-.inf" }.into(),
            Yaml::Float(value) => serde_json::Value::from(*value).to_string(),
            Yaml::Text(text) => shorten(text),
            Yaml::List(list) => {
                shorten(&format!("[{}]", list.iter().map(Self::brief).collect::<Vec<_>>().join(", ")))
            }
            Yaml::Map(map) => {
                let entries =
                    map.entries.iter().map(|entry| format!("{}: {}", entry.key, entry.value.brief()));
                shorten(&format!("{{{}}}", entries.collect::<Vec<_>>().join(", ")))
            }
        }
    }
}

/// At most sixty characters of a text.
fn shorten(text: &str) -> String {
    const MOST: usize = 60;
    let line = text.replace('\n', " ");
    if line.chars().count() <= MOST { line } else { line.chars().take(MOST - 1).chain(['…']).collect() }
}

/// One step of a dotted path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::config) enum Step {
    /// Into a mapping.
    Key(String),
    /// Into a list; or into a mapping whose key is a number.
    Index(usize),
}

impl Step {
    /// The step as a key of a mapping.
    pub fn key(&self) -> String {
        match self {
            Self::Key(key) => key.clone(),
            Self::Index(index) => index.to_string(),
        }
    }
}

/// Reads `a.b[0].c` or `a.b.0.c`: each step with the bytes it takes in the text, or the byte where it is wrong.
pub(in crate::config) fn parse_path(text: &str) -> Result<Vec<(Step, std::ops::Range<usize>)>, usize> {
    let mut steps = Vec::new();
    let mut at = 0;
    for part in text.split('.') {
        let mut rest = part;
        let mut start = at;
        if let Some(bracket) = part.find('[') {
            rest = &part[..bracket];
        }
        if rest.is_empty() {
            return Err(at);
        }
        let step = rest.parse().map_or_else(|_| Step::Key(rest.to_owned()), Step::Index);
        steps.push((step, start..start + rest.len()));
        start += rest.len();
        let mut tail = &part[rest.len()..];
        while !tail.is_empty() {
            let inner = tail.strip_prefix('[').and_then(|tail| tail.split_once(']')).ok_or(start)?;
            let index = inner.0.parse().map_err(|_| start)?;
            steps.push((Step::Index(index), start..start + inner.0.len() + 2));
            start += inner.0.len() + 2;
            tail = inner.1;
        }
        at += part.len() + 1;
    }
    Ok(steps)
}

/// Writes a path as `a.b[0].c`.
pub(in crate::config) fn show_path(steps: &[Step]) -> String {
    let mut text = String::new();
    for step in steps {
        match step {
            Step::Index(index) => _ = write!(text, "[{index}]"),
            Step::Key(key) => {
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(key);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_and_written() {
        for (text, expected) in [
            ("a", "a"),
            ("a.b[0].c", "a.b[0].c"),
            ("a.0.c", "a[0].c"),
            ("a[1][2]", "a[1][2]"),
            ("x-y.z", "x-y.z"),
        ] {
            let steps: Vec<_> = parse_path(text).unwrap().into_iter().map(|(step, _)| step).collect();
            assert_eq!(show_path(&steps), expected);
        }
        for (text, at) in [("", 0), ("a..b", 2), ("a.", 2), ("a[x]", 1), ("a[1", 1), ("a[1]b", 4), ("[0]", 0)]
        {
            assert_eq!(parse_path(text), Err(at), "{text}");
        }
    }
}
