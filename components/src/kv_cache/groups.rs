//! Entries of older tokens as codes, in groups (after Liu et al. 2024, KIVI, arXiv 2402.02750).
//!
//! A document's first `group` text tokens are its first group, the next its second, and so on, in every row by the row's
//! own count: where calls begin and end, and what stands beside a row, changes no group. A group becomes codes at the
//! end of the call after which at least `recent` tokens follow it; a call itself sees its own tokens as they are.
//!
//! Shapes are known without asking the device. While all rows are alike, there are exactly as many groups as planned.
//! Rows that differ have room for as many groups as the longest row could have, newest at the right, and for `group - 1`
//! more ungrouped tokens, since their borders lie anywhere.

use hymba_plus::prelude::*;
use kernels::kv_quant::{Bits, Quantised, Shared, dequantise, quantise};

use super::{POSITION, PerToken, is_ragged, living, newest, reorder};

/// How older tokens become codes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Codes {
    pub bits: Bits,
    /// Tokens of a group.
    pub group: i64,
    /// The newest tokens, these many at least, stay as they are.
    pub recent: i64,
}

/// Position of the first token of each group, -1 where there is no group: `[batch or 1, groups]`.
const GROUP_POSITION: &str = "group_position";

/// `k_codes`, `k_scale`, `k_zero`: what groups of `k` consist of.
pub(super) fn names(name: &str) -> [String; 3] {
    ["codes", "scale", "zero"].map(|part| format!("{name}_{part}"))
}

impl Codes {
    pub fn groups(self, window: Option<i64>) -> Groups {
        Groups { size: self.group, recent: self.recent, window }
    }

    pub fn plan(self, plan: &mut ModulePlan, tensors: &[PerToken], window: Option<i64>) {
        let growth = Growth::Groups(self.groups(window));
        for tensor in tensors {
            let (outer, channels) = tensor.shape.split_at(tensor.shape.len() - 1);
            let scales = match tensor.shared {
                Shared::ByChannel => channels[0],
                Shared::ByToken => self.group,
            };
            let packed = [outer, &[self.group, channels[0] / self.bits.per_byte()]].concat();
            let scales = [outer, &[scales]].concat();
            let ([codes, scale, zero], at) = (names(tensor.name), tensor.shape.len());
            plan.growing_state(&codes, &packed, at, growth, StateKind::Uint8);
            plan.growing_state(&scale, &scales, at, growth, StateKind::Compute);
            plan.growing_state(&zero, &scales, at, growth, StateKind::Compute);
        }
        plan.growing_state(GROUP_POSITION, &[], 1, growth, StateKind::Int64);
    }

    /// Positions of all cached tokens, from those of the ungrouped.
    pub fn positions(self, state: &State, ungrouped: &Tensor) -> Result<Tensor> {
        let first = state.get(GROUP_POSITION)?;
        if first.size()[1] == 0 {
            return Ok(ungrouped.shallow_clone());
        }
        let rows = first.size()[0].max(ungrouped.size()[0]);
        let options = (Kind::Int64, first.device());
        let first = first.f_unsqueeze(2)?;
        let all = &first + Tensor::f_arange(self.group, options)?;
        let grouped =
            all.f_where_self(&first.f_ge(0)?, &Tensor::f_full([1], -1, options)?)?.f_flatten(1, 2)?;
        Ok(Tensor::f_cat(&[expand_batch(&grouped, rows)?, expand_batch(ungrouped, rows)?], 1)?)
    }

    /// The groups of a tensor `[batch, ..., groups, tokens, channels]`, as they are; none when there are none.
    pub fn groups_of(state: &State, tensor: &PerToken) -> Result<Option<Quantised>> {
        let [codes, scale, zero] = names(tensor.name).map(|name| state.get(&name));
        let (codes, scale, zero) = (codes?.shallow_clone(), scale?.shallow_clone(), zero?.shallow_clone());
        let none = codes.size()[tensor.shape.len()] == 0;
        Ok((!none).then_some(Quantised { codes, scale, zero }))
    }

