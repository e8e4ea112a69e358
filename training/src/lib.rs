//! Training: tokenizers, data, optimizers, schedules, the loop, checkpoints and telemetry.
//!
//! This crate trains anything that implements [`Task`]: parameters and a loss. What a stage means (pretraining,
//! preference pairs, ...) is the business of the crate `recipes`; what a model is made of, that of `components`.
//!
//! | module | what it has |
//! |---|---|
//! | [`slot`] | the slots `tokenizer`, `dataset`, `optimizer`, `schedule` and what fills them |
//! | [`tokenizer`] | byte-level BPE, unigram, bytes, a `tokenizer.json` |
//! | [`data`] | text, images and series; shuffled and sequential batches with a saved position |
//! | [`optimizer`], [`schedule`] | AdamW; cosine, WSD, linear, constant |
//! | [`checkpoint`] | directories of safetensors and JSON, atomic, checksummed |
//! | [`run_dir`], [`run`] | what a run leaves behind, and the run itself |
//! | [`train_loop`] | the loop that stages hand their [`Task`] to |
//! | [`profile`] | what a step costs, operation by operation |
//! | [`telemetry`], [`signals`] | metrics, TensorBoard, progress; Ctrl-C |
//!
//! The rule above all: a run that was killed and resumed ends equal, bit for bit, to one that was not.

pub mod checkpoint;
pub mod data;
pub mod environment;
pub mod error;
mod files;
pub mod loss;
pub mod optimizer;
pub mod profile;
pub mod run;
pub mod run_data;
pub mod run_dir;
pub mod schedule;
pub mod signals;
pub mod slot;
pub mod task;
pub mod telemetry;
pub mod text_data;
pub mod tokenizer;
pub mod train_loop;
pub mod trainer;

pub use error::{TaskError, TrainError};
pub use files::digest as file_digest;
pub use task::{Loss, Task};
pub use train_loop::train;

/// What a stage's file needs.
pub mod prelude {
    pub use crate::{
        checkpoint::{Checkpoint, CheckpointStore, TensorFile},
        data::{
            Batch, Blocks, Corpus, DataError, Dataset, Description, Document, Fingerprint, IGNORE_INDEX,
            Loader, Modality, Samples, Shuffled, TokenStream, ValidationBlocks, Weighted, in_order,
        },
        error::{TaskError, TrainError},
        loss::cross_entropy_sum,
        run::{Run, RunOptions},
        run_data::RunData,
        slot::{
            DatasetSpec, OptimizerSpec, Resolve, ScheduleSpec, TokenizerSpec, dataset, optimizer, schedule,
            tokenizer,
        },
        task::{Loss, Task},
        telemetry::{Console, MetricRecord},
        text_data::TextData,
        tokenizer::Tokenizer,
        train_loop::{LoopConfig, Outcome, train},
        trainer::{DataSection, Precision, TokenizerSection, TrainerConfig},
    };
}
