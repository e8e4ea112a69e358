//! The core finds components through the registry and never by name.

use std::collections::BTreeMap;

use super::files::Source;
use super::rust_text::RustText;
use super::{Finding, finding, is_excepted};

/// Rooms whose sources may not name a concrete component.
const CORE: [&str; 4] = ["hymba_plus/src", "training/src", "recipes/src", "evaluation/src"];
/// Every slot has a component of this name; it says "nothing here" and belongs to the language, not to a plugin.
const NEUTRAL: &str = "none";

/// Finds string literals in the core that are the kind of a component.
pub fn check(sources: &[Source]) -> Vec<Finding> {
    let kinds = registered(sources);
    let is_core = |source: &&Source| {
        source.is_rust() && !source.is_test() && CORE.iter().any(|room| source.path.starts_with(room))
    };
    let mut findings = Vec::new();
    for source in sources.iter().filter(is_core) {
        let text = RustText::of(&source.text);
        let tests = text.test_lines();
        let lines: Vec<&str> = source.text.lines().collect();
        for literal in &text.literals {
            let Some(slot) = kinds.get(&literal.content) else { continue };
            let in_test = tests.iter().any(|range| range.contains(&literal.line));
            let excepted = lines.get(literal.line - 1).is_some_and(|line| is_excepted(line, "kind-name"));
            if !in_test && !excepted {
                let what = format!("\"{}\" is the name of a {slot} in components/", literal.content);
                let help = "ask the registry instead, so that a user's plugin is served alike; \
                            if the word means something else here: `// lint: kind-name-ok: reason`";
                findings.push(finding(source, literal.line, "kind-name", what, help));
            }
        }
    }
    findings
}

/// Each kind that components/ registers, and its slot: `register!(slot "kind" => Type)`.
fn registered(sources: &[Source]) -> BTreeMap<String, String> {
    let mut kinds = BTreeMap::new();
    for source in
        sources.iter().filter(|source| source.is_rust() && source.path.starts_with("components/src"))
    {
        let text = RustText::of(&source.text);
        let tests = text.test_lines();
        for (at, name) in text.code.match_indices("register!") {
            let Some((slot, line)) = slot_of_call(&text.code, at + name.len()) else { continue };
            // The first literal that begins on or after that line is the kind.
            let in_test = tests.iter().any(|range| range.contains(&line));
            if let Some(literal) = text.literals.iter().find(|literal| literal.line >= line)
                && !in_test
                && literal.content != NEUTRAL
            {
                kinds.insert(literal.content.clone(), slot);
            }
        }
    }
    kinds
}

/// The slot of the call whose argument list begins at `at`, and the line of the literal after it.
fn slot_of_call(code: &str, at: usize) -> Option<(String, usize)> {
    let inside = code[at..].trim_start().strip_prefix(['(', '{', '['])?;
    let (slot, rest) = inside.split_once('"')?;
    let slot = slot.trim();
    let is_word = !slot.is_empty() && slot.chars().all(|c| c.is_alphanumeric() || c == '_');
    is_word.then(|| (slot.to_owned(), code[..code.len() - rest.len()].matches('\n').count() + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.into(), text: text.into() }
    }

    const PLUGINS: &str = "/// register!(head \"doc\" => D);\n\
        register!(sequence_mixer \"mamba\" => Mamba);\nregister! {\n  norm\n  \"rms_norm\" => RmsNorm\n}\n\
        register!(norm \"none\" => None);\n";

    #[test]
    fn registered_kinds_are_read() {
        let kinds = registered(&[source("components/src/a.rs", PLUGINS)]);
        let pairs: Vec<_> = kinds.iter().map(|(kind, slot)| (kind.as_str(), slot.as_str())).collect();
        assert_eq!(pairs, [("mamba", "sequence_mixer"), ("rms_norm", "norm")]);
    }

    #[test]
    fn the_core_may_not_name_them() {
        let core = "// \"mamba\"\nlet a = \"mamba\";\nlet b = \"mamba\"; // lint: kind-name-ok: a snake\n\
            let c = \"none\";\nlet d = \"a mamba\";\n#[cfg(test)]\nmod tests { const K: &str = \"mamba\"; }\n";
        let sources = [
            source("components/src/a.rs", PLUGINS),
            source("training/src/lib.rs", core),
            source("training/src/tests.rs", core),
            source("cli/src/lib.rs", core),
        ];
        let found = check(&sources);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].file.to_str(), found[0].line), (Some("training/src/lib.rs"), 2));
    }
}
