//! Plain words for the places where the YAML parser gives up: what people mostly meant when they wrote that.

use std::sync::Arc;

use super::super::{Diagnostic, Source, Span};

/// The text around a failure.
struct Place<'a> {
    source: &'a Arc<Source>,
    offset: usize,
    line: &'a str,
    /// The part of the line before the failure, and from it on.
    before: &'a str,
    after: &'a str,
    /// The last line before this one that has something on it.
    previous: &'a str,
}

/// What is wrong at `offset`, where the parser said `info`.
pub(super) fn explain(info: &str, source: &Arc<Source>, offset: usize) -> Diagnostic {
    let (number, _) = source.line_column(offset);
    let line = source.line(number);
    let column = (offset - source.offset(number, 0)).min(line.len());
    let filled = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let previous = (1..number).rev().map(|line| source.line(line)).find(filled).unwrap_or_default();
    let place = Place { source, offset, line, before: &line[..column], after: &line[column..], previous };
    let says = |part: &str| info.contains(part);
    if says("quoted scalar, found unknown escape") {
        place.unknown_escape()
    } else if says("trailing content after") {
        syntax("text after the closing quote", &place.rest(), "a value ends with its closing quote")
            .help("put the quotes around the whole value; inside double quotes a quote is \\\", inside single ones ''")
    } else if says("quoted scalar") {
        let quote = place.after.chars().next().filter(|c| matches!(c, '"' | '\'')).unwrap_or('"');
        syntax("this quote is never closed", &place.rest(), "a text in quotes ends with the same quote")
            .help(format!("add {quote} at the end of the text"))
    } else if says("tab") {
        syntax("a tab where YAML allows only spaces", &place.one(), "YAML is indented with spaces only")
            .help("replace the tab by spaces")
    } else if says("mapping values are not allowed") || says("simple key expect") {
        place.colon()
    } else if says("illegal placement of ':'")
        || says("expected ','")
        || says("flow")
        || says("unexpected end of plain")
    {
        place.bracket()
    } else if says("misplaced bracket") {
        let bracket = place.after.chars().next().unwrap_or(']');
        syntax(
            format!("`{bracket}` closes nothing"),
            &place.one(),
            "every closing bracket has an opening one",
        )
        .help("remove it, or add the opening one")
    } else if says("unexpected character") {
        let character = place.after.chars().next().unwrap_or('@');
        syntax(
            format!("a value cannot begin with `{character}`"),
            &place.rest(),
            "YAML keeps this character for itself",
        )
        .help(format!("put the value in quotes: {}", quoted(place.after)))
    } else if says("block sequence entries are not allowed") {
        syntax(
            "a list item stands on the line of its key",
            &place.rest(),
            "the items of a list stand on lines of their own",
        )
        .help("move `-` to a new line below the key, or write the list as `[a, b]`")
    } else if says("unknown anchor") {
        place.unknown_anchor()
    } else if says("expected '-' indicator") {
        syntax(
            "a key stands among the items of a list",
            &place.rest(),
            "a value is a list or a mapping, not both",
        )
        .help("indent the key so that it belongs to the item above, or put it before the list")
    } else if says("expected key") || says("indentation") || says("block end") {
        place.indentation()
    } else if says("recursion limit") {
        syntax(
            "more brackets inside brackets than any recipe needs",
            &place.one(),
            "no key of a recipe lies that deep",
        )
    } else {
        syntax(format!("this is not YAML: {info}"), &place.rest(), "")
            .help("look at this line and the one before it: a quote, a bracket, `:` or the indentation is not right")
    }
}

fn syntax(message: impl Into<String>, span: &Span, rule: &str) -> Diagnostic {
    Diagnostic::new("syntax", span, message).rule(rule)
}

