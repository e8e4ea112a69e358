//! Formats of foreign weights, a file each: how the models of other libraries become ours and back.

mod common;
mod decoder;
mod hymba;
mod jamba;
mod llama;
mod mamba;
mod mamba2;
mod mistral;
mod mixtral;
mod rope;
mod xlstm;