    /// The grouped entries of a tensor `[batch, ..., tokens, channels]`, read back; none when there are none.
    pub fn read(self, state: &State, tensor: &PerToken) -> Result<Option<Tensor>> {
        let at = tensor.tokens();
        let Some(groups) = Self::groups_of(state, tensor)? else { return Ok(None) };
        Ok(Some(dequantise(&groups, self.bits, tensor.shared)?.f_flatten(at, at + 1)?))
    }

    /// The state after a call that adds the entries `new`.
    pub fn after(
        self,
        tensors: &[PerToken],
        window: Option<i64>,
        state: &State,
        new: &[Tensor],
        span: &Span,
    ) -> Result<State> {
        let (ungrouped, grouped) = (state.get(POSITION)?, state.get(GROUP_POSITION)?);
        let ragged = !span.uniform || is_ragged(span);
        let rows = if ragged { span.batch } else { ungrouped.size()[0].max(grouped.size()[0]) };
        let (ungrouped, arrived) = living(ungrouped, span, rows)?;
        let (grouped, _) = living(grouped, span, rows)?;
        // Rows that differ for the first time get their room for borders anywhere.
        let room = if ragged && span.uniform { self.group - 1 } else { 0 };
        let gone = Tensor::f_full([ungrouped.size()[0], room], -1, (Kind::Int64, ungrouped.device()))?;
        let ungrouped = Tensor::f_cat(&[gone, ungrouped, arrived], 1)?;
        let groups = self.groups(window);
        let cut = if span.training {
            Cut::nothing(grouped, ungrouped)
        } else if ragged {
            Cut::by_row(groups, &grouped, &ungrouped)?
        } else {
            Cut::alike(groups, &grouped, &ungrouped)?
        };
        let mut after = state.with(POSITION, cut.ungrouped).with(GROUP_POSITION, cut.grouped);
        for (tensor, new) in tensors.iter().zip(new) {
            let (dim, at) = (tensor.shape.len(), tensor.tokens());
            let old = expand_batch(state.get(tensor.name)?, span.batch)?.f_to_kind(new.kind())?;
            let mut size = old.size();
            size[dim] = room;
            let gone = Tensor::f_zeros(size, (new.kind(), new.device()))?;
            let mut buffer = Tensor::f_cat(&[&gone, &old, new], at)?;
            if let Some(order) = &cut.sort {
                buffer = reorder(&buffer, order, dim)?;
            }
            let forming = buffer.f_narrow(at, cut.start, cut.forming * self.group)?;
            let forming = forming.f_unflatten(at, [cut.forming, self.group])?;
            let formed = quantise(&forming, self.bits, tensor.shared)?;
            let parts = names(tensor.name).into_iter().zip([formed.codes, formed.scale, formed.zero]);
            for (name, formed) in parts {
                let old = expand_batch(state.get(&name)?, span.batch)?.f_to_kind(formed.kind())?;
                let all = Tensor::f_cat(&[old, formed], at)?;
                after = after.with(&name, cut.kept_groups.of(&all, dim)?);
            }
            after = after.with(tensor.name, cut.kept_ungrouped.of(&buffer, dim)?);
        }
        Ok(after)
    }
}

/// Which entries become codes and which are kept: the ungrouped entries before a call with those of the call behind them
/// are sorted, `forming` groups of them from entry `start` on become codes behind the old groups, and some are kept.
#[derive(Debug)]
struct Cut {
    sort: Option<Tensor>,
    start: i64,
    forming: i64,
    kept_groups: Kept,
    kept_ungrouped: Kept,
    /// Positions of the groups that are kept.
    grouped: Tensor,
    /// Positions of the ungrouped tokens that are kept.
    ungrouped: Tensor,
}

#[derive(Debug)]
enum Kept {
    /// The last of all rows, so many.
    Newest(i64),
    /// Those of each row, `[batch, n]`.
    Rows(Tensor),
}

impl Kept {
    fn of(&self, tensor: &Tensor, dim: usize) -> Result<Tensor> {
        match self {
            Self::Newest(n) => newest(tensor, dim, *n),
            Self::Rows(rows) => reorder(tensor, rows, dim),
        }
    }
}

