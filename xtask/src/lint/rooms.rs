//! The rooms of the workspace, bottom to top: a crate knows only those below it.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Finding;
use crate::failure::{Doing, Failure, Result};
use crate::workspace;

/// The crates from bottom to top.
const ROOMS: [&str; 10] = [
    "hymba_plus_macros",
    "torch_bridge",
    "kernels",
    "hymba_plus",
    "components",
    "training",
    "recipes",
    "evaluation",
    "serving",
    "hymba_cli",
];
/// Crates that find components through the registry and must build without them.
const WITHOUT_COMPONENTS: [&str; 4] = ["hymba_plus", "training", "recipes", "evaluation"];
/// Crates of the registry that link torch.
const TORCH: [&str; 2] = ["tch", "torch-sys"];

/// A crate of the workspace.
#[derive(Debug, Clone, Deserialize)]
pub struct Package {
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
    #[serde(skip)]
    manifest: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

/// The crates of the workspace, as cargo sees them.
///
/// # Errors
/// When cargo cannot read the workspace.
pub fn packages(root: &Path) -> Result<Vec<Package>> {
    let mut cargo = workspace::cargo();
    cargo.args(["metadata", "--no-deps", "--format-version", "1", "--offline"]).current_dir(root);
    let output = cargo.output().doing(|| "start cargo".into())?;
    if !output.status.success() {
        return Err(Failure::new(String::from_utf8_lossy(&output.stderr).trim().to_owned(), ""));
    }
    let metadata: Metadata = serde_json::from_slice(&output.stdout)
        .map_err(|error| Failure::new(format!("cargo metadata could not be read: {error}"), ""))?;
    let mut packages = metadata.packages;
    for package in &mut packages {
        let path = &package.manifest_path;
        package.manifest = fs::read_to_string(path).doing(|| format!("read {}", path.display()))?;
        package.manifest_path = path.strip_prefix(root).unwrap_or(path).to_path_buf();
    }
    Ok(packages)
}

/// Finds dependencies that go up, and those that a rule of their own forbids.
pub fn check(packages: &[Package]) -> Vec<Finding> {
    let is_member = |name: &str| packages.iter().any(|package| package.name == name);
    let mut findings = Vec::new();
    for package in packages {
        let Some(height) = height(package) else {
            let what = format!("the crate {} has no room", package.name);
            findings.push(package.finding(
                "",
                what,
                "give it its place in ROOMS, in xtask/src/lint/rooms.rs",
            ));
            continue;
        };
        for dependency in
            package.dependencies.iter().filter(|dependency| dependency.kind.as_deref() != Some("dev"))
        {
            let name = dependency.name.as_str();
            let member = is_member(name);
            if let Some((what, help)) = package.forbids(name, member, height) {
                findings.push(package.finding(name, what, help));
            }
        }
    }
    findings
}

/// How high a room is; what crosses rooms (tests and examples) is above all.
fn height(package: &Package) -> Option<usize> {
    let on_top = ["tests", "examples"].iter().any(|folder| package.manifest_path.starts_with(folder));
    if package.name == "xtask" {
        return Some(0);
    }
    if on_top { Some(ROOMS.len()) } else { ROOMS.iter().position(|room| *room == package.name) }
}

impl Package {
    fn forbids(&self, name: &str, member: bool, height: usize) -> Option<(String, &'static str)> {
        let me = self.name.as_str();
        if me == "xtask" {
            let linked = member || TORCH.contains(&name);
            return linked.then(|| {
                (format!("xtask depends on {name}"), "xtask runs before there is a libtorch: do without")
            });
        }
        if name == "components" && WITHOUT_COMPONENTS.contains(&me) {
            let help = "find the component through the registry; only a dev-dependency may name the crate";
            return Some((format!("{me} depends on components"), help));
        }
        let above = ROOMS.iter().position(|room| *room == name).is_none_or(|other| other >= height);
        (member && above).then(|| {
            let what = format!("{me} depends on {name}, which is not below it");
            (what, "move what is shared to a lower room, or turn the call into a registered component")
        })
    }

    /// At the line of the manifest that names the dependency.
    fn finding(&self, dependency: &str, what: String, help: &str) -> Finding {
        let line = self.manifest.lines().position(|line| {
            let line = line.trim_start();
            !dependency.is_empty()
                && line.strip_prefix(dependency).is_some_and(|rest| rest.starts_with([' ', '.', '=']))
        });
        Finding {
            file: self.manifest_path.clone(),
            line: line.map_or(1, |line| line + 1),
            rule: "rooms",
            what,
            help: help.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependencies: &[(&str, Option<&str>)]) -> Package {
        let lines =
            dependencies.iter().flat_map(|(name, _)| [*name, ".workspace = true\n"]).collect::<String>();
        Package {
            name: name.into(),
            manifest_path: format!("{name}/Cargo.toml").into(),
            dependencies: dependencies
                .iter()
                .map(|(name, kind)| Dependency { name: (*name).into(), kind: kind.map(str::to_owned) })
                .collect(),
            manifest: format!("[dependencies]\n{lines}"),
        }
    }

    fn whats(packages: &[Package]) -> Vec<String> {
        check(packages).into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn downwards_is_fine() {
        let packages = [
            package("torch_bridge", &[("tch", None)]),
            package("kernels", &[("torch_bridge", None)]),
            package("hymba_plus", &[("kernels", None), ("components", Some("dev"))]),
            package("components", &[("hymba_plus", None), ("kernels", None)]),
            package("hymba_cli", &[("components", None)]),
            package("tests", &[("hymba_cli", None)]),
        ];
        assert_eq!(whats(&packages), [""; 0]);
    }

    #[test]
    fn upwards_is_not() {
        let packages = [
            package("kernels", &[("tch", None), ("hymba_plus", None)]),
            package("hymba_plus", &[]),
            package("recipes", &[("evaluation", None)]),
            package("evaluation", &[("recipes", None)]),
        ];
        let findings = check(&packages);
        assert_eq!(findings[0].what, "kernels depends on hymba_plus, which is not below it");
        assert_eq!((findings[0].file.to_str(), findings[0].line), (Some("kernels/Cargo.toml"), 3));
        assert_eq!(findings[1].what, "recipes depends on evaluation, which is not below it");
        assert_eq!(findings.len(), 2);
    }

    #[test]
    fn rules_of_their_own() {
        let packages = [
            package("components", &[]),
            package("training", &[("components", None)]),
            package("xtask", &[("clap", None), ("tch", None)]),
            package("novelty", &[]),
        ];
        let whats = whats(&packages);
        let expected =
            ["training depends on components", "xtask depends on tch", "the crate novelty has no room"];
        assert_eq!(whats, expected);
    }

    #[test]
    fn this_workspace_can_be_read() {
        let packages = packages(&workspace::root()).unwrap();
        assert!(packages.iter().any(|package| package.name == "xtask"));
    }
}
