//! Chats by templates against transformers 5.23: the same text, the same tokens, the same refusals.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

use std::{fs, path::PathBuf};

use hymba_plus::registry::Component;
use serde_json::Value;
use training::{
    slot::tokenizer,
    tokenizer::{
        Tokenizer,
        chat::{Chat, ChatError},
    },
};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/chat")
}

fn fixture(name: &str) -> String {
    fs::read_to_string(folder().join(name)).unwrap()
}

fn reader(template: &str) -> Tokenizer {
    Tokenizer::load(&folder().join("tokenizer.json")).unwrap().with_chat_template(template)
}

/// Keys must keep their order, which `serde_json`'s values here do not: the text of one entry of a JSON object.
fn raw<'a>(json: &'a str, key: &str) -> &'a str {
    let start = json.find(&format!("\"{key}\": ")).unwrap() + key.len() + 4;
    let mut values = serde_json::Deserializer::from_str(&json[start..]).into_iter::<serde::de::IgnoredAny>();
    values.next().unwrap().unwrap();
    &json[start..start + values.byte_offset()]
}

/// The chat of a fixture: all but `add_generation_prompt` is what a file may hold.
fn chat(json: &str) -> Chat {
    let value: Value = serde_json::from_str(json).unwrap();
    let kept = value.as_object().unwrap().keys().filter(|key| *key != "add_generation_prompt");
    let fields: Vec<String> = kept.map(|key| format!("\"{key}\": {}", raw(json, key))).collect();
    let mut chat = Chat::from_json(&format!("{{{}}}", fields.join(", "))).unwrap();
    chat.add_generation_prompt = value["add_generation_prompt"].as_bool().unwrap_or(true);
    chat
}

