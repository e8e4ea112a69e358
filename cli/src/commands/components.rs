//! `hymba components`: what this binary has.

use std::{fmt::Write, process::ExitCode};

use hymba_plus::registry::{Entry, Registry};
use serde_json::{Value, json};

use super::Outcome;
use crate::{args::Components, output};

pub(super) fn run(arguments: &Components) -> Outcome {
    let registry = Registry::global()?;
    let slots = Registry::slots();
    if let Some(slot) = &arguments.slot
        && !slots.iter().any(|info| info.name == slot)
    {
        let names: Vec<_> = slots.iter().map(|info| info.name).collect();
        return Err(format!("there is no slot `{slot}`; the slots are: {}", names.join(", ")).into());
    }
    let chosen = slots.iter().filter(|info| arguments.slot.as_deref().is_none_or(|slot| slot == info.name));
    if arguments.json {
        let slots: Vec<Value> = chosen
            .map(|info| {
                let components: Vec<Value> = registry.in_slot(info.name).map(describe).collect();
                json!({ "slot": info.name, "doc": info.doc.trim(), "components": components })
            })
            .collect();
        output::line(&serde_json::to_string_pretty(&Value::Array(slots))?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::new();
    for info in chosen {
        let _ = writeln!(text, "{}  {}", info.name, info.doc.trim());
        for entry in registry.in_slot(info.name) {
            if arguments.slot.is_some() {
                detailed(entry, &mut text);
            } else {
                let _ = writeln!(text, "  {:<20} {}", entry.kind, first_sentence(&entry.doc()));
            }
        }
        text.push('\n');
    }
    if arguments.slot.is_none() {
        text.push_str("`hymba components SLOT` shows every field with its default.\n");
    }
    output::print(&text);
    Ok(ExitCode::SUCCESS)
}

fn describe(entry: &'static Entry) -> Value {
    json!({
        "kind": entry.kind,
        "aliases": entry.aliases,
        "doc": entry.doc(),
        "crate": entry.crate_name,
        "schema": entry.schema(),
    })
}

fn detailed(entry: &Entry, text: &mut String) {
    let aliases = if entry.aliases.is_empty() {
        String::new()
    } else {
        format!(" (also {})", entry.aliases.join(", "))
    };
    let _ = writeln!(text, "\n  kind: {}{aliases}    [crate {}]", entry.kind, entry.crate_name);
    wrapped(&entry.doc(), 4, text);
    let schema = entry.schema();
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .map(|names| names.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
    for (name, property) in properties {
        let default = match property.get("default") {
            Some(Value::Null) | None if required.contains(&name.as_str()) => "required".to_owned(),
            Some(Value::Null) | None => "optional".to_owned(),
            Some(value) => format!("default {}", serde_json::to_string(value).unwrap_or_default()),
        };
        let _ = writeln!(text, "    {name}: {}, {default}", kind_of(property, schema.get("$defs")));
        wrapped(property.get("description").and_then(Value::as_str).unwrap_or_default(), 8, text);
    }
}

/// The type of a field in words.
fn kind_of(property: &Value, definitions: Option<&Value>) -> String {
    if let Some(slot) = property.get("x-slot").and_then(Value::as_str) {
        return format!("component of slot {slot}");
    }
    if let Some(name) = property.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next())
    {
        return definitions
            .and_then(|all| all.get(name))
            .map_or(name.to_owned(), |found| kind_of(found, definitions));
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(options) = property.get(key).and_then(Value::as_array) {
            let each =
                options.iter().filter(|option| option.get("type").and_then(Value::as_str) != Some("null"));
            return each.map(|option| kind_of(option, definitions)).collect::<Vec<_>>().join(" | ");
        }
    }
    if let Some(value) = property.get("const").and_then(Value::as_str) {
        return value.to_owned();
    }
    if let Some(values) = property.get("enum").and_then(Value::as_array) {
        return values.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" | ");
    }
    match property.get("type") {
        Some(Value::String(name)) if name == "array" => {
            let items =
                property.get("items").map_or("anything".to_owned(), |items| kind_of(items, definitions));
            format!("list of {items}")
        }
        Some(Value::String(name)) => name.clone(),
        Some(Value::Array(names)) => names
            .iter()
            .filter_map(Value::as_str)
            .filter(|name| *name != "null")
            .collect::<Vec<_>>()
            .join(" | "),
        _ => "anything".to_owned(),
    }
}

/// Up to the first full stop that ends a sentence (not that of `et al.`), or the formula after it.
fn first_sentence(text: &str) -> String {
    let mut stops = text.match_indices(". ").map(|(at, _)| at + 1);
    let end = stops.find(|&end| !text[..end].ends_with(" al.")).unwrap_or(text.len());
    let end = text[..end].find(": `").unwrap_or(end);
    text[..end].to_owned()
}

/// Words at most 100 columns wide, indented.
fn wrapped(words: &str, indent: usize, text: &mut String) {
    let mut column = 0;
    for word in words.split_whitespace() {
        if column == 0 || column + word.len() + 1 > 100 {
            if column > 0 {
                text.push('\n');
            }
            text.push_str(&" ".repeat(indent));
            column = indent;
        } else {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += word.chars().count();
    }
    if column > 0 {
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::first_sentence;

    #[test]
    fn a_sentence_ends_at_its_own_full_stop() {
        for (text, sentence) in [
            ("One norm. Another.", "One norm."),
            (
                "Attention (Vaswani et al. 2017) with heads. Every token",
                "Attention (Vaswani et al. 2017) with heads.",
            ),
            ("A gate: `down(x)` (Shazeer 2020).", "A gate"),
            ("", ""),
        ] {
            assert_eq!(first_sentence(text), sentence);
        }
    }
}
