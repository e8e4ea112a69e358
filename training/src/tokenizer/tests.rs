//! What every kind of tokenizer must do.

use hymba_plus::registry::Component;
use proptest::prelude::*;
use serde_json::json;

use super::{Tokenizer, TokenizerError};
use crate::slot::{TokenizerSpec, tokenizer};

const TEXT: &str = "The quick brown fox jumps over the lazy dog. the fox, the dog, the end!\n\nIt's 1984; they're \
                    here: naïve café, 日本語のテキスト and emoji 👩‍👩‍👧. the quick the quick the quick brown brown fox\n";

fn spec(value: serde_json::Value) -> Box<dyn TokenizerSpec> {
    serde_json::from_value::<Component<tokenizer>>(value).unwrap().make().unwrap()
}

fn build(value: serde_json::Value, texts: &[&str]) -> Result<Tokenizer, TokenizerError> {
    spec(value).build(texts, &|path| path.as_str().into())
}

fn kinds() -> Vec<(&'static str, Tokenizer)> {
    vec![
        ("bpe", build(json!({ "kind": "byte_level_bpe", "vocab_size": 300 }), &[TEXT]).unwrap()),
        ("unigram", build(json!({ "kind": "unigram", "vocab_size": 300 }), &[TEXT]).unwrap()),
        ("bytes", build(json!("bytes"), &[]).unwrap()),
    ]
}

fn comes_back(tokenizer: &Tokenizer, text: &str) {
    let ids = tokenizer.encode(text).unwrap();
    assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
    assert!(!ids.contains(&tokenizer.eos()) && !ids.contains(&tokenizer.pad()), "{text:?}");
    assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    let mut stream = tokenizer.stream();
    let mut streamed = String::new();
    for id in ids {
        streamed += &stream.push(id).unwrap();
        assert!(text.starts_with(&streamed), "{streamed:?} of {text:?}");
    }
    streamed += &stream.finish().unwrap();
    assert_eq!(streamed, text);
}

