//! YAML as recipes use it: one document, text keys, no tags and no merge keys, every value with its place.

mod failure;
mod parse;
mod scalar;
mod syntax;
mod tree;

pub(super) use parse::parse;
pub(super) use tree::{Entry, Map, Node, Step, Yaml, parse_path, show_path};
