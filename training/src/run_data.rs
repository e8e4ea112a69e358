//! The data of a run, whatever it is made of.

use hymba_plus::config::Recipe;

use crate::{
    data::{DataError, Dataset, Images, Modality, Series},
    error::TrainError,
    run::Run,
    text_data::TextData,
    trainer::DataSection,
};

/// What the section `data` of a recipe gives, ready for stages.
#[derive(Debug, Clone)]
pub enum RunData {
    /// Text as tokens.
    Text(Box<TextData>),
    /// Images with a class each.
    Images(Images),
    /// A time series.
    Series(Series),
}

impl RunData {
    /// Reads the section `data`, and for text the section `tokenizer`, and leaves the manifest of the files (and the
    /// tokenizer) in the run directory.
    ///
    /// # Errors
    /// When a section is missing, or data or tokenizer fail.
    pub fn prepare(run: &Run, recipe: &Recipe) -> Result<Self, TrainError> {
        let data: DataSection = recipe.require("to know what to train on")?;
        let dataset = data.0.make()?.load(&|path| recipe.path(path))?;
        Ok(match dataset {
            Dataset::Text(corpus) => Self::Text(Box::new(TextData::prepare(run, recipe, corpus)?)),
            Dataset::Images(images) => {
                run.directory().write_data_manifest(&[])?;
                Self::Images(images)
            }
            Dataset::Series(series) => {
                run.directory().write_data_manifest(&series.files)?;
                Self::Series(series)
            }
        })
    }

    /// What it is made of.
    pub fn modality(&self) -> Modality {
        match self {
            Self::Text(_) => Modality::Text,
            Self::Images(_) => Modality::Images,
            Self::Series(_) => Modality::Series,
        }
    }

    /// The text.
    ///
    /// # Errors
    /// When it is something else.
    pub fn text(&self) -> Result<&TextData, DataError> {
        match self {
            Self::Text(text) => Ok(text),
            _ => Err(self.is_not(Modality::Text)),
        }
    }

    /// The images.
    ///
    /// # Errors
    /// When it is something else.
    pub fn images(&self) -> Result<&Images, DataError> {
        match self {
            Self::Images(images) => Ok(images),
            _ => Err(self.is_not(Modality::Images)),
        }
    }

    /// The series.
    ///
    /// # Errors
    /// When it is something else.
    pub fn series(&self) -> Result<&Series, DataError> {
        match self {
            Self::Series(series) => Ok(series),
            _ => Err(self.is_not(Modality::Series)),
        }
    }

    fn is_not(&self, wanted: Modality) -> DataError {
        DataError::Modality { wanted, got: self.modality() }
    }
}
