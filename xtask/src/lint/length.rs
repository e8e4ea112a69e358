//! A file is one idea; one that outgrows a few screens holds two.

use super::files::Source;
use super::{Finding, finding, is_excepted};

/// Lines of a file of code.
const LIMIT: usize = 600;
const CODE: [&str; 9] = ["rs", "cu", "cuh", "c", "cc", "cpp", "h", "py", "sh"];

/// Finds files of code that are too long.
pub fn check(sources: &[Source]) -> Vec<Finding> {
    let is_code = |source: &&Source| {
        source.path.extension().and_then(|extension| extension.to_str()).is_some_and(|it| CODE.contains(&it))
    };
    let mut findings = Vec::new();
    for source in sources.iter().filter(is_code) {
        let lines = source.text.lines().count();
        if lines > LIMIT && !source.text.lines().any(|line| is_excepted(line, "long-file")) {
            let what = format!("{lines} lines, over the limit of {LIMIT}");
            let help =
                "give its second idea a file of its own, or say why not: `// lint: long-file-ok: reason`";
            findings.push(finding(source, LIMIT + 1, "long-file", what, help));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_code_needs_a_reason() {
        let long = "x\n".repeat(LIMIT + 1);
        let source = |path: &str, text: String| Source { path: path.into(), text };
        assert_eq!(check(&[source("a.rs", long.clone())])[0].line, LIMIT + 1);
        assert_eq!(check(&[source("a.rs", "x\n".repeat(LIMIT))]), []);
        assert_eq!(check(&[source("a.md", long.clone())]), []);
        assert_eq!(check(&[source("a.rs", format!("// lint: long-file-ok: one table\n{long}"))]), []);
    }
}
