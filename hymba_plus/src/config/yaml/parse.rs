//! From the parser's events to a tree, reporting everything that recipes do not allow and going on where one can.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span as Marks, StrInput};

use super::{
    super::{Diagnostic, Source, Span},
    Entry, Map, Node, Step, Yaml, failure, scalar, show_path, syntax,
};

/// Deeper nesting than any recipe needs; a bound, because trees are walked recursively.
const DEEPEST: usize = 64;
/// How many values aliases may add: enough for any recipe, far from what fills the memory.
const MOST_ALIASED: usize = 10_000;
/// Line ends of YAML 1.1 that YAML 1.2 takes for ordinary characters: no two readers agree on a text that has them.
const ODD_BREAKS: [char; 3] = ['\u{85}', '\u{2028}', '\u{2029}'];
/// Lines with tabs beyond these are not worth a message each.
const MOST_TABS: usize = 10;

/// What came of a text.
#[derive(Debug)]
pub(in crate::config) struct Parsed {
    /// The tree, as far as the text could be read; `None` for an empty text.
    pub root: Option<Node>,
    /// Whether the whole text was read.
    pub complete: bool,
}

/// Reads the YAML that begins at byte `start` of the first line of a source.
pub(in crate::config) fn parse(source: &Arc<Source>, start: usize, problems: &mut Vec<Diagnostic>) -> Parsed {
    let text = &source.text()[start..];
    if let Some(at) = text.find('\u{fffd}') {
        problems.push(syntax::unreadable(&Span::new(source, start + at, start + at + '\u{fffd}'.len_utf8())));
    }
    let place = Place { source, start, widened: Vec::new() };
    let mut found = Vec::new();
    let (parsed, error) = Builder::new(place, &mut found).run(text);
    let Some(error) = error else {
        problems.append(&mut found);
        return parsed;
    };
    let tabs = tabbed_lines(text);
    if tabs.is_empty() {
        problems.append(&mut found);
        problems.push(error);
        return parsed;
    }
    // Tabs in the indentation: say so, and read the text again as if each were two blanks, to find what else is wrong.
    let place = Place { source, start, widened: tabs };
    problems.extend(place.tabs());
    let widened: String = text.split_inclusive('\n').map(widen).collect();
    let (mut parsed, _) = Builder::new(place, problems).run(&widened);
    parsed.complete = false;
    parsed
}

/// Number of tabs at the beginning of each line, if there are any at all.
fn tabbed_lines(text: &str) -> Vec<usize> {
    let tabs = |line: &str| line[..indentation(line)].matches('\t').count();
    let lines: Vec<usize> =
        text.split('\n').map(|line| if line.trim().is_empty() { 0 } else { tabs(line) }).collect();
    if lines.iter().any(|&tabs| tabs > 0) { lines } else { Vec::new() }
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start_matches([' ', '\t']).len()
}

fn widen(line: &str) -> Cow<'_, str> {
    let (blank, rest) = line.split_at(indentation(line));
    if rest.trim().is_empty() || !blank.contains('\t') {
        return Cow::Borrowed(line);
    }
    Cow::Owned(blank.replace('\t', "  ") + rest)
}

/// Turns the parser's marks into spans of the source.
struct Place<'a> {
    source: &'a Arc<Source>,
    start: usize,
    /// For each line, how many tabs at its beginning were read as two blanks.
    widened: Vec<usize>,
}

impl Place<'_> {
    fn offset(&self, mark: Marker) -> usize {
        let tabs = self.widened.get(mark.line().saturating_sub(1)).copied().unwrap_or(0);
        let shift = if mark.line() <= 1 { self.source.text()[..self.start].chars().count() } else { 0 };
        self.source.offset(mark.line().max(1), (mark.col() + shift).saturating_sub(tabs))
    }

    fn span(&self, marks: Marks) -> Span {
        Span::new(self.source, self.offset(marks.start), self.offset(marks.end))
    }

    fn tabs(&self) -> Vec<Diagnostic> {
        let lines: Vec<usize> =
            (1..).zip(&self.widened).filter(|(_, tabs)| **tabs > 0).map(|(line, _)| line).collect();
        let report = |line: usize| {
            let from = self.source.offset(line, 0);
            let blank = indentation(self.source.line(line));
            let first = self.source.line(line).find('\t').unwrap_or(0);
            syntax::tab(
                &Span::new(self.source, from + first, from + blank),
                lines.len().saturating_sub(MOST_TABS),
            )
        };
        lines.iter().take(MOST_TABS).map(|&line| report(line)).collect()
    }
}

