//! No file names a package registry (mirrors and offline sites differ) or somebody's home folder.

use super::files::Source;
use super::{Finding, finding, is_excepted};

/// Registries, in halves, so that this file does not break its own rule.
const REGISTRIES: [(&str, &str); 8] = [
    ("pypi.", "org"),
    ("python", "hosted.org"),
    ("index.crates", ".io"),
    ("static.crates", ".io"),
    ("crates.io/", "api"),
    ("crates.io-", "index"),
    ("download.", "pytorch.org"),
    ("conda.", "anaconda.org"),
];
const HOMES: [(&str, &str); 3] = [("/home", "/"), ("/Users", "/"), ("/root", "/")];

/// Finds both kinds of names.
pub fn check(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    // cargo writes its registry into the lock file itself.
    for source in
        sources.iter().filter(|source| source.path.file_name().is_none_or(|name| name != "Cargo.lock"))
    {
        for (line, text) in (1..).zip(source.text.lines()) {
            if let Some(host) = registry(text)
                && !is_excepted(text, "registry")
            {
                let what = format!("names the registry {host}");
                let help = "let pip and cargo use what they are set up for, or say why not: `lint: registry-ok: reason`";
                findings.push(finding(source, line, "registry", what, help));
            }
            if let Some(path) = home(text)
                && !is_excepted(text, "home-path")
            {
                let what = format!("names the home folder {path}");
                let help = "use a path relative to the checkout or `~`, or say why not: `lint: home-path-ok: reason`";
                findings.push(finding(source, line, "home-path", what, help));
            }
        }
    }
    findings
}

fn registry(line: &str) -> Option<String> {
    REGISTRIES.iter().map(|(a, b)| format!("{a}{b}")).find(|host| line.contains(host.as_str()))
}

/// An absolute path into a home folder: the folder itself at the path's beginning, and a name after it.
fn home(line: &str) -> Option<String> {
    HOMES.iter().map(|(a, b)| format!("{a}{b}")).find_map(|folder| {
        line.match_indices(folder.as_str()).find_map(|(at, _)| {
            let before = line[..at].chars().next_back();
            let is_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '~' | '$' | '}');
            let name: String = line[at + folder.len()..].chars().take_while(|c| is_word(*c)).collect();
            (!before.is_some_and(is_word) && !name.is_empty()).then(|| format!("{folder}{name}"))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(path: &str, text: String) -> Vec<&'static str> {
        check(&[Source { path: path.into(), text }]).into_iter().map(|finding| finding.rule).collect()
    }

    #[test]
    fn registries_are_found_except_in_the_lock_file() {
        let line = format!("url = \"https://{}{}/simple\"", "pypi.", "org");
        assert_eq!(rules("a.toml", line.clone()), ["registry"]);
        assert_eq!(rules("Cargo.lock", line.clone()), [""; 0]);
        assert_eq!(rules("a.toml", format!("{line} # lint: registry-ok: shows a mirror")), [""; 0]);
        assert_eq!(rules("a.md", "as published on crates.io".into()), [""; 0]);
    }

    #[test]
    fn home_folders_are_found() {
        assert_eq!(rules("a.md", format!("cd {}{}", "/home", "/someone/src")), ["home-path"]);
        assert_eq!(rules("a.md", format!("cd {}{}", "/Users", "/someone")), ["home-path"]);
        assert_eq!(rules("a.md", "the folder /home/ or assets/home/page".into()), [""; 0]);
    }
}
