//! Measurements of trained models, beside what simpler means achieve on the same text.

mod evaluate;
pub mod ngram;
