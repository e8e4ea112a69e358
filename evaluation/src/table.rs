//! Tables that stages print, and the files they leave.

use std::fmt::Write;

use recipes::{StageContext, StageError};
use serde_json::Value;

/// Columns of numbers beside names.
#[derive(Debug, Default)]
pub(crate) struct Table {
    columns: Vec<&'static str>,
    rows: Vec<(String, Vec<String>)>,
}

impl Table {
    pub(crate) fn new(columns: &[&'static str]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, name: impl Into<String>, cells: Vec<String>) {
        self.rows.push((name.into(), cells));
    }

    /// The table as text; numbers stand to the right.
    pub(crate) fn render(&self) -> String {
        let names = self.rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        let cell = |row: &[String], i: usize| row.get(i).map_or(0, |cell| cell.chars().count());
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|i| {
                let longest = self.rows.iter().map(|(_, row)| cell(row, i)).max().unwrap_or(0);
                longest.max(self.columns[i].chars().count())
            })
            .collect();
        let mut text = format!("{:<names$}", "");
        let line = |text: &mut String, cells: &mut dyn Iterator<Item = &str>| {
            for (cell, width) in cells.zip(&widths) {
                let _ = write!(text, "  {cell:>width$}"); // a String takes everything
            }
            text.push('\n');
        };
        line(&mut text, &mut self.columns.iter().copied());
        for (name, cells) in &self.rows {
            let _ = write!(text, "{name:<names$}");
            line(&mut text, &mut cells.iter().map(String::as_str));
        }
        text
    }
}

/// Prints a table under a line and leaves its numbers as `stages/NAME/evaluation.json`.
pub(crate) fn report(
    context: &StageContext<'_>,
    line: &str,
    table: &Table,
    json: &Value,
) -> Result<(), StageError> {
    context.run.console().line(&format!("{line}\n{}", table.render().trim_end()));
    let bytes = serde_json::to_vec_pretty(json).map_err(|error| StageError::Other(error.to_string()))?;
    context.run.directory().write_stage_file(&context.stage, "evaluation.json", &bytes)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_under_their_heads() {
        let mut table = Table::new(&["mse", "mae"]);
        table.row("a", vec!["0.1".into(), "12345".into()]);
        table.row("longer", vec!["-".into()]);
        assert_eq!(table.render(), "        mse    mae\na       0.1  12345\nlonger    -\n");
    }
}
