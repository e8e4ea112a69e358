//! `hymba components`: what this binary has.

use std::{fmt::Write, process::ExitCode};

use hymba_plus::registry::{Entry, FieldDefault, Registry};
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
    if arguments.markdown {
        output::print(&hymba_plus::reference::markdown(registry, arguments.slot.as_deref()));
        return Ok(ExitCode::SUCCESS);
    }
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
    for field in entry.fields() {
        let default = match field.default {
            FieldDefault::Required => "required".to_owned(),
            FieldDefault::Optional => "optional".to_owned(),
            FieldDefault::Value(value) => {
                format!("default {}", serde_json::to_string(&value).unwrap_or_default())
            }
        };
        let _ = writeln!(text, "    {}: {}, {default}", field.name, field.kind);
        wrapped(&field.doc, 8, text);
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
