//! Single keys from the environment and from `--set`, as layers.

use std::{ops::Range, path::Path, sync::Arc};

use super::{
    Diagnostic, ENVIRONMENT_PREFIX, LoadOptions, Origin, Source, Span,
    layers::{Layer, lay_over},
    yaml::{Entry, Map, Node, Step, Yaml, parse, parse_path, show_path},
};

/// A path longer than this leads to no key; a bound, because paths are walked recursively.
const DEEPEST: usize = 64;

/// One key that the environment or the command line sets.
#[derive(Debug)]
pub(super) struct Override {
    /// What `hymba config explain` calls it.
    name: String,
    steps: Vec<(Step, Span)>,
    value: Node,
}

/// `HYMBA__TRAINER__DEVICE=cpu` for every such variable, sorted by name, so that their order does not matter.
pub(super) fn environment(options: &LoadOptions, problems: &mut Vec<Diagnostic>) -> Vec<Override> {
    let mut variables: Vec<_> =
        options.environment.iter().filter(|(name, _)| name.starts_with(ENVIRONMENT_PREFIX)).collect();
    variables.sort();
    let folder = options.folder();
    variables.into_iter().filter_map(|(name, value)| variable(name, value, &folder, problems)).collect()
}

fn variable(name: &str, value: &str, folder: &Path, problems: &mut Vec<Diagnostic>) -> Option<Override> {
    let source = Source::new("environment", &format!("{name}={value}"), folder, Origin::Environment);
    let mut steps = Vec::new();
    let mut at = ENVIRONMENT_PREFIX.len();
    for part in name[ENVIRONMENT_PREFIX.len()..].split("__") {
        if part.is_empty() {
            problems.push(
                Diagnostic::new(
                    "override",
                    &Span::new(&source, 0, name.len()),
                    format!("`{name}` names no key"),
                )
                .rule("the keys of a path stand between two underscores each")
                .help(format!("`trainer.device` is set by {ENVIRONMENT_PREFIX}TRAINER__DEVICE")),
            );
            return None;
        }
        let key = part.to_lowercase();
        let step = key.parse().map_or(Step::Key(key), Step::Index);
        steps.push((step, Span::new(&source, at, at + part.len())));
        at += part.len() + 2;
    }
    if steps.len() > DEEPEST {
        let span = Span::new(&source, 0, name.len());
        problems.push(Diagnostic::new("override", &span, "the variable names too long a path"));
        return None;
    }
    let value = read_value(&source, name.len() + 1, problems)?;
    Some(Override { name: format!("environment variable {name}"), steps, value })
}

/// `--set a.b=c`, in the order of the command line.
pub(super) fn assignments(options: &LoadOptions, problems: &mut Vec<Diagnostic>) -> Vec<Override> {
    let folder = options.folder();
    options.set.iter().filter_map(|text| assignment(text, &folder, problems)).collect()
}

fn assignment(text: &str, folder: &Path, problems: &mut Vec<Diagnostic>) -> Option<Override> {
    let source = Source::new("--set", text, folder, Origin::CommandLine);
    let wrong = |span: Range<usize>, message: String| {
        Diagnostic::new("override", &Span::new(&source, span.start, span.end), message)
            .rule("--set takes PATH=VALUE")
            .help("as in --set trainer.optimizer.lr=3e-4 or --set 'stages[0].steps=100'")
    };
    let Some((path, _)) = source.text().split_once('=') else {
        problems.push(wrong(0..text.len(), format!("`{text}` has no `=`")));
        return None;
    };
    match parse_path(path) {
        Ok(steps) if steps.len() > DEEPEST => {
            problems.push(wrong(0..path.len(), format!("`{}` is too long a path", &path[..steps[3].1.end])));
            None
        }
        Ok(steps) => {
            let steps =
                steps.into_iter().map(|(step, at)| (step, Span::new(&source, at.start, at.end))).collect();
            let value = read_value(&source, path.len() + 1, problems)?;
            Some(Override { name: format!("--set {text}"), steps, value })
        }
        Err(at) => {
            problems.push(wrong(at..path.len(), format!("`{path}` is no path to a key")));
            None
        }
    }
}