#[test]
fn odd_texts_come_back_from_their_tokens() {
    let odd = [
        "",
        " ",
        "  leading and trailing  ",
        "\u{feff}byte order mark",
        "\0nul\u{1}\u{7f}\u{85}\u{a0}\u{ad}",
        "\r\n\t\u{b}\u{c}\u{2028}\u{3000}",
        "e\u{301} é \u{1e9b}\u{323} ﬁ Å",
        "👩‍👩‍👧‍👦🏳️‍🌈 \u{10ffff}\u{e000}",
        "العربية עברית हिन्दी ไทย 한국어",
        "\u{fffd}\u{fffd} replacement",
        "a text that says <|endoftext|> and <|pad|> <|endoftext|>",
        "Ġ Ċ ġ letters that the byte alphabet uses",
    ];
    for (name, tokenizer) in kinds() {
        for text in odd {
            comes_back(&tokenizer, text);
        }
        comes_back(&tokenizer, &"x".repeat(5000));
        comes_back(&tokenizer, TEXT);
        println!("{name}: {} tokens", tokenizer.encode(TEXT).unwrap().len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn every_text_comes_back_from_its_tokens(texts in proptest::collection::vec(any::<String>(), 1..8)) {
        thread_local!(static KINDS: Vec<(&'static str, Tokenizer)> = kinds());
        KINDS.with(|kinds| {
            for (_, tokenizer) in kinds {
                for text in &texts {
                    comes_back(tokenizer, text);
                }
                let borrowed: Vec<&str> = texts.iter().map(String::as_str).collect();
                let one_by_one: Vec<_> = texts.iter().map(|text| tokenizer.encode(text).unwrap()).collect();
                assert_eq!(tokenizer.encode_batch(&borrowed).unwrap(), one_by_one);
            }
        });
    }

    #[test]
    fn any_tokens_stream_as_they_decode(seed in proptest::collection::vec(any::<u32>(), 0..40)) {
        // A model can produce anything, also bytes that are no UTF-8.
        let tokenizer = build(json!("bytes"), &[]).unwrap();
        let ids: Vec<u32> = seed.iter().map(|id| id % tokenizer.vocab_size() as u32).collect();
        let mut stream = tokenizer.stream();
        let mut streamed = String::new();
        for &id in &ids {
            streamed += &stream.push(id).unwrap();
        }
        streamed += &stream.finish().unwrap();
        prop_assert_eq!(streamed, tokenizer.decode(&ids).unwrap());
    }
}

#[test]
fn training_gives_the_same_bytes_whatever_the_threads() {
    let text = TEXT.repeat(3) + "some rare words: zyx wvu tsr qpo";
    for kind in ["byte_level_bpe", "unigram"] {
        let config = json!({ "kind": kind, "vocab_size": 320 });
        let hashes: Vec<String> = [1, 2, 5]
            .into_iter()
            .flat_map(|threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let train = || build(config.clone(), &[&text, "another document"]).unwrap().hash();
                pool.install(|| [train(), train()])
            })
            .collect();
        assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{kind}: {hashes:?}");
    }
}

#[test]
fn a_saved_tokenizer_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    for (name, tokenizer) in kinds() {
        let path = folder.path().join(name).join("tokenizer.json");
        tokenizer.save(&path).unwrap();
        let loaded = Tokenizer::load(&path).unwrap();
        assert_eq!(loaded.hash(), tokenizer.hash(), "{name}");
        assert_eq!((loaded.eos(), loaded.pad()), (tokenizer.eos(), tokenizer.pad()));
        assert_eq!(loaded.planned_vocab_size(), tokenizer.planned_vocab_size());
        assert_eq!(loaded.encode(TEXT).unwrap(), tokenizer.encode(TEXT).unwrap());
        comes_back(&loaded, TEXT);
    }
}

#[test]
fn a_file_names_its_borders() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let config = json!({ "kind": "byte_level_bpe", "vocab_size": 300, "special_tokens": ["<|user|>"] });
    build(config, &[TEXT]).unwrap().save(&path).unwrap();
    let path = path.to_str().unwrap();
    let read = build(json!({ "kind": "file", "path": path }), &[]).unwrap();
    assert_eq!((read.eos(), read.pad()), (0, 1));
    let read = build(json!({ "kind": "file", "path": path, "pad": "<|user|>" }), &[]).unwrap();
    assert_eq!((read.pad(), read.id("<|user|>")), (2, Some(2)));
    let error =
        build(json!({ "kind": "file", "path": path, "end_of_text": "</s>" }), &[]).unwrap_err().to_string();
    assert!(error.contains("`</s>`") && error.contains("<|endoftext|> <|pad|> <|user|>"), "{error}");
    assert!(error.contains("`end_of_text`"), "{error}");
    std::fs::write(path, "{}").unwrap();
    let error = build(json!({ "kind": "file", "path": path }), &[]).unwrap_err().to_string();
    assert!(error.contains("not a tokenizer.json"), "{error}");
}

#[test]
fn sizes_are_as_planned_or_said() {
    for kind in ["byte_level_bpe", "unigram"] {
        let config = json!({ "kind": kind, "vocab_size": 400 });
        let tokenizer = build(config.clone(), &[include_str!("tests.rs")]).unwrap();
        assert_eq!((tokenizer.vocab_size(), tokenizer.notice()), (400, None), "{kind}");
        assert_eq!(spec(config).vocab_size(&|path| path.as_str().into()).unwrap(), 400);

        let short = build(json!({ "kind": kind, "vocab_size": 5000 }), &["ab ab"]).unwrap();
        assert_eq!(short.planned_vocab_size(), 5000);
        let notice = short.notice().unwrap();
        assert!(notice.contains("not the planned 5000"), "{notice}");

        let exact = build(json!({ "kind": kind, "vocab_size": 258 }), &[TEXT]).unwrap();
        assert_eq!(exact.vocab_size(), 258, "{kind}");
        let error = build(json!({ "kind": kind, "vocab_size": 257 }), &[TEXT]).unwrap_err().to_string();
        assert!(error.contains("at least 258"), "{error}");
        assert!(matches!(
            build(json!({ "kind": kind, "vocab_size": 300 }), &[""]),
            Err(TokenizerError::NoText)
        ));
    }
    assert_eq!(build(json!("bytes"), &[]).unwrap().planned_vocab_size(), 258);
}
