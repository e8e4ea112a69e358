//! Random damage: no edit of a valid recipe may panic, and none may slip an unknown key past the checks.

use std::collections::BTreeSet;

use hymba_plus::{
    config::{LoadOptions, Recipe},
    registry::{Registry, SectionEntry},
    serde_json::Value,
};

use crate::layers::BASE;

const EDITS: usize = 2_000;

const RICH: &str = "schema: 1
name: rich
description: >-
  a folded
  text
network:
  d_model: 64
  tie_embeddings: false
  final_norm: {kind: layer_norm, bias: false}
  layers:
    - &first
      kind: attention
      n_heads: 4
      rotation: yarn
      window: 128
    - *first
    - kind: mamba
      norm:
        kind: rms
        eps: 1e-5
    - none
  overrides:
    2: {kind: attention, n_heads: 2}
training:
  steps: 10
  update:
    kind: muon
    lr: 0.02
  schedule: {warmup: 2, decay: linear}
  tags: ['a', \"b\"]
corpus:
  parts:
    - path: a.txt
    - {path: 'b.txt', weight: 2}
  split: [0.5, 0.5]
  shuffle: 100
";

/// A small generator of its own, so that the edits are the same everywhere: xorshift64*.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides.max(1)
    }

    fn pick<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.roll(words.len())]
    }
}

#[test]
fn random_edits_never_panic_and_never_hide_a_key() {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let (mut accepted, mut places, mut unreadable) = (0, 0, 0);
    for number in 0..EDITS {
        let mut text = if number % 3 == 0 { BASE.to_owned() } else { RICH.to_owned() };
        for _ in 0..=dice.roll(3) {
            text = edit(&text, &mut dice);
        }
        match Recipe::from_yaml(&text, &LoadOptions::default()) {
            Ok(recipe) => {
                accepted += 1;
                // Readers of YAML differ at the edges; where the other one gives up, it reads what ours made of the text.
                let read = serde_yaml::from_str(&text).inspect_err(|_| unreadable += 1);
                let read = read.or_else(|_| serde_yaml::from_str(&recipe.resolved_yaml()));
                no_unknown_key(&read.expect("what was resolved is YAML"), &text);
                let again = Recipe::from_yaml(&recipe.resolved_yaml(), &LoadOptions::default());
                assert_eq!(again.expect("what was resolved is valid").hash(), recipe.hash(), "{text}");
            }
            Err(problems) => {
                let rendered = problems.render(number % 2 == 0, 60 + number % 60);
                assert!(rendered.ends_with(&format!("{}\n", problems.summary())), "{text}");
                assert!(!rendered.contains("Failed to read"), "{text}\n{rendered}");
                for problem in &problems {
                    places += 1;
                    assert!(problem.line() >= 1 && problem.column() >= 1 && !problem.message.is_empty());
                    assert!(problem.line() <= text.split('\n').count(), "{text}\n{rendered}");
                }
                assert_eq!(problems.to_json().as_array().map(Vec::len), Some(problems.len()));
            }
        }
    }
    println!(
        "{EDITS} edits: {accepted} accepted ({unreadable} by us alone), {places} problems in the others"
    );
    assert!(
        unreadable * 50 < accepted,
        "{unreadable} of {accepted} accepted texts are no YAML for another reader"
    );
    assert!(accepted > EDITS / 50, "the edits break everything: only {accepted} were accepted");
    assert!(accepted < EDITS * 9 / 10, "the edits break nothing: {accepted} were accepted");
}

/// One edit of a text, often one that a person makes by mistake.
fn edit(text: &str, dice: &mut Dice) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if lines.is_empty() {
        return "schema: 1\n".into();
    }
    let at = dice.roll(lines.len());
    let other = dice.roll(lines.len());
    let indent = lines[at].len() - lines[at].trim_start().len();
    match dice.roll(16) {
        0 => drop(lines.remove(at)),
        1 => lines.insert(at, lines[at].clone()),
        2 => lines.swap(at, other),
        3 => lines.insert(other, lines[at].clone()),
        4 => lines[at] = rename(&lines[at], dice),
        5 => lines[at] = revalue(&lines[at], dice),
        6 => lines[at] = format!("{}{}", " ".repeat(dice.roll(8)), lines[at].trim_start()),
        7 => lines[at] = lines[at].replacen("  ", "\t", 1),
        8 => insert(
            &mut lines[at],
            dice,
            &["\t", "\u{0}", "\u{1b}[31m", "é", "漢字", "🦀", "\u{202e}", "\r", "\u{feff}", "\u{2028}"],
        ),
        9 => insert(
            &mut lines[at],
            dice,
            &[
                "[", "]", "{", "}", ":", "- ", "\"", "'", "#", "&a ", "*a", "!x ", "|", ">", "%", "@",
                "<<: ", "? ", ",",
            ],
        ),
        10 => {
            let end = dice.roll(text.chars().count());
            return text.chars().take(end).collect();
        }
        11 => {
            let key = dice.pick(&[
                "extra", "n_head", "lr", "kind", "window", "base", "extends", "<<", "schema", "1", "null",
                "''",
            ]);
            lines.insert(at, format!("{}{key}: {}", " ".repeat(indent), dice.roll(99)));
        }
        12 => lines.insert(
            at,
            dice.pick(&["---", "...", "%YAML 1.2", "# text", "", "  ", "--- |", "- a"]).to_owned(),
        ),
        13 => {
            lines[at] =
                lines[at].replacen(": ", dice.pick(&[":", " : ", ":  ", ": : ", "=", ": \"", ": |"]), 1);
        }
        14 => lines[at] = lines[at].chars().rev().collect(),
        _ => lines[at] = lines[at].to_uppercase(),
    }
    lines.join("\n") + "\n"
}

