//! Paths in recipes: written from the file that names them, kept from the recipe's folder.

use std::{
    borrow::Cow,
    fmt,
    path::{Component, Path, PathBuf},
};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A path in a recipe.
///
/// A relative one is taken from the folder of the file that names it (from the current folder on the command line and
/// in the environment); [`Recipe::path`](super::Recipe::path) gives the path to open. An owner that needs the file to
/// exist writes `#[schemars(extend("x-exists" = true))]` on the field, and a missing one is found with everything else.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RecipePath(String);

impl RecipePath {
    /// A path from the recipe's folder.
    pub fn new(path: impl Into<String>) -> Self {
        Self(path.into())
    }

    /// The path as the resolved recipe holds it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for RecipePath {
    fn from(path: &str) -> Self {
        Self(path.to_owned())
    }
}

impl fmt::Display for RecipePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl JsonSchema for RecipePath {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "RecipePath".into()
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": 1, "x-path": true })
    }
}

/// The path without `.` and, as far as that can be told without the disk, without `..`.
pub(super) fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => match normal.components().next_back() {
                Some(Component::Normal(_)) => {
                    normal.pop();
                }
                Some(Component::RootDir | Component::Prefix(_)) => {}
                _ => normal.push(".."),
            },
            part => normal.push(part),
        }
    }
    if normal.as_os_str().is_empty() { PathBuf::from(".") } else { normal }
}

/// How `path` is reached from `folder`; both absolute and normal. Where they share nothing but the root, that is the path
/// itself: the way from one to the other would say more of this machine than of the recipe.
pub(super) fn relative(path: &Path, folder: &Path) -> PathBuf {
    let shared = path.components().zip(folder.components()).take_while(|(a, b)| a == b).count();
    let is_root =
        |part: Option<Component<'_>>| matches!(part, Some(Component::RootDir | Component::Prefix(_)) | None);
    if is_root(path.components().nth(shared.saturating_sub(1))) && folder.components().count() > shared {
        return path.to_owned();
    }
    let up = folder.components().skip(shared).map(|_| Component::ParentDir);
    let relative: PathBuf = up.chain(path.components().skip(shared)).collect();
    if relative.as_os_str().is_empty() { PathBuf::from(".") } else { relative }
}

/// A path with `/` between its parts on every system, so that a dump reads the same everywhere.
pub(super) fn portable(path: &Path) -> String {
    let text = path.to_string_lossy().into_owned();
    if cfg!(windows) { text.replace('\\', "/") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_are_resolved_without_the_disk() {
        for (path, expected) in [
            ("a/./b/../c", "a/c"),
            ("../a", "../a"),
            ("a/../..", ".."),
            ("/..", "/"),
            ("./", "."),
            ("/a/../b/", "/b"),
        ] {
            assert_eq!(normal(Path::new(path)), Path::new(expected), "{path}");
        }
    }

    #[test]
    fn a_path_is_reached_from_a_folder() {
        for (path, folder, expected) in [
            ("/a/b/c", "/a/b", "c"),
            ("/a/x/c", "/a/b", "../x/c"),
            ("/a", "/a", "."),
            ("/q/w", "/a/b", "/q/w"),
            ("/a/b", "/", "a/b"),
        ] {
            assert_eq!(
                relative(Path::new(path), Path::new(folder)),
                Path::new(expected),
                "{path} from {folder}"
            );
        }
    }
}
