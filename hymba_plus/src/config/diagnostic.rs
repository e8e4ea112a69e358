//! What is wrong with a recipe, as a value: every problem with its place, its rule and its remedy.

use std::{error::Error, fmt};

use miette::{LabeledSpan, NamedSource, SourceCode};
use serde_json::{Value, json};

use super::{render, source::Span};

/// Nobody reads more problems than these at once.
const MOST_PROBLEMS: usize = 200;

/// One problem of a recipe.
#[derive(Debug, Clone)]
pub struct Diagnostic {
    /// A short fixed name for scripts, as `unknown-key`.
    pub code: &'static str,
    /// What is wrong, with the values, in one sentence.
    pub message: String,
    /// Dotted path of the key, as `model.mixers[0].n_heads`; empty when no key is to blame.
    pub path: String,
    /// The rule that was broken; empty when the message says it all.
    pub rule: String,
    /// What to do, best the nearest right answer.
    pub help: Option<String>,
    /// Words under the marked text.
    pub label: String,
    /// The marked text.
    pub span: Span,
    /// A second place that matters, and what it is.
    pub related: Option<(String, Span)>,
    source: NamedSource<std::sync::Arc<String>>,
    other_source: Option<Box<Related>>,
}

#[derive(Debug, Clone)]
struct Related {
    source: NamedSource<std::sync::Arc<String>>,
    label: String,
    span: Span,
}

impl Diagnostic {
    /// A problem at a place.
    pub fn new(code: &'static str, span: &Span, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            path: String::new(),
            rule: String::new(),
            help: None,
            label: String::new(),
            span: span.first_line(),
            related: None,
            source: NamedSource::new(span.source.name(), span.source.shared_text()),
            other_source: None,
        }
    }

    /// With the dotted path of the key.
    #[must_use]
    pub fn at(mut self, path: impl Into<String>) -> Self {
        self.path = path.into();
        self
    }

    /// With the rule that was broken.
    #[must_use]
    pub fn rule(mut self, rule: impl Into<String>) -> Self {
        self.rule = rule.into();
        self
    }

    /// With what to do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into()).filter(|help: &String| !help.is_empty());
        self
    }

    /// With words under the marked text.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// With a second place.
    #[must_use]
    pub fn related(mut self, label: impl Into<String>, span: &Span) -> Self {
        let (label, span) = (label.into(), span.first_line());
        if span.source.name() != self.span.source.name() {
            let source = NamedSource::new(span.source.name(), span.source.shared_text());
            self.other_source = Some(Box::new(Related { source, label: label.clone(), span: span.clone() }));
        }
        self.related = Some((label, span));
        self
    }

    /// The name of the file, or `environment`, or `--set`.
    pub fn file(&self) -> &str {
        self.span.source.name()
    }

    /// Line, from 1.
    pub fn line(&self) -> usize {
        self.span.source.line_column(self.span.start).0
    }

    /// Column in characters, from 1.
    pub fn column(&self) -> usize {
        self.span.source.line_column(self.span.start).1
    }

    /// The line that holds the problem.
    pub fn snippet(&self) -> &str {
        self.span.source.line(self.line())
    }

    /// Files first, the recipe's own before others; then the order of the text.
    fn order<'a>(&'a self, subject: &str) -> (u8, bool, &'a str, usize, &'a str) {
        let source = &self.span.source;
        (source.origin() as u8, source.name() != subject, source.name(), self.span.start, &self.message)
    }

    /// The problem as JSON, for scripts.
    pub fn to_json(&self) -> Value {
        json!({
            "code": self.code,
            "message": self.message,
            "path": self.path,
            "rule": self.rule,
            "help": self.help,
            "file": self.file(),
            "line": self.line(),
            "column": self.column(),
            "length": self.span.text().chars().count(),
            "snippet": self.snippet(),
            "related": self.related.as_ref().map(|(label, span)| {
                let place = span.location();
                json!({ "label": label, "file": place.file, "line": place.line, "column": place.column })
            }),
        })
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Diagnostic {}

impl miette::Diagnostic for Diagnostic {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(format!("hymba::{}", self.code)))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        let lines = render::footer(self).into_iter().map(|(name, text)| match name {
            "help" => text,
            name => format!("{name}: {text}"),
        });
        Some(lines.collect::<Vec<_>>().join("\n"))
            .filter(|text| !text.is_empty())
            .map(|text| Box::new(text) as _)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&self.source)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let labelled = |label: &str, span: &Span| {
            let label = Some(label.to_owned()).filter(|label| !label.is_empty());
            (label, span.start, span.end - span.start)
        };
        let (label, start, length) = labelled(&self.label, &self.span);
        let mut labels = vec![LabeledSpan::new_primary_with_span(label, (start, length))];
        if let (Some((label, span)), None) = (&self.related, &self.other_source) {
            let (label, start, length) = labelled(label, span);
            labels.push(LabeledSpan::new(label, start, length));
        }
        Some(Box::new(labels.into_iter()))
    }

    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn miette::Diagnostic> + 'a>> {
        let other = self.other_source.as_deref()?;
        Some(Box::new(std::iter::once(other as &dyn miette::Diagnostic)))
    }
}

