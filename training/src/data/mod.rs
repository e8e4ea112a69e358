//! Data: documents from files, their tokens in one stream, and batches cut from it with a saved position.

mod batch;
mod blocks;
mod catalogue;
mod corpus;
mod error;
mod fingerprint;
mod loader;
mod permutation;
mod split;
mod stream;
mod text;
mod validation;

pub use batch::{Batch, IGNORE_INDEX, Weighted};
pub use blocks::Blocks;
pub use catalogue::{DatasetName, NamedDataset};
pub use corpus::{Corpus, Document, FileRecord};
pub use error::DataError;
pub use fingerprint::Fingerprint;
pub use loader::Loader;
pub(crate) use loader::part_size;
pub use permutation::Permutation;
pub use split::SplitKind;
pub use stream::TokenStream;
pub use text::TextDataset;
pub use validation::ValidationBlocks;
