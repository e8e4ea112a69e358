//! The law of states: any split into calls, any batch, any padding, any packing is one plain call, in outputs and in
//! every gradient.

use tch::{Kind, Tensor};
use torch_bridge::Result;

use super::{META, long};
use crate::conformance::{
    harness::Spec,
    judge::Judge,
    layout::{Layout, chunks, packed, padded},
    noise::Noise,
    run::{Run, outputs},
};

/// Longer than the chunks of chunked kernels.
const VERY_LONG: usize = 140;

/// Sequences in calls of every kind.
pub(super) fn splits(spec: &Spec, noise: &mut Noise) -> Vec<Layout> {
    let long = long(spec);
    let mut all = Vec::new();
    for meta in [0, META] {
        all.push(Layout::plain(meta, 1, &[1, 1]));
        all.push(Layout::plain(meta, 1, &[2, 0, 2]));
        all.push(Layout::plain(meta, 2, &vec![1; long]));
        all.push(Layout::plain(meta, 1, &[long / 2, 1, long / 2]));
        for _ in 0..3 {
            all.push(Layout::plain(meta, 1 + noise.below(2), &chunks(noise, long)));
        }
        all.push(Layout::plain(meta, 1, &chunks(noise, VERY_LONG)));
    }
    all
}

pub(super) fn split(spec: &Spec, layout: &Layout, judge: &mut Judge) -> Result<()> {
    let subject = spec.subject(layout.meta_tokens, Kind::Double)?;
    let streams = subject.streams(layout.batch(), layout.longest(), spec.seed)?;
    let initial = subject.initial(&streams)?;
    let got = outputs(&subject, &streams, &initial, layout)?;
    let expected = outputs(&subject, &streams, &initial, &layout.merged())?;
    judge.rows_and_gradients(&subject, &streams, &got, &expected)
}

/// Several rows at once.
pub(super) fn batches(spec: &Spec, noise: &mut Noise) -> Vec<Layout> {
    let long = long(spec);
    let mut all = Vec::new();
    for meta in [0, META] {
        all.push(Layout::plain(meta, 2, &[1]));
        all.push(Layout::plain(meta, 2, &[long]));
        all.push(Layout::plain(meta, 5, &[3, 1, 1]));
        all.push(Layout::plain(meta, 3, &chunks(noise, long)));
    }
    all
}

pub(super) fn batch(spec: &Spec, layout: &Layout, judge: &mut Judge) -> Result<()> {
    against_rows_alone(spec, layout, &|row| layout.row(row), judge)
}

/// Rows with padding on any side, in one call and over several turns.
pub(super) fn paddings(spec: &Spec, noise: &mut Noise) -> Vec<Layout> {
    let mut all = Vec::new();
    for meta in [0, META] {
        for calls in [".t", "t.", "t.t"] {
            all.push(Layout::written(meta, &[calls, "tt"]));
        }
        all.push(Layout::written(meta, &["..tt tttt", "ttt .t.", ".. t.", "t t"]));
        all.push(Layout::written(meta, &["ttt ttt ..t", "... .t. ttt", "tt tt tt"]));
        for _ in 0..3 {
            let calls = chunks(noise, long(spec));
            let batch = 1 + noise.below(3);
            all.push(padded(noise, meta, batch, &calls));
        }
        // Padding and documents at once.
        let calls = chunks(noise, long(spec));
        let layout = padded(noise, meta, 2, &calls);
        all.push(packed(noise, layout, 6));
    }
    all
}

pub(super) fn padding(spec: &Spec, layout: &Layout, judge: &mut Judge) -> Result<()> {
    against_rows_alone(spec, layout, &|row| layout.row(row).dense(), judge)
}

/// Rows of documents, in one call and over several.
pub(super) fn packings(spec: &Spec, noise: &mut Noise) -> Vec<Layout> {
    let long = long(spec);
    let mut all = Vec::new();
    for meta in [META, 0] {
        all.push(Layout::written(meta, &["td"]));
        all.push(Layout::written(meta, &["tt", "dt"]));
        all.push(Layout::written(meta, &["tdtt tttd", "t d"]));
        for _ in 0..2 {
            let layout = Layout::plain(meta, 2, &[long]);
            all.push(packed(noise, layout, 5));
            let layout = Layout::plain(meta, 2, &chunks(noise, long));
            all.push(packed(noise, layout, 4));
        }
        let layout = Layout::plain(meta, 1, &[VERY_LONG]);
        all.push(packed(noise, layout, 40));
    }
    all
}

pub(super) fn packing(spec: &Spec, layout: &Layout, judge: &mut Judge) -> Result<()> {
    let subject = spec.subject(layout.meta_tokens, Kind::Double)?;
    let streams = subject.streams(layout.batch(), layout.longest(), spec.seed)?;
    let initial = subject.initial(&streams)?;
    let got = outputs(&subject, &streams, &initial, layout)?;
    let mut expected = Vec::new();
    for row in 0..layout.batch() {
        let (alone, mut documents, mut offset) = (streams.rows(&[row])?, Vec::new(), 0);
        for length in layout.documents(row) {
            let mut run = Run::new(&subject, &alone, &initial, 1, offset);
            run.layout(&Layout::plain(layout.meta_tokens, 1, &[length]))?;
            documents.extend(run.outputs()?);
            offset += length;
        }
        expected.push(Tensor::f_cat(&documents, 0)?);
    }
    judge.rows_and_gradients(&subject, &streams, &got, &expected)
}

/// A layout against each of its rows alone, in a layout of its own.
fn against_rows_alone(
    spec: &Spec,
    layout: &Layout,
    alone: &dyn Fn(usize) -> Layout,
    judge: &mut Judge,
) -> Result<()> {
    let subject = spec.subject(layout.meta_tokens, Kind::Double)?;
    let streams = subject.streams(layout.batch(), layout.longest(), spec.seed)?;
    let initial = subject.initial(&streams)?;
    let got = outputs(&subject, &streams, &initial, layout)?;
    let mut expected = Vec::new();
    for row in 0..layout.batch() {
        expected.extend(outputs(&subject, &streams.rows(&[row])?, &initial, &alone(row))?);
    }
    judge.rows_and_gradients(&subject, &streams, &got, &expected)
}