impl fmt::Display for Related {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

impl Error for Related {}

impl miette::Diagnostic for Related {
    fn severity(&self) -> Option<miette::Severity> {
        Some(miette::Severity::Advice)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&self.source)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let length = self.span.end - self.span.start;
        Some(Box::new(std::iter::once(LabeledSpan::new_primary_with_span(None, (self.span.start, length)))))
    }
}

/// Everything that is wrong with a recipe, at least one problem, in the order of the text.
#[derive(Debug, Clone)]
pub struct Diagnostics {
    subject: String,
    list: Vec<Diagnostic>,
    /// How many problems were left out.
    more: usize,
}

impl Diagnostics {
    /// The problems of `subject` (a file's name), in the order of the text; repeated ones are dropped.
    pub(super) fn of(subject: &str, mut problems: Vec<Diagnostic>) -> Self {
        problems.sort_by(|a, b| a.order(subject).cmp(&b.order(subject)));
        // Equal ones are neighbours now: an alias that repeats a wrong value repeats its problems.
        problems.dedup_by(|a, b| a.span == b.span && a.message == b.message);
        let more = problems.len().saturating_sub(MOST_PROBLEMS);
        problems.truncate(MOST_PROBLEMS);
        Self { subject: subject.to_owned(), list: problems, more }
    }

    /// `Ok` when there is no problem.
    pub(super) fn check(subject: &str, problems: Vec<Diagnostic>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self::of(subject, problems)) }
    }

    /// A single problem.
    pub fn one(problem: Diagnostic) -> Self {
        Self { subject: problem.file().to_owned(), list: vec![problem], more: 0 }
    }

    /// The problems, in the order of the text.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.list.iter()
    }

    /// How many problems there are: never none.
    #[allow(clippy::len_without_is_empty)] // there is always one
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// The recipe that has them, as it was named.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// All problems as a JSON list, for scripts.
    pub fn to_json(&self) -> Value {
        Value::Array(self.list.iter().map(Diagnostic::to_json).collect())
    }

    /// All problems as text for a terminal, `width` columns wide; the same bytes every time.
    pub fn render(&self, color: bool, width: usize) -> String {
        render::all(self, color, width)
    }

    /// The last line of the text: how many problems, and where.
    pub fn summary(&self) -> String {
        let count = self.list.len() + self.more;
        let shown =
            if self.more > 0 { format!(" (the first {MOST_PROBLEMS} are shown)") } else { String::new() };
        format!("{count} problem{} in {}{shown}", if count == 1 { "" } else { "s" }, self.subject)
    }
}

impl<'a> IntoIterator for &'a Diagnostics {
    type Item = &'a Diagnostic;
    type IntoIter = std::slice::Iter<'a, Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.summary())?;
        for problem in &self.list {
            write!(f, "\n{}: {}", problem.span.location(), problem.message)?;
        }
        Ok(())
    }
}

impl Error for Diagnostics {}

impl miette::Diagnostic for Diagnostics {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new("hymba::recipe"))
    }

    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn miette::Diagnostic> + 'a>> {
        Some(Box::new(self.list.iter().map(|one| one as &dyn miette::Diagnostic)))
    }
}
