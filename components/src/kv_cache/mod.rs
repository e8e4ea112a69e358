//! The memory of single tokens: what attention keeps of every token so that later ones can look at it.
//!
//! It holds any number of tensors `[batch, ..., tokens, channels]`: keys and values, or latents and rotated keys. The
//! tokens of a row stand in order. Where rows differ, the holes that padding and earlier documents leave have the
//! position -1; entries are in full precision, or the older ones in groups of codes ([`groups`]).

mod groups;

use hymba_plus::prelude::*;
use kernels::{
    attention::{Coded, Visibility},
    kv_quant::{Bits, Quantised, Shared},
};

pub(crate) use groups::Codes;

/// One tensor of the memory.
#[derive(Debug)]
pub(crate) struct PerToken {
    name: &'static str,
    /// Shape of a token's entry: `[..., channels]`.
    shape: Vec<i64>,
    /// What shares a scale when entries become codes.
    shared: Shared,
}

/// Which tensors are remembered, and how long.
#[derive(Debug)]
pub(crate) struct TokenMemory {
    tensors: Vec<PerToken>,
    window: Option<i64>,
    codes: Option<Codes>,
    apart: bool,
}

/// Every token that a call may look at: meta tokens, cached tokens, tokens of the call.
#[derive(Debug)]
pub(crate) struct Seen {
    /// The memory's tensors in its order, `[batch, ..., tokens, channels]`; without what is in `apart`.
    pub tensors: Vec<Tensor>,
    /// For each tensor, what was asked for by itself; empty where nothing was.
    pub apart: Vec<Apart>,
    /// Positions of the cached tokens, below 0 where there is none: `[batch or 1, cached]`.
    pub cached_positions: Tensor,
}

/// What stands before the other tokens of a tensor.
#[derive(Debug)]
pub(crate) struct Apart {
    /// Meta tokens, `[batch or 1, ..., tokens, channels]`.
    pub meta: Tensor,
    /// The oldest cached tokens, if there are groups of them.
    pub codes: Option<Quantised>,
}

impl PerToken {
    /// The dimension of the tokens.
    fn tokens(&self) -> i64 {
        self.shape.len() as i64
    }
}

const POSITION: &str = "position";

fn meta(name: &str) -> String {
    format!("meta_{name}")
}

impl TokenMemory {
    /// A memory of the newest `window` text tokens, or of all; the older of them as codes where that saves any.
    pub fn new(window: Option<i64>, codes: Option<Codes>) -> Self {
        let codes = codes.filter(|codes| window.is_none_or(|window| window > codes.recent));
        Self { tensors: Vec::new(), window, codes, apart: false }
    }

    /// Remembers a tensor too; a token's entry has the shape `[..., channels]`.
    #[must_use]
    pub fn with(mut self, name: &'static str, shape: &[i64], shared: Shared) -> Self {
        self.tensors.push(PerToken { name, shape: shape.to_vec(), shared });
        self
    }

    /// Meta tokens and codes are handed out by themselves, as they lie in the state: for those who can read them there.
    #[must_use]
    pub fn apart(mut self, apart: bool) -> Self {
        self.apart = apart;
        self
    }

    /// Whether older tokens become codes.
    pub fn has_codes(&self) -> bool {
        self.codes.is_some()
    }

    /// Declares the state.
    pub fn plan(&self, plan: &mut ModulePlan) {
        let growth = self.window.map_or(Growth::Unbounded, Growth::Window);
        let growth = self.codes.map_or(growth, |codes| Growth::Ungrouped(codes.groups(self.window)));
        for PerToken { name, shape, .. } in &self.tensors {
            let tokens = shape.len();
            plan.growing_state(&meta(name), shape, tokens, Growth::Prefix, StateKind::Compute);
            plan.growing_state(name, shape, tokens, growth, StateKind::Compute);
        }
        plan.growing_state(POSITION, &[], 1, growth, StateKind::Int64);
        if let Some(codes) = self.codes {
            codes.plan(plan, &self.tensors, self.window);
        }
    }

