//! Rows of the doctor's table.

use std::fmt::Write;

/// How a thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Good,
    /// Optional and not there, or there and worth a hint.
    Notice,
    /// Required and not there.
    Missing,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    name: &'static str,
    found: String,
    standing: Standing,
    hint: String,
}

impl Row {
    /// Something that is as it should be.
    pub fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, found: found.into(), standing: Standing::Good, hint: String::new() }
    }

    /// Something that one can do without, and what it would bring.
    pub fn notice(name: &'static str, found: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, found: found.into(), standing: Standing::Notice, hint: hint.into() }
    }

    /// Something required, and how to get it.
    pub fn missing(name: &'static str, found: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, found: found.into(), standing: Standing::Missing, hint: hint.into() }
    }

    /// Whether something required is missing.
    pub fn is_missing(&self) -> bool {
        self.standing == Standing::Missing
    }
}

/// A titled block of rows, hints below their rows.
pub fn render(title: &str, rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    let mut text = format!("{title}\n");
    for Row { name, found, standing, hint } in rows {
        let mark = match standing {
            Standing::Good => "ok",
            Standing::Notice => "--",
            Standing::Missing => "!!",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {mark} {name:width$}  {found}");
        if !hint.is_empty() {
            let _ = writeln!(text, "     {:width$}  -> {hint}", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_stand_below_their_rows() {
        let rows = [Row::good("gcc", "12.2.0"), Row::missing("python3", "not found", "install it")];
        assert_eq!(
            render("tools", &rows),
            "tools\n  ok gcc      12.2.0\n  !! python3  not found\n              -> install it\n"
        );
        assert!(rows[1].is_missing() && !rows[0].is_missing());
    }
}