/// The key of a line with a letter more, less, or swapped.
fn rename(line: &str, dice: &mut Dice) -> String {
    let Some(colon) = line.find(':') else { return line.to_owned() };
    let indent = line.len() - line.trim_start().len();
    let mut key: Vec<char> = line.get(indent..colon).unwrap_or_default().chars().collect();
    if key.is_empty() {
        return line.to_owned();
    }
    let at = dice.roll(key.len());
    match dice.roll(4) {
        0 => drop(key.remove(at)),
        1 => key.insert(at, 'x'),
        2 => key[at] = '_',
        _ => key.swap(at, 0),
    }
    format!("{}{}{}", &line[..indent], key.into_iter().collect::<String>(), &line[colon..])
}

/// The value of a line replaced by another.
fn revalue(line: &str, dice: &mut Dice) -> String {
    let Some(colon) = line.find(':') else { return line.to_owned() };
    let value = dice.pick(&[
        "",
        "null",
        "~",
        "true",
        "yes",
        "0",
        "-1",
        "1",
        "7",
        "1e9",
        "1e-3",
        "1e999",
        "0.5",
        ".inf",
        ".nan",
        "\"12\"",
        "abc",
        "mamba",
        "attention",
        "rms",
        "none",
        "adamw",
        "[]",
        "{}",
        "[1, 2]",
        "{a: 1}",
        "{kind: mamba}",
        "99999999999999999999999999999999999999999",
        "-0",
        "0x10",
        "|",
        "*first",
        "&x y",
        "''",
        "{kind: rms, eps: 1}",
    ]);
    format!("{}: {value}", &line[..colon])
}

fn insert(line: &mut String, dice: &mut Dice, words: &[&str]) {
    let places: Vec<usize> = line.char_indices().map(|(at, _)| at).chain([line.len()]).collect();
    let at = places[dice.roll(places.len())];
    line.insert_str(at, dice.pick(words));
}

/// The oracle: another YAML reader, and only the names of keys in the schemas.
fn no_unknown_key(value: &serde_yaml::Value, text: &str) {
    let sections: Vec<&SectionEntry> = hymba_plus::inventory::iter::<SectionEntry>.into_iter().collect();
    for (key, value) in value.as_mapping().expect("a mapping") {
        let key = key.as_str().unwrap_or_else(|| panic!("{text}"));
        if let Some(section) = sections.iter().find(|section| section.key == key) {
            walk(value, &section.schema().to_value(), text);
        } else {
            let known = ["schema", "name", "seed", "description", "extends", "base"];
            assert!(known.contains(&key), "`{key}` was accepted:\n{text}");
        }
    }
}

/// Collects every name of a key and every slot in a schema, whatever its structure.
fn names(schema: &Value, keys: &mut BTreeSet<String>, slots: &mut BTreeSet<String>, open: &mut bool) {
    match schema {
        Value::Object(object) => {
            for (name, inner) in object {
                match (name.as_str(), inner) {
                    ("properties", Value::Object(properties)) => keys.extend(properties.keys().cloned()),
                    ("x-slot", Value::String(slot)) => drop(slots.insert(slot.clone())),
                    ("additionalProperties", Value::Object(_)) => *open = true,
                    _ => {}
                }
                names(inner, keys, slots, open);
            }
        }
        Value::Array(list) => list.iter().for_each(|inner| names(inner, keys, slots, open)),
        _ => {}
    }
}

fn walk(value: &serde_yaml::Value, schema: &Value, text: &str) {
    let (mut keys, mut slots, mut open) = (BTreeSet::new(), BTreeSet::new(), false);
    names(schema, &mut keys, &mut slots, &mut open);
    match value {
        serde_yaml::Value::Mapping(map) => {
            let kind = map.get("kind").and_then(serde_yaml::Value::as_str);
            let registry = Registry::global().expect("a registry");
            let component = kind.and_then(|kind| slots.iter().find_map(|slot| registry.get(slot, kind)));
            let own = component.map(|entry| entry.schema().to_value());
            for (key, value) in map {
                let name = key.as_str().map_or_else(
                    || key.as_i64().map(|key| key.to_string()).unwrap_or_default(),
                    str::to_owned,
                );
                match &own {
                    Some(_) if name == "kind" => {}
                    Some(own) => {
                        assert!(
                            own["properties"].get(&name).is_some(),
                            "`{name}` of {kind:?} was accepted:\n{text}"
                        );
                        walk(value, own, text);
                    }
                    None => {
                        assert!(keys.contains(&name) || open, "`{name}` was accepted:\n{text}");
                        walk(value, schema, text);
                    }
                }
            }
        }
        serde_yaml::Value::Sequence(list) => list.iter().for_each(|item| walk(item, schema, text)),
        _ => {}
    }
}
