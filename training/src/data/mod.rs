//! Data: text, images and series, and batches of them with a saved position.
//!
//! A component of the slot `dataset` gives a [`Dataset`]. Text becomes tokens in one stream ([`TokenStream`]) that
//! [`Blocks`] cuts; images and windows of series are [`Samples`], found by index, that [`Shuffled`] puts in order.

mod batch;
mod blocks;
mod catalogue;
mod corpus;
mod counter;
mod dataset;
mod error;
mod fingerprint;
mod images;
mod loader;
mod permutation;
mod published;
mod samples;
mod series;
mod series_csv;
mod series_documents;
mod shapes;
mod shuffle;
mod split;
mod stream;
mod text;
mod validation;
mod waves;

pub use batch::{Batch, IGNORE_INDEX, Recordable, Weighted};
pub(crate) use batch::{NO_SIZE, to_device};
pub use blocks::Blocks;
pub use catalogue::{DatasetName, NamedDataset};
pub use corpus::{Corpus, Document, FileRecord, Numbers};
pub use counter::Counter;
pub use dataset::{Dataset, Description, Modality};
pub use error::DataError;
pub use fingerprint::Fingerprint;
pub use images::{ImageBatch, ImageShape, ImageSource, ImageSplit, Images};
pub use loader::Loader;
pub(crate) use loader::part_size;
pub use permutation::Permutation;
pub use samples::{Samples, Shuffled, in_order};
pub use series::{Series, SeriesBatch, SplitRows, Windows};
pub use series_csv::{NamedSeries, SeriesCsv, SeriesName};
pub use series_documents::SeriesDocuments;
pub use shapes::{Shape, Shapes};
pub use split::SplitKind;
pub use stream::TokenStream;
pub use text::TextDataset;
pub use validation::ValidationBlocks;
pub use waves::Waves;
