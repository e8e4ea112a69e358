//! Weights in and out: folders that other libraries wrote or shall read.
//!
//! A *format* is a registered component (slot `weight_format`): it turns a foreign `config.json` into a `model` section
//! and back, and gives one table that says where each of our parameters lies in the foreign tensors. The same table, read
//! in the one direction or the other, imports and exports, so that the two cannot disagree. Nothing here names a format.
//!
//! | part | what it does |
//! |---|---|
//! | [`WeightFormat`] | what a format's file gives |
//! | [`ForeignConfig`] | reads a `config.json` and accounts for every key of it |
//! | [`Mapping`] | the table: which part of which parameter is which part of which foreign tensor |
//! | [`TensorFolder`] | one or many safetensors files, mapped into memory, every name checked |
//! | [`Foreign`] | a folder that was understood: its model section, its plan, its weights |
//! | [`export`] | writes such a folder, whole or not at all |

mod compare;
mod config;
mod error;
mod export;
mod format;
mod import;
mod json;
mod kinds;
mod mapping;
mod places;
mod source;
mod writer;

pub use config::ForeignConfig;
pub use error::{TensorProblems, WeightsError};
pub use export::{ExportOptions, Exported, TokenIds, export};
pub use format::{Signature, WeightFormat, weight_format};
pub use import::{Foreign, ImportOptions, plan_of};
pub use kinds::{dtype_of, kind_of, parse_kind};
pub use mapping::{Cut, Layout, Mapping, Part};
pub use places::{out_bias, out_weight, slice_bias, slice_weight};
pub use source::TensorFolder;