impl Place<'_> {
    fn span(&self, from: usize, length: usize) -> Span {
        Span::new(self.source, from, from + length)
    }

    /// The character at the failure.
    fn one(&self) -> Span {
        self.span(self.offset, self.after.chars().next().map_or(0, char::len_utf8))
    }

    /// The line from the failure on.
    fn rest(&self) -> Span {
        self.span(self.offset, self.after.trim_end().len())
    }

    /// The line without its indentation.
    fn content(&self) -> Span {
        let content = self.line.trim();
        self.span(self.offset - self.before.len() + indent(self.line), content.len())
    }

    fn unknown_escape(&self) -> Diagnostic {
        let known = |c: char| "0abt\tnvfre \"/\\N_LPxuU".contains(c);
        let bytes = self.after.char_indices().collect::<Vec<_>>();
        let mut at = 0;
        while at + 1 < bytes.len() {
            match (bytes[at].1, bytes[at + 1].1) {
                ('\\', c) if known(c) => at += 2,
                ('\\', c) => {
                    let span = self.span(self.offset + bytes[at].0, 1 + c.len_utf8());
                    return syntax(
                        format!("`\\{c}` means nothing in double quotes"),
                        &span,
                        "in double quotes `\\` begins an escape, as \\n or \\\"",
                    )
                    .help(format!("use single quotes, where `\\` is itself, or write `\\\\{c}`"));
                }
                _ => at += 1,
            }
        }
        syntax(
            "an escape in double quotes that means nothing",
            &self.rest(),
            "in double quotes `\\` begins an escape",
        )
        .help("use single quotes, where `\\` is itself")
    }

    /// A `:` where none can be, or a word without one.
    fn colon(&self) -> Diagnostic {
        let content = self.line.trim();
        let earlier = self.before.trim_start().trim_start_matches("- ");
        if let Some((key, value)) = earlier.split_once(": ").filter(|_| self.after.starts_with(':')) {
            let value = format!("{value}{}", self.after.trim_end());
            let value = value.split(" #").next().unwrap_or_default();
            return syntax("a second `:` on one line", &self.one(), "a line has one key and one value")
                .help(format!("if the `:` belongs to the value, put it in quotes: `{key}: {}`; if not, begin a new line", quoted(value)));
        }
        let glued = |line: &str| {
            let (key, value) = line.trim().split_once(':')?;
            (!value.is_empty() && !value.starts_with(' ') && !key.contains(['"', '\'', ' ']))
                .then(|| format!("{key}: {value}"))
        };
        if let Some(spaced) = glued(content).or_else(|| glued(self.previous)) {
            let line = if glued(content).is_some() { self.line } else { self.previous };
            let from = self.source.text()[..self.offset].rfind(line.trim()).unwrap_or(self.offset);
            let span = if line == self.line { self.content() } else { self.span(from, line.trim().len()) };
            return syntax(
                format!("`{}` has no space after `:`", line.trim()),
                &span,
                "a key ends with `:` and a space",
            )
            .help(format!("write `{spaced}`"));
        }
        if indent(self.line) > indent(self.previous) && self.previous.contains(':') {
            let key = self.previous.trim().split(':').next().unwrap_or_default();
            return syntax(
                "this line is indented deeper than the one above, which already has a value",
                &self.content(),
                "nested keys stand below a key without a value of its own",
            )
            .help(format!("indent it like `{key}`, or remove the value of `{key}`"));
        }
        if !self.previous.contains(':') && !self.previous.trim_start().starts_with('-') {
            let word = self.previous.trim();
            let from = self.source.text()[..self.offset].rfind(word).unwrap_or(self.offset);
            return syntax(
                format!("`{word}` is neither a key nor a value"),
                &self.span(from, word.len()),
                "a key ends with `:`",
            )
            .help(format!("write `{word}:` and its value"));
        }
        syntax("a `:` where none can be", &self.content(), "a line has one key and one value")
            .help("put a value that has a `:` in quotes")
    }

    /// A bracket that was not closed, or something inside one that is neither an item nor a comma.
    fn bracket(&self) -> Diagnostic {
        let Some((at, open)) = open_bracket(&self.source.text()[..self.offset]) else {
            return syntax(
                "something is wrong inside these brackets",
                &self.one(),
                "items in brackets are separated by `,`",
            );
        };
        let close = if open == '[' { ']' } else { '}' };
        let same_line = self.source.line_column(at).0 == self.source.line_column(self.offset).0;
        if same_line && !self.after.trim().is_empty() {
            return syntax(format!("`,` or `{close}` is missing here"), &self.rest(), "items in brackets are separated by `,`")
                .help(format!("add `,` between two items, or `{close}` after the last one; quote a text that has one of , [ ] {{ }} in it"));
        }
        syntax(
            format!("`{open}` is never closed"),
            &self.span(at, 1),
            "every opening bracket has a closing one",
        )
        .help(format!("add `{close}` after the last item"))
    }

    fn unknown_anchor(&self) -> Diagnostic {
        let name = self.after.trim_start_matches('*').split([' ', ',', ']', '}']).next().unwrap_or_default();
        let span = self.span(self.offset, name.len() + 1);
        syntax(
            format!("`*{name}` repeats a value that nothing above names"),
            &span,
            "an alias `*name` repeats the value marked `&name` before it",
        )
        .help(format!(
            "mark the value with `&{name}`; if `*` belongs to a text, put it in quotes: \"*{name}\""
        ))
    }

    /// A line whose indentation fits no line above.
    fn indentation(&self) -> Diagnostic {
        if self.line.trim_start().starts_with("- ") {
            return syntax(
                "a list item stands among the keys of a mapping",
                &self.content(),
                "a value is a list or a mapping, not both",
            )
            .help("indent the item below the key that it belongs to");
        }
        let here = indent(self.line);
        let (number, _) = self.source.line_column(self.offset);
        let mut open = Vec::new();
        let mut least = usize::MAX;
        for line in (1..number).rev().map(|line| self.source.line(line)) {
            let content = line.trim_start();
            if !content.is_empty() && !content.starts_with('#') && indent(line) < least {
                least = indent(line);
                open.push(least);
            }
        }
        open.sort_unstable();
        let levels = open.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let nearest = open.iter().min_by_key(|level| level.abs_diff(here)).copied().unwrap_or(0);
        syntax(
            format!("this line is indented by {}; no mapping above it is", spaces(here)),
            &self.content(),
            "the keys of one mapping are indented alike",
        )
        .help(match nearest {
            0 => format!("move it to the left edge (the mappings above are indented by {levels})"),
            _ => format!("indent it by {nearest} (the mappings above are indented by {levels})"),
        })
    }
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

fn spaces(count: usize) -> String {
    match count {
        0 => "no space".into(),
        1 => "1 space".into(),
        count => format!("{count} spaces"),
    }
}

fn quoted(text: &str) -> String {
    let text = text.trim();
    if text.contains('"') { format!("'{}'", text.replace('\'', "''")) } else { format!("\"{text}\"") }
}

/// The innermost bracket that is open at the end of a text; quotes and comments are skipped as far as that is easy.
fn open_bracket(text: &str) -> Option<(usize, char)> {
    let mut open = Vec::new();
    let mut quote = None;
    let mut last = ' ';
    let mut comment = false;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            _ if comment => comment = c != '\n',
            (Some(q), c) => quote = if c == q { None } else { Some(q) },
            (None, '"' | '\'') if " [{,:".contains(last) => quote = Some(c),
            (None, '#') if last.is_whitespace() => comment = true,
            (None, '[' | '{') => open.push((at, c)),
            (None, ']' | '}') => drop(open.pop()),
            _ => {}
        }
        last = c;
    }
    open.pop()
}