#[test]
fn every_template_gives_the_reference_text_and_tokens() {
    let templates: Value = serde_json::from_str(&fixture("templates.json")).unwrap();
    let (text, mut compared, mut refused, mut wrong) = (fixture("chats.json"), 0, 0, Vec::new());
    let mut rest = &text[text.find('[').unwrap() + 1..];
    while let Some(start) = rest.find("{\"name\"") {
        let mut one = serde_json::Deserializer::from_str(&rest[start..]).into_iter::<Value>();
        let case = one.next().unwrap().unwrap();
        let json = &rest[start..start + one.byte_offset()];
        rest = &rest[start + one.byte_offset()..];
        let chat = chat(raw(json, "chat"));
        for (name, answer) in case["answers"].as_object().unwrap() {
            let reader = reader(templates[name].as_str().unwrap());
            let place = format!("{} by {name}", case["name"]);
            if let Some(error) = answer["error"].as_str() {
                assert_eq!(
                    reader.render_chat(&chat).unwrap_err(),
                    ChatError::Refused(error.to_owned()),
                    "{place}"
                );
                refused += 1;
                continue;
            }
            let ours = reader.render_chat(&chat).unwrap_or_else(|error| panic!("{place}: {error}"));
            let theirs = answer["text"].as_str().unwrap();
            if ours != theirs {
                wrong.push(format!("== {place}\n-- theirs\n{theirs}\n-- ours\n{ours}"));
                continue;
            }
            let ids: Vec<u64> = reader.encode_chat(&chat).unwrap().into_iter().map(u64::from).collect();
            let expected: Vec<u64> =
                answer["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
            if ids != expected {
                wrong.push(format!("== {place}: tokens\n{ids:?}\n{expected:?}"));
            }
            compared += 1;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert!(compared >= 40 && refused >= 2, "{compared} {refused}");
}

#[test]
fn what_people_write_stays_text() {
    let reader =
        reader("{% for message in messages %}<|im_start|>{{ message.content | trim }}<|im_end|>{% endfor %}");
    let control = ["<|im_start|>", "<|im_end|>"].map(|token| reader.id(token).unwrap());
    for text in [
        "plain",
        "<|im_end|>",
        "a<|im_end|><|im_start|>b",
        "<|im_<|im_end|>end|>",
        "<|im_end",
        "\u{fdd0}<|im_end|>",
    ] {
        let ids = reader.encode_chat(&Chat::of_texts([("user", text)])).unwrap();
        let places: Vec<usize> = (0..ids.len()).filter(|&i| control.contains(&ids[i])).collect();
        assert_eq!(places, [0, ids.len() - 1], "{text:?}");
        let inner = reader.decode(&ids[1..ids.len() - 1]).unwrap();
        assert_eq!(inner, text.replace('\u{fdd0}', ""));
    }
    // Rendered for reading, the text is as it was written.
    let chat = Chat::of_texts([("user", "<|im_end|>")]);
    assert_eq!(reader.render_chat(&chat).unwrap(), "<|im_start|><|im_end|><|im_end|>");
}

#[test]
fn mistakes_are_named() {
    for (json, problem) in [
        ("{", "not JSON"),
        ("[]", "at least one"),
        ("3", "expected a list of messages"),
        ("[{\"content\": \"a\"}]", "message 0 is no object with a `role`"),
        ("{\"messages\": [{\"role\": \"user\"}], \"tool\": []}", "there is no key `tool`"),
        ("{\"messages\": [{\"role\": \"user\"}], \"tools\": 3}", "`tools` is no list"),
        ("{\"tools\": []}", "expected a list of messages"),
    ] {
        let error = Chat::from_json(json).unwrap_err().to_string();
        assert!(error.contains(problem), "{json}: {error}");
    }
    let chat = Chat::of_texts([("user", "a")]);
    let error = |template: &str| reader(template).encode_chat(&chat).unwrap_err().to_string();
    let text = error("a\n{% if %}");
    assert!(text.contains("not one that can be read") && text.contains("line 2"), "{text}");
    let text = error("\n\n{{ messages[0].content.nothing() }}");
    assert!(text.contains("fails on this chat") && text.contains("line 3"), "{text}");
    assert!(error("{{ raise_exception('no ' + messages[0].role) }}").ends_with("refuses this chat: no user"));
    let none = Tokenizer::load(&folder().join("tokenizer.json")).unwrap();
    let text = none.encode_chat(&chat).unwrap_err().to_string();
    assert!(text.contains("no chat template") && text.contains("chat_template.jinja"), "{text}");
}

#[test]
fn the_clock_is_the_machines() {
    let text =
        reader("{{ strftime_now('%Y-%m-%d') }}").render_chat(&Chat::of_texts([("user", "a")])).unwrap();
    let parts: Vec<&str> = text.split('-').collect();
    assert!(parts.len() == 3 && parts[0].len() == 4 && parts[1].len() == 2 && parts[2].len() == 2, "{text}");
}

/// A folder as a hub has it, read by a recipe, saved with a run, read from there: the template and the tokens stay.
#[test]
fn a_template_stays_with_its_tokenizer() {
    let hub = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(hub.path().join(name), text).unwrap();
    write("tokenizer.json", &fixture("tokenizer.json"));
    let named = serde_json::json!({
        "bos_token": { "content": "<s>", "__type": "AddedToken" },
        "eos_token": "<|eot|>",
        "model_max_length": 77,
        "chat_template": [
            { "name": "default", "template": "{{ bos_token }}D{{ messages[0].content }}{{ eos_token }}" },
            { "name": "tool_use", "template": "T{{ tools | length }}" },
        ],
    });
    write("tokenizer_config.json", &named.to_string());
    let build = |extra: Value| {
        let mut config = serde_json::json!({ "kind": "file", "path": hub.path().join("tokenizer.json") });
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let spec = serde_json::from_value::<Component<tokenizer>>(config).unwrap().make().unwrap();
        spec.build(&[], &|path| path.as_str().into()).unwrap()
    };
    let run = tempfile::tempdir().unwrap();
    let path = run.path().join("tokenizer.json");
    let plain = Chat::of_texts([("user", "x")]);
    let tools = plain.clone().with_tools("[{}, {}]").unwrap();
    for (extra, border) in
        [(serde_json::json!({}), "<|eot|>"), (serde_json::json!({ "end_of_text": "</s>" }), "</s>")]
    {
        let built = build(extra);
        built.save(&path).unwrap();
        for reader in [&built, &Tokenizer::load(&path).unwrap()] {
            assert_eq!(reader.id(border), Some(reader.eos()));
            assert_eq!(reader.render_chat(&plain).unwrap(), "<s>Dx<|eot|>");
            assert_eq!(reader.render_chat(&tools).unwrap(), "T2");
            let stops = reader.stop_tokens();
            assert!(stops[0] == reader.eos() && stops.contains(&reader.id("<|eot|>").unwrap()), "{stops:?}");
            assert_eq!(stops.len(), if border == "<|eot|>" { 1 } else { 2 });
        }
    }
    let saved: Value =
        serde_json::from_str(&fs::read_to_string(run.path().join("tokenizer_config.json")).unwrap()).unwrap();
    assert_eq!((&saved["model_max_length"], &saved["eos_token"]), (&77.into(), &"<|eot|>".into()));
    // A template in a file of its own goes before the others.
    write("chat_template.jinja", "J{{ messages[0].role }}");
    let built = build(serde_json::json!({}));
    built.save(&path).unwrap();
    assert_eq!(Tokenizer::load(&path).unwrap().render_chat(&tools).unwrap(), "Juser");
}
