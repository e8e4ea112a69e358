//! Just enough of Rust's lexer to tell code, comments and literals apart.

/// What a stretch of source text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Code,
    Comment,
    Literal,
}

/// A string literal and where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Literal {
    /// The line, from 1.
    pub line: usize,
    /// What stands between the quotes, escapes as written.
    pub content: String,
}

/// Rust source taken apart.
#[derive(Debug)]
pub struct RustText {
    /// The source with comments, and the content of literals, turned into spaces; lines stay where they are.
    pub code: String,
    /// The string literals, in order.
    pub literals: Vec<Literal>,
}

impl RustText {
    /// Takes a source file apart.
    pub fn of(source: &str) -> Self {
        let chars: Vec<char> = source.chars().collect();
        let mut text = Self { code: String::with_capacity(source.len()), literals: Vec::new() };
        let (mut at, mut line) = (0, 1);
        while at < chars.len() {
            let (part, end, open) = next(&chars, at);
            let stretch = &chars[at..end];
            if part == Part::Literal && stretch[open - 1] == '"' {
                // The closing quote and its hashes are as long as the opening ones without the prefix.
                let close = stretch.iter().rev().take_while(|c| **c == '#').count() + 1;
                let content = stretch[open..stretch.len().saturating_sub(close).max(open)].iter().collect();
                text.literals.push(Literal { line, content });
            }
            for (i, c) in stretch.iter().enumerate() {
                let kept = *c == '\n' || part == Part::Code || (part == Part::Literal && i < open);
                text.code.push(if kept { *c } else { ' ' });
            }
            line += stretch.iter().filter(|c| **c == '\n').count();
            at = end;
        }
        text
    }

    /// The lines, from 1, of the items under `#[cfg(test)]`.
    pub fn test_lines(&self) -> Vec<std::ops::RangeInclusive<usize>> {
        let mut ranges = Vec::new();
        for (begin, attribute) in self.code.match_indices("#[cfg(test)]") {
            let rest = &self.code[begin + attribute.len()..];
            let length = item_length(rest);
            let line = |end: usize| self.code[..end].matches('\n').count() + 1;
            ranges.push(line(begin)..=line(begin + attribute.len() + length));
        }
        ranges
    }
}

/// The length of the item at the beginning of `code`: up to its `;`, or the brace that closes its first one.
fn item_length(code: &str) -> usize {
    let mut depth = 0_usize;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at + 1;
                }
            }
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

/// The part that begins at `at`, its end, and for a literal the length of what opens it.
fn next(chars: &[char], at: usize) -> (Part, usize, usize) {
    let rest = &chars[at..];
    let after = |n: usize| (at + n).min(chars.len());
    match rest {
        ['/', '/', ..] => {
            (Part::Comment, after(rest.iter().position(|c| *c == '\n').unwrap_or(rest.len())), 0)
        }
        ['/', '*', ..] => (Part::Comment, after(block_comment(rest)), 0),
        ['"', ..] => (Part::Literal, after(string(rest, 1)), 1),
        ['\'', '\\', ..] => (Part::Literal, after(char_literal(rest)), 1),
        // 'a' is a character, 'a alone a lifetime.
        ['\'', _, '\'', ..] => (Part::Literal, after(3), 1),
        [c, ..] if c.is_alphabetic() || *c == '_' => word(chars, at),
        _ => (Part::Code, after(1), 0),
    }
}

/// A word, or the literal that it is the prefix of: `r"..."`, `r#"..."#`, `b"..."`, `br"..."`, `c"..."`.
fn word(chars: &[char], at: usize) -> (Part, usize, usize) {
    let rest = &chars[at..];
    let length = rest.iter().position(|c| !c.is_alphanumeric() && *c != '_').unwrap_or(rest.len());
    let prefix: String = rest[..length].iter().collect();
    let is_raw = matches!(prefix.as_str(), "r" | "br" | "cr");
    let hashes = rest[length..].iter().take_while(|c| **c == '#').count();
    let open = length + hashes + 1;
    let quoted = rest.get(open - 1) == Some(&'"');
    if is_raw && quoted {
        let closing: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
        let body = &rest[open..];
        let end = body.windows(closing.len()).position(|window| window == closing);
        return (Part::Literal, at + end.map_or(rest.len(), |end| open + end + closing.len()), open);
    }
    if matches!(prefix.as_str(), "b" | "c") && hashes == 0 && quoted {
        return (Part::Literal, at + string(rest, open), open);
    }
    (Part::Code, at + length, 0)
}

/// The length of a string that is open after `open` characters.
fn string(rest: &[char], open: usize) -> usize {
    let mut at = open;
    while at < rest.len() {
        match rest[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

fn char_literal(rest: &[char]) -> usize {
    rest.iter().skip(3).position(|c| *c == '\'').map_or(rest.len(), |end| end + 4)
}

fn block_comment(rest: &[char]) -> usize {
    let (mut at, mut depth) = (2, 1);
    while at + 1 < rest.len() && depth > 0 {
        let step = match (rest[at], rest[at + 1]) {
            ('/', '*') => {
                depth += 1;
                2
            }
            ('*', '/') => {
                depth -= 1;
                2
            }
            _ => 1,
        };
        at += step;
    }
    if depth > 0 { rest.len() } else { at }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(source: &str) -> Vec<String> {
        RustText::of(source).literals.into_iter().map(|literal| literal.content).collect()
    }

    #[test]
    fn literals_of_every_form() {
        assert_eq!(
            contents(r##"f("a", r"b\", r#"c"d"#, b"e", c"f\"g", '"', "")"##),
            ["a", r"b\", "c\"d", "e", "f\\\"g", ""]
        );
    }

    #[test]
    fn comments_and_literals_are_blanked() {
        let source = "a /* x /* y */ \"z\" */ b // \"c\"\n\"d\ne\" f";
        let text = RustText::of(source);
        assert_eq!(text.code.split_whitespace().collect::<Vec<_>>(), ["a", "b", "\"", "f"]);
        assert_eq!(text.literals, [Literal { line: 2, content: "d\ne".into() }]);
        assert_eq!(text.code.lines().count(), source.lines().count());
    }

    #[test]
    fn lifetimes_are_no_characters() {
        let text = RustText::of("fn f<'a>(x: &'a str, c: char) { c == '\\'' || c == '}' } // end");
        assert!(text.code.contains("<'a>(x: &'a str"), "{}", text.code);
        assert!(!text.code.contains("'}"), "{}", text.code);
        assert!(text.literals.is_empty());
    }

    #[test]
    fn unfinished_text_ends_at_its_end() {
        for source in ["\"abc", "r#\"abc", "/* abc", "'\\", "b\"\\", "r", "'"] {
            assert_eq!(RustText::of(source).code.chars().count(), source.chars().count(), "{source}");
        }
    }

    #[test]
    fn test_items_are_found() {
        let source = "fn a() {}\n#[cfg(test)]\nmod tests {\n  fn b() { \"}\"; }\n}\nfn c() {}\n#[cfg(test)]\nmod d;\nfn e() {}";
        assert_eq!(RustText::of(source).test_lines(), [2..=5, 7..=8]);
    }
}