    /// What a call looks at that adds the entries `new`, and the state after it.
    ///
    /// # Errors
    /// When the state is not this memory's.
    pub fn extend(&self, state: &State, new: &[Tensor], span: &Span) -> Result<(Seen, State)> {
        let mut cached_positions = state.get(POSITION)?.shallow_clone();
        if let Some(codes) = self.codes {
            cached_positions = codes.positions(state, &cached_positions)?;
        }
        let mut tensors = Vec::with_capacity(new.len());
        let mut apart = Vec::new();
        for (tensor, new) in self.tensors.iter().zip(new) {
            let mut parts = Vec::new();
            let prefix = state.get(&meta(tensor.name))?;
            if self.apart {
                let codes = self.codes.map(|_| Codes::groups_of(state, tensor)).transpose()?.flatten();
                apart.push(Apart { meta: prefix.f_to_kind(new.kind())?, codes });
            } else {
                parts.push(prefix.shallow_clone());
                if let Some(codes) = self.codes {
                    parts.extend(codes.read(state, tensor)?);
                }
            }
            parts.push(state.get(tensor.name)?.shallow_clone());
            let wide = |part: &Tensor| -> Result<Tensor> {
                Ok(expand_batch(part, span.batch)?.f_to_kind(new.kind())?)
            };
            let mut parts = parts.iter().map(wide).collect::<Result<Vec<_>>>()?;
            parts.push(new.shallow_clone());
            tensors.push(Tensor::f_cat(&parts, tensor.tokens())?);
        }
        let seen = Seen { tensors, apart, cached_positions };
        let after = match self.codes {
            _ if span.phase == Phase::Prefix => {
                let names = self.tensors.iter().map(|tensor| meta(tensor.name));
                names
                    .zip(new)
                    .fold(state.share(), |state, (name, new)| state.with(&name, new.shallow_clone()))
            }
            _ if span.time == 0 => state.share(),
            Some(codes) => codes.after(&self.tensors, self.window, state, new, span)?,
            None => self.after(&seen, state, span)?,
        };
        Ok((seen, after))
    }

    /// The state after a call: the tokens that the running document of each row may still look at, newest last.
    fn after(&self, seen: &Seen, state: &State, span: &Span) -> Result<State> {
        let text = seen.cached_positions.size()[1] + span.time;
        let rows = if is_ragged(span) { span.batch } else { seen.cached_positions.size()[0] };
        let (old, new) = living(&seen.cached_positions, span, rows)?;
        let mut positions = Tensor::f_cat(&[old, new], 1)?;
        // Rows that end at different places: tokens that exist move to the right end, in order.
        let order = match &span.valid {
            Some(_) => Some(positions.f_ge(0)?.f_to_kind(Kind::Int)?.f_argsort_stable(true, 1, false)?),
            None => None,
        };
        if let Some(order) = &order {
            positions = positions.f_gather(1, order, false)?;
        }
        let kept = self.window.map_or(text, |window| window.min(text));
        let mut after = state.with(POSITION, newest(&positions, 1, kept)?);
        for (tensor, all) in self.tensors.iter().zip(&seen.tensors) {
            let dim = tensor.shape.len();
            let mut entries = newest(all, dim, text)?;
            if let Some(order) = &order {
                entries = reorder(&entries, order, dim)?;
            }
            after = after.with(tensor.name, newest(&entries, dim, kept)?);
        }
        Ok(after)
    }
}

impl Seen {
    /// What a producer shares.
    pub fn view(&self, names: &[&str]) -> State {
        let mut view = State::empty().with("cached_positions", self.cached_positions.shallow_clone());
        for (index, name) in names.iter().enumerate() {
            if let Some(tensor) = self.tensors.get(index) {
                view = view.with(name, tensor.shallow_clone());
            }
            let Some(apart) = self.apart.get(index) else { continue };
            view = view.with(&meta(name), apart.meta.shallow_clone());
            if let Some(codes) = &apart.codes {
                for (name, part) in groups::names(name).iter().zip([&codes.codes, &codes.scale, &codes.zero])
                {
                    view = view.with(name, part.shallow_clone());
                }
            }
        }
        view
    }