impl Cut {
    /// Nothing becomes codes and nothing is forgotten: training, where gradients flow into what is remembered.
    fn nothing(grouped: Tensor, ungrouped: Tensor) -> Self {
        Self {
            sort: None,
            start: 0,
            forming: 0,
            kept_groups: Kept::Newest(grouped.size()[1]),
            kept_ungrouped: Kept::Newest(ungrouped.size()[1]),
            grouped,
            ungrouped,
        }
    }

    /// All rows are alike: borders are the same everywhere, and their places follow from the sizes.
    fn alike(groups: Groups, grouped: &Tensor, ungrouped: &Tensor) -> Result<Self> {
        let (old, tokens) = (grouped.size()[1], ungrouped.size()[1]);
        // Only whole groups have been formed or forgotten so far, so the counts of what is left lead to the same borders.
        let formed = groups.formed(tokens);
        let forgotten = groups.forgotten(old * groups.size + tokens);
        let unformed = (forgotten - old).max(0).min(formed);
        let (start, forming) = (unformed * groups.size, formed - unformed);
        let kept_groups = (old - forgotten).max(0) + forming;
        let kept_ungrouped = tokens - formed * groups.size;
        let firsts = ungrouped.f_narrow(1, start, forming * groups.size)?;
        let firsts = firsts.f_unflatten(1, [forming, groups.size])?.f_select(2, 0)?;
        let all = Tensor::f_cat(&[grouped, &firsts], 1)?;
        Ok(Self {
            sort: None,
            start,
            forming,
            kept_groups: Kept::Newest(kept_groups),
            kept_ungrouped: Kept::Newest(kept_ungrouped),
            grouped: newest(&all, 1, kept_groups)?,
            ungrouped: newest(ungrouped, 1, kept_ungrouped)?,
        })
    }

    /// Every row by its own count. The first ungrouped token of a row begins a group, so the tokens that exist are moved
    /// to the left, cut into groups, and what is left is moved to the right again.
    fn by_row(groups: Groups, grouped: &Tensor, ungrouped: &Tensor) -> Result<Self> {
        let (size, old, tokens) = (groups.size, grouped.size()[1], ungrouped.size()[1]);
        let options = (Kind::Int64, ungrouped.device());
        let gone = Tensor::f_full([1], -1, options)?;
        // A row that is as long as all calls together has this many more groups, and this many tokens that are in none.
        let longest = groups.formed(tokens - (size - 1));
        let kept_groups = groups.most().map_or(old + longest, |most| most.min(old + longest));
        let kept_ungrouped = tokens - longest * size;
        let forming = groups.formed(tokens);
        let first = |exists: &Tensor| exists.f_to_kind(Kind::Int)?.f_argsort_stable(true, 1, false);
        let sort = first(&ungrouped.f_lt(0)?)?;
        let sorted = ungrouped.f_gather(1, &sort, false)?;
        let exist = sorted.f_ge(0)?.f_sum_dim_intlist(1, true, Kind::Int64)?;
        let formed = (exist - groups.recent).f_clamp_min(0)?.f_floor_divide_scalar(size)?;
        let firsts = sorted.f_narrow(1, 0, forming * size)?;
        let firsts = firsts.f_unflatten(1, [forming, size])?.f_select(2, 0)?;
        let is_formed = Tensor::f_arange(forming, options)?.f_unsqueeze(0)?.f_lt_tensor(&formed)?;
        let all = Tensor::f_cat(&[grouped, &firsts.f_where_self(&is_formed, &gone)?], 1)?;
        let group_order = newest(&first(&all.f_ge(0)?)?, 1, kept_groups)?;
        let is_left = Tensor::f_arange(tokens, options)?.f_unsqueeze(0)?.f_ge_tensor(&(formed * size))?;
        let left = sorted.f_where_self(&is_left, &gone)?;
        let left_order = newest(&first(&left.f_ge(0)?)?, 1, kept_ungrouped)?;
        Ok(Self {
            sort: Some(sort),
            start: 0,
            forming,
            grouped: all.f_gather(1, &group_order, false)?,
            ungrouped: left.f_gather(1, &left_order, false)?,
            kept_groups: Kept::Rows(group_order),
            kept_ungrouped: Kept::Rows(left_order),
        })
    }
}
