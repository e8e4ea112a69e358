//! `kind: series_csv` and `kind: named_series`: time series from tables of numbers.

use std::path::Path;

use hymba_plus::{component_config, config::RecipePath, register};

use super::{
    DataError, Dataset, Description, Fingerprint, Series, SplitRows, corpus,
    published::{Published, directories},
};
use crate::slot::{DatasetSpec, Resolve, dataset};

/// A time series from a CSV file: a header with the names of the columns, then a row for each time, in order.
#[component_config]
pub struct SeriesCsv {
    /// The file.
    #[schemars(extend("x-exists" = true))]
    pub path: RecipePath,
    /// The columns to read, a channel each; left out, all but a first one that is not a number (a date).
    #[schemars(length(min = 1))]
    pub columns: Option<Vec<String>>,
    /// First rows, to learn from.
    #[schemars(range(min = 1, max = 1_073_741_824))]
    pub train_rows: usize,
    /// Rows after those, to choose a model by.
    #[default(0)]
    #[schemars(range(max = 1_073_741_824))]
    pub validation_rows: usize,
    /// Rows after those, to measure it on in the end; rows after these are not read.
    #[default(0)]
    #[schemars(range(max = 1_073_741_824))]
    pub test_rows: usize,
    /// Whether each channel is brought to mean 0 and standard deviation 1 of its training rows.
    #[default(true)]
    pub standardise: bool,
}

/// A public time series by its name, checked against its published SHA-256, with the split of the literature. It is
/// looked for in the directory `HYMBA_DATA_DIR`, or in `data/` where the command runs.
#[component_config]
pub struct NamedSeries {
    /// Which one.
    pub name: SeriesName,
    /// Whether each channel is brought to mean 0 and standard deviation 1 of its training rows.
    #[default(true)]
    pub standardise: bool,
}

/// Series of the catalogue.
#[component_config]
pub enum SeriesName {
    /// Load and oil temperature of an electricity transformer, hourly, 7 channels (Zhou et al. 2021, Informer); of its 24
    /// months, 12 are for training, 4 for validation, 4 for the test; CC BY-ND 4.0.
    Etth1,
}

register!(dataset "series_csv" => SeriesCsv);
register!(dataset "named_series" => NamedSeries);

impl SeriesName {
    fn published(self) -> Published {
        match self {
            Self::Etth1 => Published {
                name: "etth1",
                file: "ETTh1.csv",
                size: 2_589_657,
                sha256: "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",
                licence: "CC BY-ND 4.0",
                address: "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small/ETTh1.csv",
            },
        }
    }

    /// Channels and the literature's split: months of 30 days.
    fn description(self) -> (i64, SplitRows) {
        match self {
            Self::Etth1 => {
                let month = 30 * 24;
                (7, SplitRows { train: 12 * month, validation: 4 * month, test: 4 * month })
            }
        }
    }
}

/// A table as it stands in a file.
#[derive(Debug, PartialEq)]
struct Table {
    columns: Vec<String>,
    values: Vec<f64>,
}

/// The named columns of a CSV file, or all that hold numbers. Says where it is not a table of numbers.
fn parse(text: &str, path: &Path, wanted: Option<&[String]>) -> Result<Table, DataError> {
    let at = |line: usize, message: String| DataError::Table { path: path.to_owned(), line, message };
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).peekable();
    let header: Vec<&str> = match lines.next() {
        Some((_, header)) => header.trim_start_matches('\u{feff}').split(',').map(str::trim).collect(),
        None => return Err(at(1, "the file is empty".to_owned())),
    };
    let Some((_, first)) = lines.peek() else {
        return Err(at(1, "there is no row after the header".to_owned()));
    };
    let places: Vec<usize> = if let Some(names) = wanted {
        let place = |name: &String| {
            header
                .iter()
                .position(|column| column == name)
                .ok_or_else(|| at(1, format!("there is no column `{name}`; there are {}", header.join(", "))))
        };
        names.iter().map(place).collect::<Result<_, _>>()?
    } else {
        let is_date = |cell: &str| !cell.is_empty() && cell.parse::<f64>().is_err();
        let is_date = first.split(',').next().is_some_and(|cell| is_date(cell.trim()));
        (usize::from(is_date)..header.len()).collect()
    };
    if places.is_empty() {
        return Err(at(1, "there is no column of numbers".to_owned()));
    }
    let mut values = Vec::new();
    for (line, row) in lines {
        let cells: Vec<&str> = row.split(',').map(str::trim).collect();
        if cells.len() != header.len() {
            let (got, want) = (cells.len(), header.len());
            return Err(at(line + 1, format!("{got} cells, the header has {want} columns")));
        }
        for &place in &places {
            let value = cells[place].parse::<f64>().ok().filter(|value| value.is_finite());
            values.push(value.ok_or_else(|| {
                at(
                    line + 1,
                    format!("column `{}` holds `{}`, which is no number", header[place], cells[place]),
                )
            })?);
        }
    }
    Ok(Table { columns: places.iter().map(|&place| header[place].to_owned()).collect(), values })
}

