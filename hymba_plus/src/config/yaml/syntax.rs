//! The words for what a recipe's use of YAML does not allow.

use super::{
    super::{Diagnostic, Span},
    Node, Yaml,
};

pub(super) fn unreadable(span: &Span) -> Diagnostic {
    Diagnostic::new("unreadable", span, "a character that YAML does not allow")
        .label("not readable as text")
        .rule("a recipe is UTF-8 text; of the control characters it has only line ends and tabs")
        .help("delete the character, or write it as an escape in double quotes: \"\\x07\"")
}

pub(super) fn tab(span: &Span, more: usize) -> Diagnostic {
    let more = if more > 0 { format!(" ({more} more lines have tabs)") } else { String::new() };
    Diagnostic::new("tab", span, format!("a tab in the indentation{more}"))
        .label("tab")
        .rule("YAML is indented with spaces only")
        .help("replace the tab by two spaces; most editors can do that for the whole file (\"convert indentation to spaces\")")
}

pub(super) fn odd_break(odd: char, span: &Span) -> Diagnostic {
    Diagnostic::new(
        "unreadable",
        span,
        format!("the character U+{:04X} is a line end to some readers of YAML", odd as u32),
    )
    .rule("lines end in a line feed")
    .help("remove it; it often comes along when text is copied from a web page or a word processor")
}

pub(super) fn cannot_begin(first: char, text: &str, span: &Span) -> Diagnostic {
    let quoted =
        if text.contains('"') { format!("'{}'", text.replace('\'', "''")) } else { format!("\"{text}\"") };
    Diagnostic::new("syntax", span, format!("a value cannot begin with `{first}`"))
        .rule("YAML keeps this character for itself")
        .help(format!("put the value in quotes: {quoted}"))
}

pub(super) fn second_document(span: &Span) -> Diagnostic {
    Diagnostic::new("second-document", span, "a second YAML document begins here")
        .label("what follows would be ignored")
        .rule("a recipe is one document")
        .help("remove the line `---`, or move what follows it to a file of its own")
}

pub(super) fn too_deep(span: &Span, most: usize) -> Diagnostic {
    Diagnostic::new("too-deep", span, format!("more than {most} levels of nesting"))
        .rule("no key of a recipe lies that deep")
}

pub(super) fn tag(tag: &str, span: &Span) -> Diagnostic {
    let shown = tag.replace("tag:yaml.org,2002:!", "!!");
    Diagnostic::new("tag", span, format!("the YAML tag `{shown}` has no meaning in a recipe"))
        .rule("the type of a value follows from its key")
        .help(format!("remove `{shown}`; to make a text of a number, put it in quotes"))
}

pub(super) fn endless_alias(span: &Span) -> Diagnostic {
    Diagnostic::new("alias", span, format!("`{}` stands inside the value that it repeats", span.text()))
        .rule("an alias repeats a value that is complete before it")
        .help("write the value out")
}

pub(super) fn too_many_aliases(span: &Span, most: usize) -> Diagnostic {
    Diagnostic::new("alias", span, format!("aliases repeat more than {most} values"))
        .rule("aliases inside aliases grow beyond all bounds")
        .help("write the values out, or move them to a file and use `extends:`")
}

pub(super) fn duplicate(key: &str, path: String, span: &Span, first: &Span) -> Diagnostic {
    Diagnostic::new("duplicate-key", span, format!("the key `{key}` is there twice"))
        .at(path)
        .label("again")
        .related("first here", first)
        .rule("a key stands once in a mapping")
        .help("remove one of the two")
}

pub(super) fn merge_key(span: &Span) -> Diagnostic {
    Diagnostic::new("merge-key", span, "recipes have no merge key `<<`")
        .rule("what a recipe takes from elsewhere comes by `extends:`, so that every key can say where it is from")
        .help("put the shared keys in a file and write `extends: that_file.yaml` at the top of this one, or repeat a whole value by its alias: `optimizer: *shared`")
}

pub(super) fn not_a_key(node: &Node) -> Diagnostic {
    let text = node.span.text();
    let (what, help) = match &node.yaml {
        Yaml::Map(_) if text.starts_with('{') => (
            "`{{ ... }}` is not filled in: a recipe has no templates".to_owned(),
            "write the value itself, or set it by `--set` or by an environment variable",
        ),
        Yaml::Map(_) | Yaml::List(_) => {
            ("a list or mapping stands where a key is expected".to_owned(), "give it a name: `name: ...`")
        }
        Yaml::Null => ("a key is missing before `:`".to_owned(), "write the key, or remove the line"),
        _ => (
            format!("`{}` stands where a key is expected", node.brief()),
            "a key that looks like a value needs quotes",
        ),
    };
    Diagnostic::new("not-a-key", &node.span, what).rule("a key is a name").help(help)
}
