//! What a data set may give.

use std::fmt;

use super::{Corpus, ImageShape, Images, Series, SplitRows};

/// What data is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Modality {
    /// Documents, which a tokenizer turns into tokens.
    Text,
    /// Images with a class each.
    Images,
    /// Time series.
    Series,
}

impl fmt::Display for Modality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Images => "images",
            Self::Series => "series",
        })
    }
}

/// What a data set gives, as it is known before it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Description {
    /// Documents.
    Text,
    /// Images.
    Images {
        /// Shape of each.
        shape: ImageShape,
        /// Number of classes.
        classes: i64,
        /// Images to measure on in the end.
        test: u64,
    },
    /// A time series.
    Series {
        /// Channels of each row.
        channels: i64,
        /// Rows of its splits.
        rows: SplitRows,
    },
}

impl Description {
    /// What it is made of.
    pub fn modality(self) -> Modality {
        match self {
            Self::Text => Modality::Text,
            Self::Images { .. } => Modality::Images,
            Self::Series { .. } => Modality::Series,
        }
    }
}

/// What a data set gives.
#[derive(Debug, Clone)]
pub enum Dataset {
    /// Documents.
    Text(Corpus),
    /// Images with a class each.
    Images(Images),
    /// A time series.
    Series(Series),
}

impl Dataset {
    /// What it is made of.
    pub fn modality(&self) -> Modality {
        match self {
            Self::Text(_) => Modality::Text,
            Self::Images(_) => Modality::Images,
            Self::Series(_) => Modality::Series,
        }
    }
}
