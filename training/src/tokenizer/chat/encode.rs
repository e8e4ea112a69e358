//! Chats as tokens. What people write stays text: only the template can write a special token.

use std::collections::BTreeMap;

use super::{Chat, ChatError, ChatTemplate};

/// Around a special token that stands in a text of the chat. Noncharacters: no text means anything by them.
const MARKS: [char; 2] = ['\u{fdd0}', '\u{fdd1}'];

pub(super) fn is_mark(c: char) -> bool {
    MARKS.contains(&c)
}

/// How pieces of a text become tokens.
pub(in super::super) trait Encoder {
    type Error: From<ChatError>;

    /// Tokens of a text, special tokens in it recognised or not.
    fn encode(&self, text: &str, specials: bool) -> Result<Vec<u32>, Self::Error>;

    /// The id of a special token.
    fn special(&self, token: &str) -> Option<u32>;
}

/// The tokens of a chat. A special token that stands in a message, a tool or a variable is encoded letter by letter.
pub(in super::super) fn encode<E: Encoder>(
    template: &ChatTemplate,
    chat: &Chat,
    names: &BTreeMap<String, String>,
    specials: &[String],
    encoder: &E,
) -> Result<Vec<u32>, E::Error> {
    let mut specials: Vec<&str> =
        specials.iter().map(String::as_str).filter(|token| !token.is_empty()).collect();
    // A token goes before those that are part of it.
    specials.sort_by_key(|token| (std::cmp::Reverse(token.len()), *token));
    let text = template.render(&chat.map_texts(&|text| marked(text, &specials)), names)?;
    if !text.contains(MARKS) {
        return encoder.encode(&text, true);
    }
    let (mut ids, mut is_first) = (Vec::new(), true);
    for (piece, is_marked) in pieces(&text, &specials) {
        if piece.is_empty() {
            continue;
        }
        let new =
            if is_first { encoder.encode(piece, !is_marked)? } else { inside(encoder, piece, !is_marked)? };
        if is_marked && encoder.special(piece).is_some_and(|id| new.contains(&id)) {
            return Err(ChatError::Forged(piece.to_owned()).into());
        }
        ids.extend(new);
        is_first = false;
    }
    Ok(ids)
}

/// Tokens of a piece that does not stand at the beginning: some tokenizers put a space in front of a text, so it is
/// encoded after a line break, whose tokens are taken off again.
fn inside<E: Encoder>(encoder: &E, piece: &str, specials: bool) -> Result<Vec<u32>, E::Error> {
    let (line_break, ids) = (encoder.encode("\n", false)?, encoder.encode(&format!("\n{piece}"), specials)?);
    match ids.strip_prefix(line_break.as_slice()) {
        Some(ids) => Ok(ids.to_vec()),
        None => encoder.encode(piece, specials),
    }
}

/// The first special token at or after each place, the longest of those that begin there.
fn next_special<'a>(text: &str, specials: &[&'a str]) -> Option<(usize, &'a str)> {
    let found = specials.iter().enumerate().filter_map(|(rank, token)| Some((text.find(token)?, rank)));
    found.min().map(|(at, rank)| (at, specials[rank]))
}

/// The text with marks around its special tokens; marks that it brings itself are taken out.
fn marked(text: &str, specials: &[&str]) -> String {
    let text = text.replace(MARKS, "");
    let (mut result, mut rest) = (String::with_capacity(text.len()), text.as_str());
    while let Some((at, token)) = next_special(rest, specials) {
        result.push_str(&rest[..at]);
        result.push(MARKS[0]);
        result.push_str(token);
        result.push(MARKS[1]);
        rest = &rest[at + token.len()..];
    }
    result + rest
}

/// A text cut at its marks: pieces, and whether each is a special token between two marks. A mark that a template has
/// torn from its other one only cuts.
fn pieces<'a>(text: &'a str, specials: &[&str]) -> Vec<(&'a str, bool)> {
    let (mut result, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find(MARKS) {
        result.push((&rest[..at], false));
        let after = &rest[at + MARKS[0].len_utf8()..];
        let is_start = rest[at..].starts_with(MARKS[0]);
        let token = specials
            .iter()
            .find(|token| after.strip_prefix(**token).is_some_and(|after| after.starts_with(MARKS[1])))
            .filter(|_| is_start);
        rest = match token {
            Some(token) => {
                result.push((&after[..token.len()], true));
                &after[token.len() + MARKS[1].len_utf8()..]
            }
            None => after,
        };
    }
    result.push((rest, false));
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_cut_where_special_tokens_stand() {
        let specials = ["<|end|><|x|>", "<|end|>", "<|x|>"];
        let text = marked("a<|end|><|x|>b<|end|>\u{fdd0}c", &specials);
        let pieces = |text: &str| -> Vec<(String, bool)> {
            super::pieces(text, &specials).into_iter().map(|(piece, is)| (piece.to_owned(), is)).collect()
        };
        let expected = [("a", false), ("<|end|><|x|>", true), ("b", false), ("<|end|>", true), ("c", false)];
        assert_eq!(pieces(&text), expected.map(|(piece, is)| (piece.to_owned(), is)));
        // A template cut a token in two: neither part is one.
        let torn = pieces("x\u{fdd0}<|en");
        assert_eq!(torn, [("x".to_owned(), false), ("<|en".to_owned(), false)]);
    }
}
