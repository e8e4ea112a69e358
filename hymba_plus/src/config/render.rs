//! The text of problems on a terminal: miette draws the snippet, the lines below it are ours.

use std::fmt::Write as _;

use miette::{GraphicalReportHandler, GraphicalTheme, ThemeCharacters, ThemeStyles};

use super::{Diagnostic, Diagnostics};

/// Narrower than this nothing is readable, so nothing is folded narrower.
const LEAST_WIDTH: usize = 40;

/// Name and text of the lines below the snippet.
pub(super) fn footer(problem: &Diagnostic) -> Vec<(&'static str, String)> {
    let lines = [
        ("path", problem.path.clone()),
        ("rule", problem.rule.clone()),
        ("help", problem.help.clone().unwrap_or_default()),
    ];
    lines.into_iter().filter(|(_, text)| !text.is_empty()).collect()
}

/// Every problem, and the count.
pub(super) fn all(problems: &Diagnostics, color: bool, width: usize) -> String {
    let width = width.max(LEAST_WIDTH);
    let mut text: String = problems.iter().map(|problem| one(problem, color, width) + "\n").collect();
    text.push_str(&problems.summary());
    text.push('\n');
    text
}

fn one(problem: &Diagnostic, color: bool, width: usize) -> String {
    let styles = if color { ThemeStyles::ansi() } else { ThemeStyles::none() };
    let theme = GraphicalTheme { characters: ThemeCharacters::unicode(), styles };
    let handler = GraphicalReportHandler::new_themed(theme)
        .with_links(false)
        .with_width(width)
        .with_break_words(false)
        .without_cause_chain()
        .without_syntax_highlighting()
        .tab_width(2);
    let mut text = String::new();
    if handler.render_report(&mut text, &Bare(problem)).is_err() {
        // The handler only fails when a span does not lie in its text; the place and the message still help.
        text = format!("  × {}\n  at {}\n", problem.message, problem.span.location());
    }
    for (name, line) in footer(problem) {
        let name =
            if color && name == "help" { format!("\u{1b}[36m{name}\u{1b}[0m") } else { name.to_owned() };
        let _ = writeln!(text, "  {name}: {}", folded(&line, width.saturating_sub(8), "        "));
    }
    text
}

/// Folds a text at blanks to `width` columns; later lines begin with `indent`.
fn folded(text: &str, width: usize, indent: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for paragraph in text.split('\n') {
        let mut line = String::new();
        for word in paragraph.split(' ') {
            if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
    }
    lines.join(&format!("\n{indent}"))
}

/// A problem without its footer, which miette would print as one block of help.
#[derive(Debug)]
struct Bare<'a>(&'a Diagnostic);

impl std::fmt::Display for Bare<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Bare<'_> {}

impl miette::Diagnostic for Bare<'_> {
    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        self.0.source_code()
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = miette::LabeledSpan> + '_>> {
        self.0.labels()
    }

    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn miette::Diagnostic> + 'a>> {
        self.0.related()
    }
}
