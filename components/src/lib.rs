//! The components of hymba_plus, a file each. Nothing below this crate knows them by name: they are found in the
//! registry, so a binary needs only `use components as _;` to have them all.

mod attention;
mod block_diagonal;
mod classifier;
mod convolution;
mod embedding;
mod forecaster;
mod formats;
mod fusion;
mod head;
mod kv_cache;
mod mamba;
mod mamba2;
mod mla;
mod mlp;
mod mlstm;
mod mlstm_block;
mod moe;
mod none;
mod norm;
mod patch;
mod rope;
mod series;
mod slstm;

#[cfg(test)]
hymba_plus::conformance_test!();
