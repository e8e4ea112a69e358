//! Attention on a GPU against its definition on the CPU in f64: the output and every gradient. Without a GPU the tests
//! say so and do nothing.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

mod common;

use common::gpu::{GPU, there_is_a_gpu};
use common::{Noise, Outcome, differentiated, distance, second_outcome};
use kernels::attention::{Attention, Coded, Visibility, attention, definition};
use kernels::kv_quant::{Bits, Quantised, Shared, quantise};
use tch::{Device, Kind, Tensor};
use torch_bridge::Result;

const INT: (Kind, Device) = (Kind::Int64, Device::Cpu);

#[derive(Clone, Copy, Debug)]
struct Case {
    batch: i64,
    time: i64,
    /// Of queries, of keys.
    heads: [i64; 2],
    /// Of keys, of values.
    widths: [i64; 2],
    meta: i64,
    cached: i64,
    window: Option<i64>,
    /// Meta keys come by themselves, one row for the whole batch, or one for each.
    apart: Option<bool>,
    /// One in so many tokens begins a document.
    documents: Option<usize>,
    padding: bool,
    /// Rows have cached different numbers of tokens.
    uneven: bool,
}

const PLAIN: Case = Case {
    batch: 2,
    time: 130,
    heads: [4, 2],
    widths: [64, 128],
    meta: 0,
    cached: 0,
    window: None,
    apart: None,
    documents: None,
    padding: false,
    uneven: false,
};

struct Made {
    inputs: Vec<(&'static str, Tensor)>,
    positions: Tensor,
    cached_positions: Tensor,
    valid: Option<Tensor>,
    document: Option<Tensor>,
}

impl Case {
    fn make(&self) -> Made {
        let Self { batch, time, heads, widths, meta, cached, .. } = *self;
        let mut noise = Noise((batch * 31 + time * 7 + heads[0] + widths[0] * 3 + meta + cached) as u64);
        let front = if self.apart.is_some() { 0 } else { meta };
        let keys = front + cached + time;
        let mut inputs = vec![
            // As a projection lays them out.
            ("q", noise.tensor(&[batch, time, heads[0], widths[0]]).transpose(1, 2)),
            ("k", noise.tensor(&[batch, heads[1], keys, widths[0]])),
            ("v", noise.tensor(&[batch, heads[1], keys, widths[1]])),
        ];
        if let Some(shared) = self.apart {
            let rows = if shared { 1 } else { batch };
            inputs.push(("meta_k", noise.tensor(&[rows, heads[1], meta, widths[0]])));
            inputs.push(("meta_v", noise.tensor(&[rows, heads[1], meta, widths[1]])));
        }
        let lengths: Vec<i64> = (0..batch)
            .map(|_| if self.uneven { noise.below(cached as usize + 1) as i64 } else { cached })
            .collect();
        let lengths = Tensor::from_slice(&lengths).unsqueeze(1);
        let places = Tensor::arange(cached, INT).unsqueeze(0) - (cached - &lengths);
        let cached_positions = places.clamp_min(-1);
        let positions = lengths + Tensor::arange(time, INT).unsqueeze(0);
        let document = self
            .documents
            .map(|one_in| noise.mask(&[batch, time], one_in).to_kind(Kind::Int64).cumsum(1, Kind::Int64));
        let valid = self.padding.then(|| {
            let ends: Vec<i64> = (0..batch).map(|_| 1 + noise.below(time as usize) as i64).collect();
            Tensor::arange(time, INT).unsqueeze(0).lt_tensor(&Tensor::from_slice(&ends).unsqueeze(1))
        });
        Made { inputs, positions, cached_positions, valid, document }
    }

    fn ragged(&self) -> bool {
        self.documents.is_some() || self.padding || self.uneven
    }

