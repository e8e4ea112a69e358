//! Which keys a query sees.

use tch::{Device, Kind, Tensor};
use torch_bridge::Result;

use super::cuda::FAR;

/// What decides whether a query of a call sees a key.
#[derive(Debug)]
pub struct Visibility<'a> {
    /// Keys at the front that every query sees: meta tokens.
    pub meta: i64,
    /// Cached keys after them.
    pub cached: i64,
    /// Text keys a query sees, itself among them; none when it sees all.
    pub window: Option<i64>,
    /// Positions of the cached keys, `[batch or 1, cached]` int64, below 0 where there is no key.
    pub cached_positions: &'a Tensor,
    /// Positions of the call's tokens, `[batch or 1, time]` int64.
    pub positions: &'a Tensor,
    /// False where a token of the call is padding, `[batch, time]` bool.
    pub valid: Option<&'a Tensor>,
    /// How many documents started before or at each token in this call, `[batch, time]` int64.
    pub document: Option<&'a Tensor>,
    /// Whether all rows of the batch are alike and every cached key exists and is of the running document.
    pub uniform: bool,
}

/// What a query sees, in numbers: see attention.cuh.
#[derive(Debug)]
pub(super) struct Bounds {
    /// Least and greatest position of cached keys and least index of new ones, which stands twice: `[batch, time, 4]`
    /// int32.
    pub queries: Tensor,
    /// Positions of cached keys and indices of new ones, below 0 where there is none: `[batch, cached + time]` int32.
    pub keys: Tensor,
    /// Whether keys of the call may not exist.
    pub holes: bool,
}

