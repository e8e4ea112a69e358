//! `kind: series_documents`: windows of a series as documents of a language model.

use hymba_plus::{component_config, register, registry::Component};

use super::{Corpus, DataError, Dataset, Description, Document, Modality, Numbers, Series, SplitRows};
use crate::slot::{DatasetSpec, Resolve, dataset};

/// Windows of a time series as documents, one for each channel: numbers that a tokenizer `with_series` turns into tokens
/// beside those of text. A language model that learnt from them forecasts by going on.
#[component_config]
pub struct SeriesDocuments {
    /// The series.
    pub series: Component<dataset>,
    /// Rows of a document.
    #[schemars(range(min = 2, max = 1_048_576))]
    pub length: usize,
    /// First rows of a document, by whose mean absolute value all of it is scaled: what a forecast will know.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub known: usize,
    /// Rows from document to document.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub stride: usize,
}

register!(dataset "series_documents" => SeriesDocuments);

impl SeriesDocuments {
    fn spec(&self) -> Result<Box<dyn DatasetSpec>, DataError> {
        self.series.make().map_err(|error| DataError::Inner { message: error.to_string() })
    }

    /// Whether a document ends after what is known of it, and each split that is there has one.
    fn check(&self, rows: SplitRows) -> Result<(), DataError> {
        if self.known >= self.length {
            return Err(DataError::NothingToForecast { known: self.known, length: self.length });
        }
        let (input_length, horizon) = (self.known, self.length - self.known);
        for (split, rows) in [("training", rows.train), ("validation", rows.validation)] {
            if rows < self.length && (rows > 0 || split == "training") {
                return Err(DataError::SeriesTooShort { split, rows, input_length, horizon });
            }
        }
        Ok(())
    }

    /// Documents of some rows of every channel, the first from the first row on.
    fn documents(&self, series: &Series, rows: std::ops::Range<usize>) -> Vec<Document> {
        let width = series.channels.len();
        let values = series.rows(rows);
        let window = |start: usize, channel: usize| -> Document {
            let rows = values[start * width..].chunks(width).take(self.length);
            let values = rows.map(|row| row[channel]).collect();
            Document { text: String::new(), numbers: Some(Numbers { values, known: self.known }) }
        };
        let starts = (0..(values.len() / width + 1).saturating_sub(self.length)).step_by(self.stride);
        starts
            .flat_map(|start| (0..width).map(move |channel| (start, channel)))
            .map(|(s, c)| window(s, c))
            .collect()
    }
}

impl DatasetSpec for SeriesDocuments {
    fn describe(&self, resolve: Resolve<'_>) -> Result<Description, DataError> {
        match self.spec()?.describe(resolve)? {
            Description::Series { rows, .. } => self.check(rows).map(|()| Description::Text),
            other => Err(DataError::Modality { wanted: Modality::Series, got: other.modality() }),
        }
    }

    fn load(&self, resolve: Resolve<'_>) -> Result<Dataset, DataError> {
        let series = match self.spec()?.load(resolve)? {
            Dataset::Series(series) => series,
            other => return Err(DataError::Modality { wanted: Modality::Series, got: other.modality() }),
        };
        self.check(series.rows)?;
        let [train, validation, _] = series.rows.ranges();
        let (train, validation) = (self.documents(&series, train), self.documents(&series, validation));
        let settings = serde_json::to_string(self).unwrap_or_default();
        let settings = series.fingerprint.with("series_documents", settings);
        Ok(Dataset::Text(Corpus { train, validation, files: series.files, settings }))
    }

    fn holds_out(&self) -> bool {
        self.spec().is_ok_and(|series| series.holds_out())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_windows_of_single_channels() {
        let config = serde_json::json!({
            "series": { "kind": "waves", "channels": 2, "train_rows": 10, "validation_rows": 5 },
            "length": 4, "known": 3, "stride": 3,
        });
        let spec: SeriesDocuments = serde_json::from_value(config).unwrap();
        let resolve = |path: &hymba_plus::config::RecipePath| path.as_str().into();
        let Dataset::Series(series) = spec.spec().unwrap().load(&resolve).unwrap() else {
            panic!("no series")
        };
        let Dataset::Text(corpus) = spec.load(&resolve).unwrap() else { panic!("no documents") };
        assert_eq!((corpus.train.len(), corpus.validation.len()), (3 * 2, 2));
        let numbers = corpus.train[3].numbers.as_ref().unwrap(); // from row 3, channel 1
        let expected: Vec<f64> = (3..7).map(|row| series.rows(row..row + 1)[1]).collect();
        assert_eq!((&numbers.values, numbers.known), (&expected, 3));
        assert_eq!(spec.describe(&resolve).unwrap(), Description::Text);
        let refused = |known: usize, length: usize| {
            let spec = SeriesDocuments { length, known, ..spec.clone() };
            let (told, loaded) = (spec.describe(&resolve).unwrap_err(), spec.load(&resolve).unwrap_err());
            assert_eq!(told.to_string(), loaded.to_string());
            told.to_string()
        };
        assert!(refused(4, 4).contains("nothing to forecast"), "{}", refused(4, 4));
        assert!(refused(3, 6).contains("validation split has 5 rows"), "{}", refused(3, 6));
        let of_text = SeriesDocuments {
            series: serde_json::from_value(serde_json::json!({ "kind": "shapes" })).unwrap(),
            ..spec
        };
        let error = of_text.load(&resolve).unwrap_err().to_string();
        assert!(error.contains("the data are images, and series are wanted"), "{error}");
    }
}