    /// What a producer shared.
    ///
    /// # Errors
    /// When it shared something else.
    pub fn from_view(view: &State, names: &[&str]) -> Result<Self> {
        let copy = |name: &str| -> Result<Tensor> { Ok(view.get(name)?.shallow_clone()) };
        let tensors = names.iter().map(|name| copy(name)).collect::<Result<_>>()?;
        let mut apart = Vec::new();
        for name in names {
            let Ok(meta) = copy(&meta(name)) else { continue };
            let [codes, scale, zero] = groups::names(name).map(|part| copy(&part).ok());
            let codes = match (codes, scale, zero) {
                (Some(codes), Some(scale), Some(zero)) => Some(Quantised { codes, scale, zero }),
                _ => None,
            };
            apart.push(Apart { meta, codes });
        }
        Ok(Self { tensors, apart, cached_positions: copy("cached_positions")? })
    }

    /// Tokens to look at, meta tokens included.
    pub fn len(&self) -> i64 {
        let tokens = |tensor: &Tensor| tensor.size()[tensor.dim() - 2];
        let apart = self.apart.first().map_or(0, |apart| {
            let coded = apart.codes.as_ref().map_or(0, |codes| {
                let size = codes.codes.size();
                size[size.len() - 3] * size[size.len() - 2]
            });
            tokens(&apart.meta) + coded
        });
        self.tensors.first().map_or(0, tokens) + apart
    }

    /// Keys and values of meta tokens, where they are by themselves.
    pub fn apart_meta(&self) -> Option<[&Tensor; 2]> {
        match self.apart.as_slice() {
            [key, value] => Some([&key.meta, &value.meta]),
            _ => None,
        }
    }

    /// Keys, with a scale for each channel, and values in codes, where they are by themselves.
    pub fn apart_codes(&self) -> Option<Coded<'_>> {
        let [Apart { codes: Some(key), .. }, Apart { codes: Some(value), .. }] = self.apart.as_slice() else {
            return None;
        };
        let bits = if key.codes.size().last() == key.scale.size().last() { Bits::Eight } else { Bits::Four };
        Some(Coded { key, value, bits })
    }

    /// Who sees whom through a window.
    pub fn visibility<'a>(&'a self, window: Option<i64>, span: &'a Span) -> Visibility<'a> {
        let cached = self.cached_positions.size()[1];
        Visibility {
            meta: self.len() - cached - span.time,
            cached,
            window: if span.phase == Phase::Prefix { None } else { window },
            cached_positions: &self.cached_positions,
            positions: &span.positions,
            valid: span.valid.as_ref(),
            document: span.document.as_ref(),
            uniform: span.uniform && self.cached_positions.size()[0] == 1,
        }
    }
}

/// Whether the rows of a call may come to differ in what they remember.
fn is_ragged(span: &Span) -> bool {
    span.valid.is_some() || span.document.is_some()
}

/// Positions of the cached tokens and of the call's, `[rows, tokens]`, -1 for all that is not of the document that runs
/// in its row when the call ends. Each row has at least one token of the call, padding or not.
fn living(cached: &Tensor, span: &Span, rows: i64) -> Result<(Tensor, Tensor)> {
    let rows = rows.max(span.positions.size()[0]);
    let (mut old, mut new) = (expand_batch(cached, rows)?, expand_batch(&span.positions, rows)?);
    let gone = Tensor::f_full([1], -1, (Kind::Int64, new.device()))?;
    if let Some(document) = &span.document {
        let last = document.f_narrow(1, span.time - 1, 1)?;
        new = new.f_where_self(&document.f_eq_tensor(&last)?, &gone)?;
        old = old.f_where_self(&last.f_eq(0)?, &gone)?;
    }
    if let Some(valid) = &span.valid {
        new = new.f_where_self(valid, &gone)?;
    }
    Ok((old, new))
}

/// The last `n` of a dimension.
fn newest(tensor: &Tensor, dim: usize, n: i64) -> Result<Tensor> {
    Ok(tensor.f_narrow(dim as i64, tensor.size()[dim] - n, n)?)
}

/// Each row's slices of dimension `dim`, in the order `[batch, n]` of its own.
fn reorder(tensor: &Tensor, order: &Tensor, dim: usize) -> Result<Tensor> {
    let (mut shape, mut size) = (vec![1; tensor.dim()], tensor.size());
    (shape[0], shape[dim]) = (order.size()[0], order.size()[1]);
    size[dim] = order.size()[1];
    Ok(tensor.f_gather(dim as i64, &order.f_view(shape.as_slice())?.f_expand(size, false)?, false)?)
}
