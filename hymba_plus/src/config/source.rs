//! Texts that a recipe is made of, and places in them.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Where a text came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A YAML file, or a text that was given in its place.
    File,
    /// One variable of the environment.
    Environment,
    /// One `--set` of the command line, or another option of it.
    CommandLine,
}

/// A text, its name on the screen, and the folder from which its relative paths are taken.
#[derive(Debug)]
pub struct Source {
    name: String,
    text: Arc<String>,
    folder: PathBuf,
    origin: Origin,
    line_starts: Vec<usize>,
}

impl Source {
    /// A text; `name` is what errors call it.
    ///
    /// The text is only shown and parsed after [`readable`], so that nothing in it can drive a terminal.
    pub fn new(name: impl Into<String>, text: &str, folder: &Path, origin: Origin) -> Arc<Self> {
        let text = readable(text);
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Arc::new(Self {
            name: name.into(),
            text: Arc::new(text),
            folder: folder.to_owned(),
            origin,
            line_starts,
        })
    }

    /// The name that errors show: a path as it was given, `environment`, `--set`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The whole text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The whole text, shared.
    pub fn shared_text(&self) -> Arc<String> {
        Arc::clone(&self.text)
    }

    /// The folder from which relative paths in this text are taken.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What kind of text this is.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The byte at which a 1-based line and a 0-based column (in characters) lie; the nearest one that exists.
    pub fn offset(&self, line: usize, column: usize) -> usize {
        let Some(&start) = self.line_starts.get(line.saturating_sub(1)) else { return self.text.len() };
        let rest = self.text[start..].split('\n').next().unwrap_or_default();
        start + rest.char_indices().nth(column).map_or(rest.len(), |(at, _)| at)
    }

    /// Line and column of a byte, both from 1; the column counts characters.
    pub fn line_column(&self, offset: usize) -> (usize, usize) {
        let offset = self.floor(offset);
        let line = self.line_starts.partition_point(|&start| start <= offset);
        let start = self.line_starts[line - 1];
        (line, self.text[start..offset].chars().count() + 1)
    }

    /// The text of a 1-based line, without its end.
    pub fn line(&self, line: usize) -> &str {
        let Some(&start) = self.line_starts.get(line.saturating_sub(1)) else { return "" };
        self.text[start..].split('\n').next().unwrap_or_default().trim_end_matches('\r')
    }

    /// Number of lines.
    pub fn lines(&self) -> usize {
        self.line_starts.len()
    }

    /// The nearest byte at or before `offset` at which a character begins.
    pub fn floor(&self, offset: usize) -> usize {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        offset
    }
}

/// The text with every control character (which YAML forbids) replaced by U+FFFD.
fn readable(text: &str) -> String {
    let lone = |text: &str, at: usize| !text[at + 1..].starts_with('\n');
    let forbidden = |at: usize, c: char| match c {
        '\n' | '\t' => false,
        '\r' => lone(text, at),
        c => {
            c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c) || ('\u{2066}'..='\u{2069}').contains(&c)
        }
    };
    text.char_indices().map(|(at, c)| if forbidden(at, c) { '\u{fffd}' } else { c }).collect()
}

/// A stretch of a source.
#[derive(Clone)]
pub struct Span {
    /// The text it lies in.
    pub source: Arc<Source>,
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

impl Span {
    /// A stretch of a source, in bytes; cut to the text and to whole characters.
    pub fn new(source: &Arc<Source>, start: usize, end: usize) -> Self {
        let start = source.floor(start);
        Self { source: Arc::clone(source), start, end: source.floor(end).max(start) }
    }

    /// The beginning of a source.
    pub fn start_of(source: &Arc<Source>) -> Self {
        Self::new(source, 0, 0)
    }

    /// The text of the span.
    pub fn text(&self) -> &str {
        &self.source.text()[self.start..self.end]
    }

    /// The part of it on its first line, without blanks at the end.
    #[must_use]
    pub fn first_line(&self) -> Self {
        let line = self.text().split('\n').next().unwrap_or_default().trim_end();
        Self { end: self.start + line.len(), ..self.clone() }
    }

    /// File, line and column of its beginning.
    pub fn location(&self) -> Location {
        let (line, column) = self.source.line_column(self.start);
        Location { file: self.source.name().to_owned(), line, column }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.location())
    }
}

impl PartialEq for Span {
    fn eq(&self, other: &Self) -> bool {
        // Two assignments of the command line have one name but two texts.
        (self.start, self.end, self.source.name()) == (other.start, other.end, other.source.name())
            && self.source.text() == other.source.text()
    }
}

/// A place as people and editors write it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    /// The file as it was named, or `environment`, or `--set`.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}