/// An open list or mapping.
struct Frame {
    items: Items,
    anchor: usize,
    start: usize,
    end: usize,
    /// Whether a key of it was refused.
    refused: bool,
}

enum Items {
    List(Vec<Node>),
    /// Entries, and the key that waits for its value: its text, unless it was refused, and its place.
    Map(Map, Option<(Option<String>, Span)>),
}

struct Builder<'a> {
    place: Place<'a>,
    problems: &'a mut Vec<Diagnostic>,
    stack: Vec<Frame>,
    anchors: HashMap<usize, Node>,
    aliased: usize,
    root: Option<Node>,
    /// Whether something was left out, so that what is missing may be missing for that reason alone.
    broken: bool,
}

impl<'a> Builder<'a> {
    fn new(place: Place<'a>, problems: &'a mut Vec<Diagnostic>) -> Self {
        Self {
            place,
            problems,
            stack: Vec::new(),
            anchors: HashMap::new(),
            aliased: 0,
            root: None,
            broken: false,
        }
    }

    fn run(mut self, text: &str) -> (Parsed, Option<Diagnostic>) {
        let mut parser: Parser<'_, StrInput<'_>> = Parser::new_from_str(text);
        let mut documents = 0;
        let mut error = None;
        while let Some(event) = parser.next_event() {
            let (event, marks) = match event {
                Ok(event) => event,
                Err(failure) => {
                    self.forget_line(self.place.offset(*failure.marker()));
                    error = Some(self.failure(&failure));
                    break;
                }
            };
            if let Event::DocumentStart(_) = event {
                documents += 1;
                if documents == 2 {
                    self.problems.push(syntax::second_document(&self.place.span(marks)));
                    break;
                }
            }
            if let Err(stop) = self.event(event, marks) {
                error = Some(*stop);
                break;
            }
        }
        while let Some(frame) = self.stack.pop() {
            self.close(frame);
        }
        let complete = error.is_none() && !self.broken;
        (Parsed { root: self.root, complete }, error)
    }

    fn failure(&self, failure: &ScanError) -> Diagnostic {
        failure::explain(failure.info(), self.place.source, self.place.offset(*failure.marker()))
    }

    /// Drops the last value if it ends on the line where the parser gave up: it is half of something else.
    fn forget_line(&mut self, offset: usize) {
        let line = |offset: usize| self.place.source.line_column(offset).0;
        let half = |node: &Node| line(node.span.end) >= line(offset);
        match self.stack.last_mut().map(|frame| &mut frame.items) {
            Some(Items::List(list)) => drop(list.pop_if(|node| half(node))),
            Some(Items::Map(map, _)) => drop(map.entries.pop_if(|entry| half(&entry.value))),
            None => self.root = self.root.take().filter(|node| !half(node)),
        }
    }

    /// The dotted path of a key of the innermost open mapping.
    fn path(&self, key: &str) -> String {
        let steps = self.stack.iter().filter_map(|frame| match &frame.items {
            Items::List(list) => Some(Step::Index(list.len())),
            Items::Map(_, Some((Some(key), _))) => Some(Step::Key(key.clone())),
            Items::Map(..) => None,
        });
        show_path(&steps.chain([Step::Key(key.to_owned())]).collect::<Vec<_>>())
    }

