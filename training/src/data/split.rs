//! Cutting documents into training and validation.

use hymba_plus::component_config;

use super::{DataError, Document};

/// How the validation split is cut.
#[component_config]
pub enum SplitKind {
    /// The last part of the whole text, by bytes; a document on the border is cut in two.
    Tail,
    /// The last documents, whole.
    Documents,
}

/// Training and validation documents.
pub(super) type Splits = (Vec<Document>, Vec<Document>);

/// Cuts off the last `fraction` for validation; 0 keeps everything for training.
pub(super) fn split(documents: Vec<Document>, fraction: f64, kind: SplitKind) -> Result<Splits, DataError> {
    if fraction == 0.0 {
        return Ok((documents, Vec::new()));
    }
    match kind {
        SplitKind::Tail => tail(documents, fraction),
        SplitKind::Documents => whole_documents(documents, fraction),
    }
}

fn tail(documents: Vec<Document>, fraction: f64) -> Result<Splits, DataError> {
    let total: usize = documents.iter().map(|document| document.text.len()).sum();
    let mut left = (total as f64 * (1.0 - fraction)).floor() as usize;
    let (mut train, mut validation) = (Vec::new(), Vec::new());
    for mut document in documents {
        let length = document.text.len();
        if left >= length {
            train.push(document);
        } else if left == 0 {
            validation.push(document);
        } else {
            let border = (0..=left).rev().find(|&at| document.text.is_char_boundary(at)).unwrap_or(0);
            let rest = document.text.split_off(border);
            train.extend((border > 0).then_some(document));
            validation.push(Document::of_text(rest));
        }
        left = left.saturating_sub(length);
    }
    refuse_empty(
        &train,
        &validation,
        fraction,
        format!("{total} bytes"),
        "use more text or another fraction",
    )?;
    Ok((train, validation))
}

fn whole_documents(mut documents: Vec<Document>, fraction: f64) -> Result<Splits, DataError> {
    let total = documents.len();
    let held_out = (total as f64 * fraction).round() as usize;
    let validation = documents.split_off(total - held_out.min(total));
    let help = "use `split: tail`, a `document_separator`, or another fraction";
    refuse_empty(&documents, &validation, fraction, format!("{total} documents"), help)?;
    Ok((documents, validation))
}

fn refuse_empty(
    train: &[Document],
    validation: &[Document],
    fraction: f64,
    what: String,
    help: &'static str,
) -> Result<(), DataError> {
    let empty = match (train.is_empty(), validation.is_empty()) {
        (true, _) => "training",
        (_, true) => "validation",
        _ => return Ok(()),
    };
    Err(DataError::EmptySplit { fraction, what, split: empty, help })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(texts: &[&str]) -> Vec<Document> {
        texts.iter().map(|text| Document::of_text((*text).to_owned())).collect()
    }

    #[test]
    fn the_tail_is_cut_by_bytes_at_a_character() {
        let (train, validation) = split(documents(&["0123456789"]), 0.1, SplitKind::Tail).unwrap();
        assert_eq!((train, validation), (documents(&["012345678"]), documents(&["9"])));
        // 0.25 of 8 bytes would cut `é` in two: it goes to validation whole.
        let (train, validation) = split(documents(&["abcdeéf"]), 0.25, SplitKind::Tail).unwrap();
        assert_eq!((train, validation), (documents(&["abcde"]), documents(&["éf"])));
        let (train, validation) = split(documents(&["aa", "bb", "cc"]), 0.5, SplitKind::Tail).unwrap();
        assert_eq!((train, validation), (documents(&["aa", "b"]), documents(&["b", "cc"])));
    }

    #[test]
    fn documents_stay_whole() {
        let (train, validation) = split(documents(&["a", "b", "c"]), 0.34, SplitKind::Documents).unwrap();
        assert_eq!((train, validation), (documents(&["a", "b"]), documents(&["c"])));
        let error = split(documents(&["a"]), 0.1, SplitKind::Documents).unwrap_err().to_string();
        assert!(error.contains("validation split empty") && error.contains("split: tail"), "{error}");
    }

    #[test]
    fn zero_keeps_everything() {
        assert_eq!(split(documents(&["a"]), 0.0, SplitKind::Tail).unwrap(), (documents(&["a"]), vec![]));
        assert!(split(documents(&["a"]), 0.5, SplitKind::Tail).is_err());
    }
}