impl SeriesCsv {
    fn rows(&self) -> SplitRows {
        SplitRows { train: self.train_rows, validation: self.validation_rows, test: self.test_rows }
    }
}

impl DatasetSpec for SeriesCsv {
    fn describe(&self, resolve: Resolve<'_>) -> Result<Description, DataError> {
        let path = resolve(&self.path);
        let table = parse(&corpus::read_text(&path)?.0, &path, self.columns.as_deref())?;
        let (have, wanted) = (table.values.len() / table.columns.len(), self.rows().total());
        if have < wanted {
            return Err(DataError::SeriesRows { have, wanted });
        }
        Ok(Description::Series { channels: table.columns.len() as i64, rows: self.rows() })
    }

    fn load(&self, resolve: Resolve<'_>) -> Result<Dataset, DataError> {
        let path = resolve(&self.path);
        let (text, record) = corpus::read_text(&path)?;
        let table = parse(&text, &path, self.columns.as_deref())?;
        let fingerprint = Fingerprint::of_files(std::slice::from_ref(&record));
        let series = Series::new(table.columns, table.values, self.rows(), self.standardise, fingerprint)?;
        Ok(Dataset::Series(series.with_files(vec![record])))
    }

    fn holds_out(&self) -> bool {
        self.validation_rows > 0
    }
}

impl DatasetSpec for NamedSeries {
    fn describe(&self, _resolve: Resolve<'_>) -> Result<Description, DataError> {
        let (channels, rows) = self.name.description();
        Ok(Description::Series { channels, rows })
    }

    fn load(&self, _resolve: Resolve<'_>) -> Result<Dataset, DataError> {
        let (text, record) = self.name.published().read(&directories())?;
        let table = parse(&text, &record.path, None)?;
        let fingerprint = Fingerprint::of_files(std::slice::from_ref(&record));
        let rows = self.name.description().1;
        let series = Series::new(table.columns, table.values, rows, self.standardise, fingerprint)?;
        Ok(Dataset::Series(series.with_files(vec![record])))
    }

    fn holds_out(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str, columns: Option<&[&str]>) -> Result<Table, String> {
        let columns = columns.map(|names| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>());
        parse(text, Path::new("t.csv"), columns.as_deref()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_date_is_passed_over_and_columns_can_be_chosen() {
        let text = "\u{feff}date, a,b\r\n2016-07-01 00:00:00,1.5,-2\r\n\r\n2016-07-01 01:00:00, 3e-1 ,4\r\n";
        let all = table(text, None).unwrap();
        assert_eq!((all.columns, all.values), (vec!["a".into(), "b".into()], vec![1.5, -2.0, 0.3, 4.0]));
        let b = table(text, Some(&["b"])).unwrap();
        assert_eq!((b.columns, b.values), (vec!["b".into()], vec![-2.0, 4.0]));
        assert_eq!(table("a,b\n1,2\n", None).unwrap().columns, ["a", "b"]);
    }

    #[test]
    fn what_is_no_table_of_numbers_is_said_with_its_line() {
        for (text, columns, words) in [
            ("", None, "t.csv:1: the file is empty"),
            ("a,b\n", None, "t.csv:1: there is no row"),
            ("d,a\nx,1\ny,\n", None, "t.csv:3: column `a` holds ``"),
            ("d,a\nx,1\ny,nan\n", None, "t.csv:3: column `a` holds `nan`"),
            ("d,a\nx,1\n\ny\n", None, "t.csv:4: 1 cells, the header has 2"),
            ("d,a\nx,1\n", Some(&["c"][..]), "no column `c`; there are d, a"),
            ("d\nx\n", None, "no column of numbers"),
        ] {
            let error = table(text, columns).unwrap_err();
            assert!(error.contains(words), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_file_and_its_description_agree() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("s.csv"), "t,a,b\nx,1,2\ny,3,4\nz,5,6\n").unwrap();
        let spec = |train: usize| SeriesCsv {
            path: serde_json::from_value(serde_json::json!("s.csv")).unwrap(),
            columns: None,
            train_rows: train,
            validation_rows: 1,
            test_rows: 0,
            standardise: false,
        };
        let resolve = |path: &RecipePath| folder.path().join(path.as_str());
        let rows = SplitRows { train: 2, validation: 1, test: 0 };
        assert_eq!(spec(2).describe(&resolve).unwrap(), Description::Series { channels: 2, rows });
        let Dataset::Series(series) = spec(2).load(&resolve).unwrap() else { panic!("no series") };
        assert_eq!((series.rows, series.rows(2..3)), (rows, &[5.0, 6.0][..]));
        assert_eq!(series.files.len(), 1);
        for error in [spec(3).describe(&resolve).unwrap_err(), spec(3).load(&resolve).unwrap_err()] {
            assert!(error.to_string().contains("has 3 rows"), "{error}");
        }
    }
}
