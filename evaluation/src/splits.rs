//! Whether there is anything to measure on, before hours of training.

use hymba_plus::registry::Finding;

/// A stage at `path` measures on a test split that the data has not.
pub(crate) fn no_test_split(path: &str, what: &str) -> Finding {
    Finding {
        path: path.to_owned(),
        message: format!("the data has no test {what} to measure on"),
        rule: "a stage that measures in the end needs a test split".to_owned(),
        help: Some("give the section `data` one, or leave the stage out".to_owned()),
    }
}
