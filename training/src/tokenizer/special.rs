//! Special tokens: what they are called, and why text can never contain one.

use tokenizers::{
    AddedToken, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
    pre_tokenizers::byte_level::ByteLevel,
};

use super::TokenizerError;

/// Border between documents; also what a generation without a prompt starts from.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// Fills short rows; never a target.
pub const PAD: &str = "<|pad|>";

/// The two built-in special tokens and the recipe's own, in order, each once.
///
/// # Errors
/// When one of them could be produced by ordinary text: tokenizers here never look for special tokens in text, so the
/// only way would be that training merges one out of pieces, and that cannot happen across a border of pre-tokens.
pub(super) fn all(extra: &[String]) -> Result<Vec<AddedToken>, TokenizerError> {
    let mut names = vec![END_OF_TEXT.to_owned(), PAD.to_owned()];
    for token in extra {
        if names.contains(token) {
            continue;
        }
        if token.is_empty() {
            return Err(TokenizerError::Special { token: token.clone(), reason: "it is empty" });
        }
        if words(token)?.len() < 2 {
            return Err(TokenizerError::Special {
                token: token.clone(),
                reason: "it is one word or one symbol",
            });
        }
        names.push(token.clone());
    }
    Ok(names.into_iter().map(|name| AddedToken::from(name, true)).collect())
}

/// The byte-level step that all trained kinds share: GPT-2's word borders, no space put in front, nothing lost.
pub(super) fn byte_level() -> ByteLevel {
    ByteLevel::new(false, false, true)
}

/// A text cut into words at GPT-2's borders, each byte written as one printable character.
pub(super) fn words(text: &str) -> Result<Vec<String>, TokenizerError> {
    let mut pieces = PreTokenizedString::from(text);
    byte_level().pre_tokenize(&mut pieces).map_err(TokenizerError::library("splitting text into words"))?;
    let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::None);
    Ok(splits.into_iter().map(|(word, _, _)| word.to_owned()).collect())
}

/// The character by which the byte-level alphabet writes each of the 256 bytes (Radford et al. 2019, GPT-2):
/// printable Latin-1 stands for itself, the others are numbered from U+0100.
pub(super) fn byte_characters() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|byte| {
        let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if printable {
            byte as u32
        } else {
            next += 1;
            next - 1
        };
        char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER) // all codes are below 0x200: valid characters
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_is_the_librarys() {
        let ours: std::collections::BTreeSet<char> = byte_characters().into_iter().collect();
        let theirs: std::collections::BTreeSet<char> = ByteLevel::alphabet().into_iter().collect();
        assert_eq!(ours, theirs);
        assert_eq!(byte_characters()[usize::from(b' ')], 'Ġ');
    }

    #[test]
    fn a_special_token_that_text_could_spell_is_refused() {
        for bad in ["tool", "<>", "", " 7"] {
            let error = all(&[bad.to_owned()]).unwrap_err().to_string();
            assert!(error.contains("<|name|>"), "{error}");
        }
        let ok = all(&["<|user|>".into(), PAD.into(), "<|user|>".into()]).unwrap();
        assert_eq!(ok.iter().map(|t| t.content.as_str()).collect::<Vec<_>>(), [END_OF_TEXT, PAD, "<|user|>"]);
    }
}
