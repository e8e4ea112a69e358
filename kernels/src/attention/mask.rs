//! Which keys a query sees.

use tch::{Device, Kind, Tensor};
use torch_bridge::Result;

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

impl Visibility<'_> {
    /// The mask for `time` queries and `keys` keys, true where a query sees a key: `[time, keys]` or
    /// `[batch, 1, time, keys]`; none when plain causal attention says the same.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn mask(&self, time: i64, keys: i64) -> Result<Option<Tensor>> {
        let alike = self.uniform && self.valid.is_none() && self.document.is_none();
        let longest = self.cached + time;
        let unlimited = self.window.is_none_or(|window| window >= longest);
        if alike && unlimited && (keys == time || time == 1) {
            return Ok(None);
        }
        let options = (Kind::Int64, self.positions.device());
        if alike {
            return Ok(Some(self.uniform_mask(time, options)?));
        }
        self.ragged_mask(time, options).map(Some)
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