/// The value after `=`: YAML in one line.
fn read_value(source: &Arc<Source>, start: usize, problems: &mut Vec<Diagnostic>) -> Option<Node> {
    let parsed = parse(source, start, problems);
    let place = Span::new(source, start, source.text().len());
    parsed.complete.then(|| parsed.root.unwrap_or_else(|| Node::new(Yaml::Null, &place)))
}

impl Override {
    /// The override as a layer over `lower`; an index changes that item of the list that stands there.
    ///
    /// # Errors
    /// When an index leads nowhere.
    pub fn over(&self, lower: &Node) -> Result<Layer, Box<Diagnostic>> {
        let root = self.node(Some(lower), 0)?;
        Ok(Layer { name: self.name.clone(), root, replaces: None })
    }

    fn node(&self, lower: Option<&Node>, depth: usize) -> Result<Node, Box<Diagnostic>> {
        let Some((step, span)) = self.steps.get(depth) else { return Ok(self.value.clone()) };
        if let Some(Node { yaml: Yaml::List(list), .. }) = lower {
            return self.in_list(list, step, span, depth);
        }
        let below = lower.and_then(Node::map).and_then(|map| map.get(&step.key()));
        if let (Step::Index(index), true) = (step, span.text().starts_with('[')) {
            let message = format!("there is no list at `{}`, so no item {index} of it", self.path(depth));
            return Err(Box::new(
                self.wrong(span, message, depth)
                    .help(format!("set the whole list: {}=[...]", self.path(depth))),
            ));
        }
        let value = self.node(below, depth + 1)?;
        let entry = Entry { key: step.key(), key_span: span.clone(), value };
        Ok(Node::new(Yaml::Map(Map { entries: vec![entry] }), span))
    }

    fn in_list(
        &self,
        list: &[Node],
        step: &Step,
        span: &Span,
        depth: usize,
    ) -> Result<Node, Box<Diagnostic>> {
        let path = self.path(depth);
        let items = if list.len() == 1 { "1 item".to_owned() } else { format!("{} items", list.len()) };
        let Step::Index(index) = *step else {
            let message = format!("`{path}` is a list of {items}: say which one `{}` belongs to", step.key());
            return Err(Box::new(
                self.wrong(span, message, depth)
                    .help(format!("`{path}[0].{}` is that of the first", step.key())),
            ));
        };
        let Some(old) = list.get(index) else {
            let message = format!("`{path}` has {items}, so no item {index}");
            let help = if list.is_empty() {
                "the list is empty".into()
            } else {
                format!("items are counted from 0: 0 to {}", list.len() - 1)
            };
            return Err(Box::new(self.wrong(span, message, depth).help(help)));
        };
        let new = self.node(Some(old), depth + 1)?;
        let mut list = list.to_vec();
        list[index] = merged(old, new);
        Ok(Node::new(Yaml::List(list), span))
    }

    fn path(&self, depth: usize) -> String {
        show_path(&self.steps[..depth].iter().map(|(step, _)| step.clone()).collect::<Vec<_>>())
    }

    fn wrong(&self, span: &Span, message: String, depth: usize) -> Diagnostic {
        Diagnostic::new("override", span, message)
            .at(self.path(depth + 1))
            .rule("a path leads to a key of the recipe below it")
    }
}

/// Two values merged as the layers of a recipe are.
fn merged(old: &Node, new: Node) -> Node {
    let boxed = |node: &Node| {
        let entry = Entry { key: "item".into(), key_span: node.span.clone(), value: node.clone() };
        Node::new(Yaml::Map(Map { entries: vec![entry] }), &node.span)
    };
    let mut both = lay_over(&boxed(old), &boxed(&new));
    both.map_mut().and_then(|map| map.remove("item")).map_or(new, |entry| entry.value)
}