    fn run(
        &self,
        made: &Made,
        tensors: &[Tensor],
        operation: fn(&Attention<'_>) -> Result<Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let there = |x: &Tensor| x.to_device(tensors[0].device());
        let (positions, cached_positions) = (there(&made.positions), there(&made.cached_positions));
        let (valid, document) = (made.valid.as_ref().map(there), made.document.as_ref().map(there));
        let visibility = Visibility {
            meta: self.meta,
            cached: self.cached,
            window: self.window,
            cached_positions: &cached_positions,
            positions: &positions,
            valid: valid.as_ref(),
            document: document.as_ref(),
            uniform: !self.ragged(),
        };
        let meta = if let [_, _, _, key, value] = tensors { Some([key, value]) } else { None };
        let y = operation(&Attention {
            query: &tensors[0],
            key: &tensors[1],
            value: &tensors[2],
            meta,
            codes: None,
            visibility: &visibility,
            scale: None,
            dropout: 0.0,
        })?;
        // What padding queries see is nobody's business.
        let y = match &valid {
            Some(valid) => y * valid.unsqueeze(1).unsqueeze(3),
            None => y,
        };
        Ok((y.shallow_clone(), y.sum(Kind::Double) * 0.0))
    }

    fn outcome(
        &self,
        made: &Made,
        device: Device,
        kind: Kind,
        operation: fn(&Attention<'_>) -> Result<Tensor>,
    ) -> Outcome {
        let inputs: Vec<_> = made
            .inputs
            .iter()
            .map(|(name, x)| (*name, x.to_kind(Kind::BFloat16).to_kind(kind).to_device(device)))
            .collect();
        differentiated(&inputs, Kind::BFloat16, &|tensors| self.run(made, tensors, operation))
    }

    fn check(&self) {
        let made = self.make();
        let truth = self.outcome(&made, Device::Cpu, Kind::Double, definition);
        let ours = self.outcome(&made, GPU, Kind::BFloat16, attention);
        ours.assert_finite(&format!("{self:?}"));
        for ((name, x), y) in ours.names.iter().zip(&ours.values).zip(&truth.values) {
            let distance = distance(x, y);
            assert!(distance <= 5e-3, "{self:?}: {name} is off by {distance:e}");
        }
        self.outcome(&made, GPU, Kind::BFloat16, attention).assert_equal(&ours, &format!("again, {self:?}"));
    }
}

#[test]
fn all_widths_of_heads() {
    if !there_is_a_gpu() {
        return;
    }
    for widths in
        [[64, 128], [64, 64], [128, 128], [128, 64], [16, 16], [32, 32], [48, 80], [96, 96], [112, 16]]
    {
        Case { widths, meta: 37, window: Some(70), time: 200, ..PLAIN }.check();
        Case { widths, cached: 77, window: Some(90), heads: [5, 5], ..PLAIN }.check();
        Case {
            widths,
            batch: 3,
            meta: 20,
            cached: 40,
            documents: Some(30),
            padding: true,
            uneven: true,
            ..PLAIN
        }
        .check();
    }
}

#[test]
fn windows_meta_keys_and_calls_of_any_length() {
    if !there_is_a_gpu() {
        return;
    }
    for time in [2, 3, 63, 64, 65, 127, 129, 333] {
        for window in [None, Some(1), Some(64), Some(100)] {
            // A few rows, so that few numbers do not decide.
            Case { batch: 1 + 60 / time, time, window, meta: 5, ..PLAIN }.check();
            Case { batch: 1 + 60 / time, time, window, cached: 33, ..PLAIN }.check();
        }
    }
    for shared in [true, false] {
        Case {
            batch: 3,
            time: 515,
            heads: [10, 2],
            meta: 128,
            window: Some(129),
            apart: Some(shared),
            ..PLAIN
        }
        .check();
        Case { batch: 3, time: 70, meta: 200, apart: Some(shared), cached: 20, uneven: true, ..PLAIN }
            .check();
    }
    Case { time: 1500, heads: [5, 1], meta: 128, window: Some(1024), apart: Some(true), ..PLAIN }.check();
}

#[test]
fn rows_that_differ() {
    if !there_is_a_gpu() {
        return;
    }
    for (documents, padding, uneven) in [
        (Some(50), false, false),
        (None, true, false),
        (None, false, true),
        (Some(50), true, true),
        (Some(1), false, false),
    ] {
        for window in [None, Some(150)] {
            let case = Case { batch: 3, heads: [5, 1], documents, padding, uneven, window, ..PLAIN };
            Case { time: 400, meta: 33, cached: 100, ..case }.check();
            Case { time: 65, cached: 10, widths: [64, 64], ..case }.check();
        }
    }
    Case { time: 1500, heads: [5, 1], window: Some(300), documents: Some(200), ..PLAIN }.check();
}

#[test]
fn gradients_of_gradients_are_the_definitions() {
    if !there_is_a_gpu() {
        return;
    }
    let case = Case { time: 12, meta: 3, window: Some(5), ..PLAIN };
    let made = case.make();
    let second = |device, kind, operation| {
        let inputs: Vec<_> = made
            .inputs
            .iter()
            .map(|(name, x)| (*name, x.to_kind(Kind::BFloat16).to_kind(kind).to_device(device)))
            .collect();
        second_outcome(&inputs, &|tensors| case.run(&made, tensors, operation))
    };
    // libtorch's own attention has no second derivative on a GPU, so there is no definition to compare with but the CPU's.
    let truth = second(Device::Cpu, Kind::Double, definition);
    let ours = second(GPU, Kind::BFloat16, attention);
    for ((name, x), y) in ours.names.iter().zip(&ours.values).zip(&truth.values) {
        let distance = distance(x, y);
        assert!(distance <= 3e-2, "{name} is off by {distance:e}");
    }
}

/// One token for each row, without gradients: the kernels of decoding.
#[test]
fn one_token_over_everything_that_is_cached() {
    if !there_is_a_gpu() {
        return;
    }
    for (batch, heads, widths) in [
        (1, [25, 5], [64, 128]),
        (3, [8, 8], [64, 64]),
        (2, [20, 1], [128, 128]),
        (2, [3, 1], [48, 16]),
        (65, [10, 2], [64, 128]),
    ] {
        for (cached, window) in [(0, None), (5, None), (300, Some(100)), (2000, None), (1024, Some(1024))] {
            for uneven in [false, true] {
                for codes in [None, Some((Bits::Eight, 16, 3)), Some((Bits::Four, 5, 1))] {
                    for apart in [None, Some(true), Some(false)] {
                        if codes.is_some() && apart.is_none() {
                            continue;
                        }
                        let case = Case { time: 1, batch, heads, widths, cached, window, uneven, ..PLAIN };
                        let meta = if apart.is_some() || uneven { 33 } else { 0 };
                        Case { meta, apart, ..case }.check_decoding(codes);
                    }
                }
            }
        }
    }
}

impl Case {
    /// `codes`: bits, tokens of a group, groups.
    fn check_decoding(&self, codes: Option<(Bits, i64, i64)>) {
        let codes = codes.filter(|(_, size, groups)| size * groups <= self.cached);
        let made = self.make();
        let rounded: Vec<Tensor> = made.inputs.iter().map(|(_, x)| x.to_kind(Kind::BFloat16)).collect();
        let coded = codes.map_or(0, |(_, size, groups)| size * groups);
        let keep = self.cached + 1 - coded + if self.apart.is_some() { 0 } else { self.meta };
        let quantised = |x: &Tensor, shared| {
            let (bits, size, groups) = codes.unwrap();
            // A slice of more groups, as a window leaves it.
            let x = x.narrow(2, 0, coded).unflatten(2, [groups, size]);
            let x = Tensor::cat(&[&x.narrow(2, 0, 1), &x], 2);
            let Quantised { codes, scale, zero } = quantise(&x, bits, shared).unwrap();
            [codes, scale, zero]
        };
        let (k, v) = (&rounded[1], &rounded[2]);
        let groups = codes.map(|_| [quantised(k, Shared::ByChannel), quantised(v, Shared::ByToken)]);
        let run = |device, kind: Kind, operation: fn(&Attention<'_>) -> Result<Tensor>| {
            let there = |x: &Tensor| {
                x.to_device(device).to_kind(if x.kind() == Kind::Uint8 { Kind::Uint8 } else { kind })
            };
            let plain = |x: &Tensor| x.to_device(device);
            let newest = |x: &Tensor| {
                let x = there(x);
                x.narrow(2, 1, x.size()[2] - 1)
            };
            let groups = groups.as_ref().map(|both| {
                both.each_ref().map(|[codes, scale, zero]| Quantised {
                    codes: newest(codes),
                    scale: newest(scale),
                    zero: newest(zero),
                })
            });
            let meta: Vec<Tensor> = rounded[3..].iter().map(there).collect();
            let (positions, cached_positions) = (plain(&made.positions), plain(&made.cached_positions));
            let visibility = Visibility {
                meta: self.meta,
                cached: self.cached,
                window: self.window,
                cached_positions: &cached_positions,
                positions: &positions,
                valid: None,
                document: None,
                uniform: !self.ragged(),
            };
            let y = operation(&Attention {
                query: &there(&rounded[0]),
                key: &there(k).narrow(2, coded, keep),
                value: &there(v).narrow(2, coded, keep),
                meta: if let [key, value] = meta.as_slice() { Some([key, value]) } else { None },
                codes: groups.as_ref().zip(codes).map(|([key, value], (bits, _, _))| Coded {
                    key,
                    value,
                    bits,
                }),
                visibility: &visibility,
                scale: None,
                dropout: 0.0,
            });
            y.unwrap().to_device(Device::Cpu).to_kind(Kind::Double)
        };
        let truth = run(Device::Cpu, Kind::Double, definition);
        let ours = run(GPU, Kind::BFloat16, attention);
        let distance = distance(&ours, &truth);
        assert!(distance <= 5e-3, "{self:?}, {codes:?}: off by {distance:e}");
        assert!(run(GPU, Kind::BFloat16, attention).equal(&ours), "again, {self:?}");
    }
}
