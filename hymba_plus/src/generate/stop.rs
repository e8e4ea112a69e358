//! Stop strings, wherever the borders of tokens fall.

/// Finds the end of a text that comes in pieces: what may still become a stop string is held back until it is certain.
#[derive(Debug, Clone, Default)]
pub struct StopStrings {
    strings: Vec<String>,
    held: String,
    found: Option<usize>,
}

impl StopStrings {
    /// Texts that end a sequence; empty ones end nothing.
    pub fn new(strings: &[String]) -> Self {
        let strings = strings.iter().filter(|string| !string.is_empty()).cloned().collect();
        Self { strings, ..Self::default() }
    }

    /// Takes a piece and gives the text that is certain not to belong to a stop string. What stands at and after the
    /// stop string that is complete first (the longest of those that are complete at once) is never given.
    pub fn push(&mut self, piece: &str) -> String {
        if self.found.is_some() {
            return String::new();
        }
        self.held.push_str(piece);
        let held = &self.held;
        let places = self.strings.iter().enumerate().filter_map(|(i, string)| {
            let start = held.find(string)?;
            Some((start + string.len(), start, i))
        });
        if let Some((_, start, i)) = places.min() {
            self.found = Some(i);
            let mut before = std::mem::take(&mut self.held);
            before.truncate(start);
            return before;
        }
        // The longest end of the text that a stop string begins with.
        let is_beginning = |end: &str| self.strings.iter().any(|string| string.starts_with(end));
        let cut = held.char_indices().map(|(at, _)| at).find(|&at| is_beginning(&held[at..]));
        let rest = cut.map(|cut| self.held.split_off(cut)).unwrap_or_default();
        std::mem::replace(&mut self.held, rest)
    }

    /// The stop string that came, if one did.
    pub fn found(&self) -> Option<&str> {
        self.found.map(|i| self.strings[i].as_str())
    }

    /// What was held back, when nothing comes any more.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition: character by character, the first place where a stop string is complete.
    fn cut<'a>(text: &'a str, strings: &[String]) -> (&'a str, bool) {
        for (at, c) in text.char_indices() {
            let so_far = &text[..at + c.len_utf8()];
            let ends = strings.iter().filter(|s| !s.is_empty() && so_far.ends_with(s.as_str()));
            if let Some(longest) = ends.map(String::len).max() {
                return (&so_far[..so_far.len() - longest], true);
            }
        }
        (text, false)
    }

    #[test]
    fn pieces_do_not_matter() {
        let stops: [&[&str]; 7] = [
            &["\n\n"],
            &["stop", "top"],
            &["aab"],
            &["é!", "日本"],
            &["abc", "b"],
            &["", "x"],
            &["User:", "\nUser:"],
        ];
        let texts = [
            "a stop here",
            "aaab aab",
            "caf\u{e9}\u{e9}! 日日本",
            "one\n\ntwo",
            "abc",
            "\nUser: hi",
            "",
            "sto",
        ];
        for strings in stops {
            let strings: Vec<String> = strings.iter().map(|s| (*s).to_owned()).collect();
            for text in texts {
                let (expected, stops) = cut(text, &strings);
                let characters: Vec<char> = text.chars().collect();
                for size in 1..=characters.len().max(1) {
                    let (mut stop, mut given) = (StopStrings::new(&strings), String::new());
                    for piece in characters.chunks(size) {
                        given += &stop.push(&piece.iter().collect::<String>());
                        assert!(expected.starts_with(&given), "{given:?} of {text:?}");
                        if stop.found().is_some() {
                            break;
                        }
                    }
                    assert_eq!(stop.found().is_some(), stops, "{strings:?} in {text:?}");
                    given += &stop.finish();
                    assert_eq!(given, expected, "{strings:?} in {text:?} by {size}");
                }
            }
        }
    }
}