impl Visibility<'_> {
    /// The mask for `time` queries and `keys` keys, true where a query sees a key: `[time, keys]` or
    /// `[batch, 1, time, keys]`; none when plain causal attention says the same.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn mask(&self, time: i64, keys: i64) -> Result<Option<Tensor>> {
        debug_assert_eq!(keys, self.meta + self.cached + time);
        if !self.needs_mask(time) {
            return Ok(None);
        }
        let options = (Kind::Int64, self.positions.device());
        if self.alike() {
            return Ok(Some(self.uniform_mask(time, options)?));
        }
        self.ragged_mask(time, options).map(Some)
    }

    /// Whether plain causal attention does not say the same.
    pub(super) fn needs_mask(&self, time: i64) -> bool {
        let unlimited = self.window.is_none_or(|window| window >= self.cached + time);
        let behind = self.meta + self.cached;
        !(self.alike() && unlimited && (behind == 0 || time == 1))
    }

    fn alike(&self) -> bool {
        self.uniform && self.valid.is_none() && self.document.is_none()
    }

    /// What the CUDA kernels get instead of a mask, for `batch` rows; nothing where all rows are alike.
    pub(super) fn bounds(&self, batch: i64, time: i64) -> Result<Option<Bounds>> {
        if self.alike() {
            return Ok(None);
        }
        let options = (Kind::Int64, self.positions.device());
        let window = self.window.unwrap_or(FAR).min(FAR);
        let full = |x: &Tensor, n| x.f_expand([batch, n], false);
        let index = full(&Tensor::f_arange(time, options)?.f_unsqueeze(0)?, time)?;
        let positions = full(self.positions, time)?;
        let mut old_low = (&positions - (window - 1)).f_clamp_min(0)?;
        let mut low = (&index - (window - 1)).f_clamp_min(0)?;
        if let Some(document) = self.document {
            // Counts never fall, so a count's first place is where its document begins.
            let document = full(document, time)?.f_contiguous()?;
            low = low.f_maximum(&Tensor::f_searchsorted(
                &document,
                &document,
                false,
                false,
                "left",
                None::<&Tensor>,
            )?)?;
            old_low = old_low.f_where_self(&document.f_eq(0)?, &Tensor::f_full([1], FAR, options)?)?;
        }
        let queries = Tensor::f_stack(&[&old_low, &positions, &low, &low], 2)?.f_to_kind(Kind::Int)?;
        let new = match self.valid {
            Some(valid) => index.f_where_self(valid, &Tensor::f_full([1], -1, options)?)?,
            None => index,
        };
        let keys =
            Tensor::f_cat(&[full(self.cached_positions, self.cached)?, new], 1)?.f_to_kind(Kind::Int)?;
        Ok(Some(Bounds { queries, keys, holes: self.valid.is_some() }))
    }

    /// All rows alike: a band of the distance between query and key.
    fn uniform_mask(&self, time: i64, options: (Kind, Device)) -> Result<Tensor> {
        let queries = Tensor::f_arange(time, options)?.f_unsqueeze(1)?;
        let text = Tensor::f_arange_start(-self.cached, time, options)?.f_unsqueeze(0)?;
        let seen = self.in_window(&(&queries - &text))?;
        self.after_meta(&seen, &[time, self.meta])
    }

    /// Rows with padding, cached keys of their own, or several documents.
    fn ragged_mask(&self, time: i64, options: (Kind, Device)) -> Result<Tensor> {
        let positions = self.positions.f_unsqueeze(2)?;
        let cached = self.cached_positions.f_unsqueeze(1)?;
        let mut old = self.in_window(&(&positions - &cached))?.f_logical_and(&cached.f_ge(0)?)?;
        let steps = Tensor::f_arange(time, options)?;
        let distance = steps.f_unsqueeze(1)? - steps.f_unsqueeze(0)?;
        let mut new = self.in_window(&distance)?.f_unsqueeze(0)?;
        if let Some(document) = self.document {
            // Cached keys belong to the document that was running when the call began.
            old = old.f_logical_and(&document.f_eq(0)?.f_unsqueeze(2)?)?;
            let same = document.f_unsqueeze(2)?.f_eq_tensor(&document.f_unsqueeze(1)?)?;
            new = new.f_logical_and(&same)?;
        }
        if let Some(valid) = self.valid {
            // A padding query sees itself, so that its softmax has something to sum; nothing reads the result.
            new = new.f_logical_and(&valid.f_unsqueeze(1)?)?.f_logical_or(&distance.f_eq(0)?)?;
        }
        let batch = old.size()[0].max(new.size()[0]);
        let seen = Tensor::f_cat(
            &[old.f_expand([batch, time, self.cached], false)?, new.f_expand([batch, time, time], false)?],
            2,
        )?;
        self.after_meta(&seen, &[batch, time, self.meta])?.f_unsqueeze(1).map_err(Into::into)
    }

    fn in_window(&self, distance: &Tensor) -> Result<Tensor> {
        let causal = distance.f_ge(0)?;
        Ok(match self.window {
            Some(window) => causal.f_logical_and(&distance.f_lt(window)?)?,
            None => causal,
        })
    }

    fn after_meta(&self, seen: &Tensor, meta_shape: &[i64]) -> Result<Tensor> {
        if self.meta == 0 {
            return Ok(seen.shallow_clone());
        }
        let meta = Tensor::f_ones(meta_shape, (Kind::Bool, seen.device()))?;
        Ok(Tensor::f_cat(&[&meta, seen], -1)?)
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::Visibility;

    const INT: (Kind, Device) = (Kind::Int64, Device::Cpu);

    /// What a kernel makes of bounds, by the words of attention.cuh.
    fn seen(given: &Visibility<'_>, batch: i64, time: i64) -> Tensor {
        let bounds = given.bounds(batch, time).unwrap().unwrap();
        let bound = |which| bounds.queries.select(2, which).unsqueeze(2);
        let (old, new) =
            (bounds.keys.narrow(1, 0, given.cached), bounds.keys.narrow(1, given.cached, time).unsqueeze(1));
        let old = old.unsqueeze(1);
        let old = old.ge_tensor(&bound(0)).logical_and(&old.le_tensor(&bound(1)));
        let index = Tensor::arange(time, INT);
        let distance = index.unsqueeze(1) - index.unsqueeze(0);
        let new = new.ge_tensor(&bound(2)).logical_and(&distance.ge(0)).logical_or(&distance.eq(0));
        let meta = Tensor::ones([batch, time, given.meta], (Kind::Bool, Device::Cpu));
        Tensor::cat(&[meta, old, new], 2).unsqueeze(1)
    }

    #[test]
    fn bounds_say_what_the_mask_says() {
        tch::manual_seed(5);
        let below = |n: i64| Tensor::randint(n, [1], INT).int64_value(&[0]);
        for round in 0..200 {
            let (batch, time, cached) = (2, 1 + below(12), below(9));
            let lengths = Tensor::randint(cached + 1, [batch, 1], INT);
            let cached_positions =
                (Tensor::arange(cached, INT).unsqueeze(0) - (cached - &lengths)).clamp_min(-1);
            let positions = lengths + Tensor::arange(time, INT).unsqueeze(0);
            let document = Tensor::rand([batch, time], (Kind::Float, Device::Cpu)).lt(0.2);
            let document = document.to_kind(Kind::Int64).cumsum(1, Kind::Int64);
            let valid = Tensor::rand([batch, time], (Kind::Float, Device::Cpu)).lt(0.8);
            let given = Visibility {
                meta: below(3),
                cached,
                window: [None, Some(1), Some(3), Some(8)][round % 4],
                cached_positions: &cached_positions,
                positions: &positions,
                valid: (round % 2 == 0).then_some(&valid),
                document: (round % 3 > 0).then_some(&document),
                uniform: false,
            };
            let mask = given.mask(time, given.meta + cached + time).unwrap().unwrap();
            assert!(seen(&given, batch, time).equal(&mask), "{given:?}");
            let low = given.bounds(batch, time).unwrap().unwrap().queries.select(2, 2);
            let falls = low.narrow(1, 1, time - 1).lt_tensor(&low.narrow(1, 0, time - 1));
            assert_eq!(falls.any().int64_value(&[]), 0, "kernels count on bounds that never fall");
        }
    }
}
