//! Files of recipes: reading them, and what they extend.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Diagnostic, Diagnostics, LoadOptions, Origin, SCHEMA, Source, Span,
    check::nearest,
    layers::Layer,
    path::{normal, portable},
    yaml::{Entry, Map, Node, Yaml, parse},
};

/// A recipe is written by people; a file beyond this is something else that was named by mistake.
const LARGEST: usize = 4 << 20;
/// How many files may extend each other in a row.
const LONGEST_CHAIN: usize = 32;

/// What the recipe's own file says of itself; it is not inherited by what extends it.
#[derive(Debug, Default, Clone)]
pub(super) struct Header {
    /// The key `base` of a resolved recipe: the folder of its paths.
    pub base: Option<PathBuf>,
}

/// Reads files into layers, the lowest first.
#[derive(Debug)]
pub(super) struct Files<'a> {
    pub options: &'a LoadOptions,
    pub layers: Vec<Layer>,
    pub problems: Vec<Diagnostic>,
    /// Whether every file could be read to its end; if not, a key may be missing for that reason alone.
    pub complete: bool,
    /// Files being read, from the recipe down: the way to the one that is read now.
    open: Vec<(PathBuf, String)>,
    pub done: Vec<PathBuf>,
}

impl<'a> Files<'a> {
    pub fn new(options: &'a LoadOptions) -> Self {
        let (layers, problems, open, done) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { options, layers, problems, complete: true, open, done }
    }

    /// Reads a file that the command line names; `shown` is what errors call it.
    ///
    /// # Errors
    /// When there is no such file: nothing else can be said then.
    pub fn read_first(&mut self, path: &Path, shown: &str) -> Result<(Arc<Source>, Header), Diagnostics> {
        let source = Self::source(path, shown).map_err(|(what, help)| {
            let source = Source::new(shown, "", Path::new("."), Origin::CommandLine);
            Diagnostics::one(Diagnostic::new("missing-file", &Span::start_of(&source), what).help(help))
        })?;
        let header = self.read(&source, path, None);
        Ok((source, header))
    }

    /// Reads a file (or a text in its place) with everything below it.
    pub fn read(&mut self, source: &Arc<Source>, path: &Path, replaces: Option<&str>) -> Header {
        let parsed = parse(source, 0, &mut self.problems);
        self.complete &= parsed.complete;
        let first = self.open.is_empty() && replaces.is_none();
        self.open.push((normal(path), source.name().to_owned()));
        let header = match parsed.root {
            Some(Node { yaml: Yaml::Map(map), span, .. }) => {
                self.mapping(source, map, &span, first, replaces)
            }
            Some(Node { yaml: Yaml::Null, .. }) | None if parsed.complete => {
                self.problems.push(empty(source));
                self.complete = false;
                Header::default()
            }
            Some(Node { yaml: Yaml::Null, .. }) | None => Header::default(),
            Some(other) => {
                if parsed.complete {
                    self.problems.push(not_a_mapping(&other));
                }
                self.complete = false;
                Header::default()
            }
        };
        self.open.pop();
        header
    }

    fn mapping(
        &mut self,
        source: &Arc<Source>,
        mut map: Map,
        span: &Span,
        first: bool,
        replaces: Option<&str>,
    ) -> Header {
        self.version(source, &map);
        if let Some(extends) = map.remove("extends") {
            self.extends(source, &extends);
        }
        let base = map.remove("base").and_then(|base| self.base(source, &base));
        if !first {
            // What a file calls itself is not what the recipe that uses it is called.
            map.entries.retain(|entry| !matches!(entry.key.as_str(), "name" | "description"));
        }
        let mut root = Node::new(Yaml::Map(map), span);
        if let Some(folder) = &base {
            // A resolved recipe takes its paths from where it was made, not from where its file lies now.
            root.set_source(&Source::new(source.name(), source.text(), folder, source.origin()));
        }
        self.layers.push(Layer {
            name: source.name().to_owned(),
            root,
            replaces: replaces.map(str::to_owned),
        });
        Header { base }
    }

    /// Every file says in which version of the recipe language it is written.
    fn version(&mut self, source: &Arc<Source>, map: &Map) {
        let rule = format!(
            "a recipe says in which version of the recipe language it is written; this program reads version {SCHEMA}"
        );
        let problem = match map.entry("schema") {
            None if !self.complete => return,
            None => {
                let line = Span::new(source, 0, source.line(1).len());
                Diagnostic::new("schema-version", &line, "the key `schema` is missing")
                    .help(format!("write `schema: {SCHEMA}` at the top of the file"))
            }
            Some(entry) => match entry.value.yaml {
                Yaml::Int(version) if version == i128::from(SCHEMA) => return,
                Yaml::Int(version) if version > i128::from(SCHEMA) => Diagnostic::new(
                    "schema-version",
                    &entry.value.span,
                    format!("schema {version} is newer than this program"),
                )
                .help("update hymba, or write the recipe for the version that this program reads"),
                _ => {
                    let message = format!("`{}` is no version of the recipe language", entry.value.brief());
                    Diagnostic::new("schema-version", &entry.value.span, message)
                        .help(format!("write `schema: {SCHEMA}`"))
                }
            },
        };
        self.problems.push(problem.at("schema").rule(rule));
    }