    fn event(&mut self, event: Event<'_>, marks: Marks) -> Result<(), Box<Diagnostic>> {
        let span = self.place.span(marks);
        let open = |items, anchor| Frame { items, anchor, start: span.start, end: span.end, refused: false };
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_tag(tag.as_deref(), &span);
                let quoted = style != ScalarStyle::Plain;
                if let Some(at) = text.find(ODD_BREAKS) {
                    let odd = text[at..].chars().next().unwrap_or_default();
                    self.problems.push(syntax::odd_break(odd, &span));
                }
                if let Some(first) =
                    text.chars().next().filter(|first| !quoted && "|>@`%&*!,[]{}#\"'".contains(*first))
                {
                    self.problems.push(syntax::cannot_begin(first, &text, &span)); // which the parser overlooks in brackets
                }
                let yaml = if quoted { Yaml::Text(text.into_owned()) } else { scalar::plain(&text) };
                self.anchored(anchor, Node { yaml, span, quoted });
            }
            Event::SequenceStart(anchor, tag) => {
                self.refuse_tag(tag.as_deref(), &span);
                self.stack.push(open(Items::List(Vec::new()), anchor));
            }
            Event::MappingStart(anchor, tag) => {
                self.refuse_tag(tag.as_deref(), &span);
                self.stack.push(open(Items::Map(Map::default(), None), anchor));
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(mut frame) = self.stack.pop() {
                    // The end of a block lies at the next token; only a bracket belongs to the value.
                    frame.end = frame.end.max(if span.text().trim().is_empty() { 0 } else { span.end });
                    self.close(frame);
                }
            }
            Event::Alias(anchor) => self.alias(anchor, &span)?,
            _ => {}
        }
        if self.stack.len() > DEEPEST {
            let span =
                Span::new(self.place.source, self.place.offset(marks.start), self.place.offset(marks.end));
            return Err(Box::new(syntax::too_deep(&span, DEEPEST)));
        }
        Ok(())
    }

    fn refuse_tag(&mut self, tag: Option<&saphyr_parser::Tag>, span: &Span) {
        if let Some(tag) = tag {
            self.problems.push(syntax::tag(&tag.to_string(), span));
        }
    }

    fn alias(&mut self, anchor: usize, span: &Span) -> Result<(), Box<Diagnostic>> {
        let Some(node) = self.anchors.get(&anchor).cloned() else {
            self.problems.push(syntax::endless_alias(span));
            self.add(Node::new(Yaml::Null, span));
            return Ok(());
        };
        self.aliased += node.count();
        if self.aliased > MOST_ALIASED {
            return Err(Box::new(syntax::too_many_aliases(span, MOST_ALIASED)));
        }
        if self.stack.len() + node.depth() > DEEPEST {
            return Err(Box::new(syntax::too_deep(span, DEEPEST)));
        }
        self.add(node);
        Ok(())
    }

    fn close(&mut self, frame: Frame) {
        let span = Span::new(self.place.source, frame.start, frame.end.max(frame.start));
        let yaml = match frame.items {
            Items::List(list) => Yaml::List(list),
            // A mapping of which nothing is left but a refused key stands for no value at all.
            Items::Map(map, _) if frame.refused && map.entries.is_empty() => {
                self.broken = true;
                return self.drop_waiting();
            }
            Items::Map(map, _) => Yaml::Map(map),
        };
        self.anchored(frame.anchor, Node::new(yaml, &span));
    }

    fn anchored(&mut self, anchor: usize, node: Node) {
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        self.add(node);
    }

    /// Leaves out the value that the innermost open list or mapping waits for.
    fn drop_waiting(&mut self) {
        if let Some(Frame { items: Items::Map(_, waiting), .. }) = self.stack.last_mut() {
            *waiting = None;
        }
    }

    /// Puts a finished value where it belongs: into the open list or mapping, as a key or a value, or at the root.
    fn add(&mut self, node: Node) {
        let Some(Frame { items, end, refused, .. }) = self.stack.last_mut() else {
            self.root = Some(node);
            return;
        };
        if node.span.source.name() == self.place.source.name() {
            *end = (*end).max(node.span.end);
        }
        match items {
            Items::List(list) => list.push(node),
            Items::Map(_, waiting @ None) => {
                let key = key(node, self.problems);
                *refused |= key.0.is_none();
                *waiting = Some(key);
            }
            Items::Map(map, waiting) => {
                let Some((Some(key), key_span)) = waiting.take() else { return };
                let mut value = node;
                if value.span.text().is_empty() {
                    value.span = key_span.clone();
                }
                let first = map.entry(&key).map(|first| first.key_span.clone());
                match first {
                    None => map.entries.push(Entry { key, key_span, value }),
                    Some(first) => {
                        let problem = syntax::duplicate(&key, self.path(&key), &key_span, &first);
                        self.problems.push(problem);
                    }
                }
            }
        }
    }
}

/// The text of a key, unless it is none; what is wrong with it is reported.
fn key(node: Node, problems: &mut Vec<Diagnostic>) -> (Option<String>, Span) {
    match node.yaml {
        Yaml::Text(text) if text == "<<" && !node.quoted => problems.push(syntax::merge_key(&node.span)),
        Yaml::Text(text) => return (Some(text), node.span),
        // Numbers name layers and the like; as keys they are their own text.
        Yaml::Int(number) => return (Some(number.to_string()), node.span),
        _ => problems.push(syntax::not_a_key(&node)),
    }
    (None, node.span)
}
