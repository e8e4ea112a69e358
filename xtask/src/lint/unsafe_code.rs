//! `unsafe` lives in two crates, where it is looked for.

use super::files::Source;
use super::rust_text::RustText;
use super::{Finding, finding};

/// The rooms that may hold `unsafe`: what libtorch hides, and the fast kernels.
const ALLOWED: [&str; 2] = ["torch_bridge", "kernels"];

/// Finds `unsafe` anywhere else.
pub fn check(sources: &[Source]) -> Vec<Finding> {
    let elsewhere =
        |source: &&Source| source.is_rust() && !ALLOWED.iter().any(|room| source.path.starts_with(room));
    let mut findings = Vec::new();
    for source in sources.iter().filter(elsewhere) {
        for (line, code) in (1..).zip(RustText::of(&source.text).code.lines()) {
            if code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe") {
                let what = "`unsafe` outside torch_bridge and kernels";
                let help = "call a safe function of torch_bridge or kernels; write it there if it is missing";
                findings.push(finding(source, line, "unsafe", what, help));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_real_unsafe_elsewhere_is_found() {
        let text = "// unsafe\n#![forbid(unsafe_code)]\nlet s = \"unsafe\";\nunsafe { f() }\n";
        let source = |path: &str| Source { path: path.into(), text: text.into() };
        let found =
            check(&[source("training/src/lib.rs"), source("kernels/src/lib.rs"), source("docs/a.md")]);
        assert_eq!(found.iter().map(|finding| finding.line).collect::<Vec<_>>(), [4]);
    }
}