    fn base(&mut self, source: &Source, entry: &Entry) -> Option<PathBuf> {
        if let Some(text) = entry.value.text().filter(|text| !text.is_empty()) {
            return Some(normal(&source.folder().join(text)));
        }
        let message = format!("`base` is a folder, not {}", entry.value.brief());
        let problem = Diagnostic::new("wrong-type", &entry.value.span, message).at("base");
        self.problems.push(problem.help("a resolved recipe has it; in a recipe of your own leave it out"));
        None
    }

    fn extends(&mut self, source: &Arc<Source>, entry: &Entry) {
        let list = match &entry.value.yaml {
            Yaml::List(list) => list.iter().collect(),
            _ => vec![&entry.value],
        };
        for node in list {
            match node.text().filter(|text| !text.trim().is_empty()) {
                Some(text) => self.extend(source, text, node),
                None => self.problems.push(
                    Diagnostic::new(
                        "wrong-type",
                        &node.span,
                        format!("`extends` names files, not {}", node.brief()),
                    )
                    .at("extends")
                    .rule("`extends` is a path, or a list of paths, from the folder of this file")
                    .help("write `extends: other.yaml` or `extends: [one.yaml, two.yaml]`"),
                ),
            }
        }
    }

    fn extend(&mut self, source: &Arc<Source>, text: &str, node: &Node) {
        let path = normal(&source.folder().join(text));
        let shown = beside(source.name(), text);
        let cycle = self.open.iter().position(|(open, _)| *open == path);
        if let Some(at) = cycle {
            let way = self.open[at..].iter().map(|(_, shown)| shown.as_str()).chain([shown.as_str()]);
            let message = format!("these files extend each other: {}", way.collect::<Vec<_>>().join(" -> "));
            let problem = Diagnostic::new("extends-cycle", &node.span, message).at("extends");
            self.problems
                .push(problem.rule("a file cannot build on itself").help("remove one of these `extends`"));
            return;
        }
        if self.open.len() >= LONGEST_CHAIN {
            let message = format!("more than {LONGEST_CHAIN} files extend each other in a row");
            self.problems.push(Diagnostic::new("extends-cycle", &node.span, message).at("extends"));
            return;
        }
        if self.done.contains(&path) {
            return; // already below: a file that is reached twice counts where it is reached first
        }
        match Self::source(&path, &shown) {
            Ok(found) => {
                self.done.push(path.clone());
                self.read(&found, &path, None);
            }
            Err((what, help)) => {
                self.complete = false;
                let problem = Diagnostic::new("missing-file", &node.span, what).at("extends").help(help);
                self.problems
                    .push(problem.rule("`extends` is taken from the folder of the file that says it"));
            }
        }
    }

    /// The text of a file, or why there is none and what would help.
    pub fn source(path: &Path, shown: &str) -> Result<Arc<Source>, (String, String)> {
        if path.is_dir() {
            return Err((format!("{shown} is a folder"), "name a file in it".into()));
        }
        let bytes = std::fs::read(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => (format!("there is no file {shown}"), beside_it(path, shown)),
            _ => (format!("{shown} cannot be read: {error}"), String::new()),
        })?;
        if bytes.len() > LARGEST {
            let what = format!("{shown} has {} bytes; a recipe has at most {LARGEST}", bytes.len());
            return Err((what, "this is probably not a recipe: look at the path".into()));
        }
        let folder = path.parent().unwrap_or(Path::new("/"));
        // Bytes that are no UTF-8 become U+FFFD, which the parser reports with its place.
        let text = String::from_utf8_lossy(&bytes);
        Ok(Source::new(shown, text.strip_prefix('\u{feff}').unwrap_or(&text), folder, Origin::File))
    }
}

/// What errors call a file that is named `text` in the file called `shown`.
fn beside(shown: &str, text: &str) -> String {
    let folder = Path::new(shown).parent().unwrap_or(Path::new(""));
    portable(&normal(&folder.join(text)))
}

/// Files beside a missing one, the nearest name first.
pub(super) fn beside_it(path: &Path, shown: &str) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let folder = path.parent().unwrap_or(Path::new("."));
    let Ok(entries) = std::fs::read_dir(folder) else {
        let above = beside(shown, ".");
        return format!("the folder {above} does not exist either");
    };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| !name.starts_with('.'));
    names.sort();
    let is_recipe =
        |name: &&str| Path::new(name).extension().is_some_and(|end| end == "yaml" || end == "yml");
    let names = || names.iter().map(String::as_str);
    nearest::suggestion("the nearest file there is", &name, names()).unwrap_or_else(|| {
        let recipes: Vec<&str> = names().filter(is_recipe).collect();
        if recipes.is_empty() {
            "there is no .yaml file in that folder".to_owned()
        } else {
            format!("that folder has: {}", nearest::list(recipes))
        }
    })
}

fn empty(source: &Arc<Source>) -> Diagnostic {
    Diagnostic::new("empty", &Span::start_of(source), "the file is empty")
        .rule("a recipe is a mapping of keys")
        .help(format!("begin with `schema: {SCHEMA}`"))
}

fn not_a_mapping(node: &Node) -> Diagnostic {
    let what = match node.yaml {
        Yaml::List(_) => "a list".to_owned(),
        _ => format!("only `{}`", node.brief()),
    };
    Diagnostic::new("not-a-mapping", &node.span, format!("this file holds {what}"))
        .rule("a recipe is a mapping of keys: `key: value`, one a line")
        .help(format!("begin with `schema: {SCHEMA}`"))
}
