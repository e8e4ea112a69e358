//! Comparing what a law says is equal, and saying where and by how much it is not.

use serde::Serialize;
use tch::{Kind, Tensor};
use torch_bridge::{
    Result,
    autograd::{GradOptions, grad},
};

use super::{
    harness::{Streams, Subject},
    noise::noise,
};

/// Values in fp64 that a law calls equal agree to this, relative to their root mean square.
pub(super) const EXACT: f64 = 1e-9;
/// Gradients in fp64 agree to this.
pub(super) const EXACT_GRADIENT: f64 = 1e-8;

/// How the gradient of a slice by the meta tokens is named.
pub(super) const META_TOKENS: &str = " of meta tokens";

/// Where and by how much a law is broken.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Deviation {
    /// The tensor: `y`, `gradient of k`, `state ssm`, ... or what failed.
    pub tensor: String,
    /// Row of the batch, if the tensor has rows.
    pub row: Option<usize>,
    /// Token of that row, counted over all calls from 0, if the tensor has tokens.
    pub token: Option<usize>,
    /// How far off: the largest difference over the root mean square of what was expected.
    pub error: f64,
    /// How far off it may be.
    pub tolerance: f64,
    /// What came and what was expected, in words.
    pub detail: String,
}

/// Collects the comparisons of one example: the worst error, and the first that is beyond its tolerance.
#[derive(Debug, Default)]
pub(super) struct Judge {
    /// Replaces the law's own tolerance where the component declared a larger one.
    pub(super) within: Option<f64>,
    pub(super) worst: f64,
    pub(super) broken: Option<Deviation>,
}

impl Judge {
    pub(super) fn new(within: Option<f64>) -> Self {
        Self { within, ..Self::default() }
    }

    /// The law is broken in a way that has no measure.
    pub(super) fn refuse(&mut self, tensor: impl Into<String>, detail: impl Into<String>) {
        let (tensor, detail) = (tensor.into(), detail.into());
        self.break_at(Deviation {
            tensor,
            row: None,
            token: None,
            error: f64::INFINITY,
            tolerance: 0.0,
            detail,
        });
    }

    fn break_at(&mut self, deviation: Deviation) {
        self.worst = self.worst.max(deviation.error);
        self.broken.get_or_insert(deviation);
    }

    /// Bit for bit the same, type and shape included.
    pub(super) fn same(&mut self, tensor: &str, got: &Tensor, expected: &Tensor) -> Result<()> {
        let (mine, theirs) = ((got.kind(), got.size()), (expected.kind(), expected.size()));
        if mine != theirs {
            self.refuse(tensor, format!("{mine:?} instead of {theirs:?}"));
        } else if !got.f_equal(expected)? {
            let (error, at) = distance(got, expected, None)?;
            let detail = format!("element {:?} is {}, not bit for bit", at.0, at.values(got, expected)?);
            let tensor = tensor.to_owned();
            self.break_at(Deviation { tensor, row: None, token: None, error, tolerance: 0.0, detail });
        }
        Ok(())
    }

    /// Near, relative to the root mean square of `expected` (or to `scale`, when that is larger).
    /// `origin` is the row and token of the first element; the tensor is `[rows, tokens, ...]` then.
    pub(super) fn near(
        &mut self,
        tensor: &str,
        got: &Tensor,
        expected: &Tensor,
        scale: Option<f64>,
        tolerance: f64,
        origin: Option<(usize, usize)>,
    ) -> Result<()> {
        let tolerance = self.within.unwrap_or(tolerance).max(tolerance);
        if got.size() != expected.size() {
            self.refuse(tensor, format!("shape {:?} instead of {:?}", got.size(), expected.size()));
            return Ok(());
        }
        let (error, at) = distance(got, expected, scale)?;
        // Not a number is not near anything.
        if error <= tolerance {
            self.worst = self.worst.max(error);
            return Ok(());
        }
        let detail = at.values(got, expected)?;
        let place = origin.map(|(row, token)| {
            let (r, t) = at.row_and_token(got);
            (row + r.unwrap_or(0), token + t.unwrap_or(0))
        });
        let (row, token) = (place.map(|place| place.0), place.map(|place| place.1));
        let error = if error.is_nan() { f64::INFINITY } else { error };
        self.break_at(Deviation { tensor: tensor.to_owned(), row, token, error, tolerance, detail });
        Ok(())
    }

    /// An error that was measured otherwise.
    pub(super) fn measured(&mut self, tensor: &str, error: f64, tolerance: f64, detail: String) {
        let tolerance = self.within.unwrap_or(tolerance).max(tolerance);
        if error <= tolerance {
            self.worst = self.worst.max(error);
            return;
        }
        let (tensor, error) = (tensor.to_owned(), if error.is_nan() { f64::INFINITY } else { error });
        self.break_at(Deviation { tensor, row: None, token: None, error, tolerance, detail });
    }

    /// Outputs of rows `[tokens, width]`, each against its own.
    pub(super) fn rows(&mut self, tensor: &str, got: &[Tensor], expected: &[Tensor]) -> Result<()> {
        if got.len() != expected.len() {
            self.refuse(tensor, format!("{} rows instead of {}", got.len(), expected.len()));
            return Ok(());
        }
        let scale = Some(rms(expected)?);
        for (row, (got, expected)) in got.iter().zip(expected).enumerate() {
            if self.broken.is_none() && got.size() != expected.size() {
                self.refuse(tensor, format!("row {row}: {:?} instead of {:?}", got.size(), expected.size()));
            }
            if self.broken.is_none() {
                let (got, expected) = (got.f_unsqueeze(0)?, expected.f_unsqueeze(0)?);
                self.near(tensor, &got, &expected, scale, EXACT, Some((row, 0)))?;
            }
        }
        Ok(())
    }

    /// Outputs of rows, and the gradients of one random linear function of them.
    pub(super) fn rows_and_gradients(
        &mut self,
        subject: &Subject,
        streams: &Streams,
        got: &[Tensor],
        expected: &[Tensor],
    ) -> Result<()> {
        self.rows("y", got, expected)?;
        if self.broken.is_some() {
            return Ok(());
        }
        let mine = gradients(subject, streams, got)?;
        let theirs = gradients(subject, streams, expected)?;
        // A gradient that cancels out is compared with the size of the others.
        let largest = theirs.iter().map(|(_, g)| rms(std::slice::from_ref(g))).collect::<Result<Vec<_>>>()?;
        let floor = largest.into_iter().fold(0.0, f64::max) * 1e-4;
        for ((name, mine), (_, theirs)) in mine.iter().zip(&theirs) {
            let tensor = format!("gradient of {name}");
            let origin = streams.text.contains_key(name).then_some((0, 0));
            let scale = floor.max(rms(std::slice::from_ref(theirs))?);
            self.near(&tensor, mine, theirs, Some(scale), EXACT_GRADIENT, origin)?;
        }
        Ok(())
    }
}

/// Gradients of a random linear function of rows `[tokens, width]`: of text, of meta tokens, of parameters, with names.
pub(super) fn gradients(
    subject: &Subject,
    streams: &Streams,
    rows: &[Tensor],
) -> Result<Vec<(String, Tensor)>> {
    let meta = streams.meta.iter().map(|(key, x)| (format!("{key}{META_TOKENS}"), x));
    let text = streams.text.iter().map(|(key, x)| (key.clone(), x));
    let parameters = subject.leaves.iter().map(|(key, x)| (format!("parameter {key}"), x));
    let (names, leaves): (Vec<_>, Vec<_>) = text.chain(meta).chain(parameters).unzip();
    let mut outputs = Vec::new();
    let mut weights = Vec::new();
    for (row, y) in rows.iter().enumerate().filter(|(_, y)| y.requires_grad()) {
        let weight = noise(streams.seed, &format!("loss.{row}"), &y.size())?;
        weights.push(Some(weight.f_to_kind(y.kind())?));
        outputs.push(y.shallow_clone());
    }
    if outputs.is_empty() {
        let zeros = leaves.into_iter().map(|leaf| Ok(leaf.detach().f_zeros_like()?));
        return names.into_iter().zip(zeros).map(|(name, zero): (_, Result<_>)| Ok((name, zero?))).collect();
    }
    let options = GradOptions { retain_graph: true, allow_unused: true, ..GradOptions::default() };
    let found = grad(&outputs, Some(&weights), &leaves, options)?;
    let whole = names.into_iter().zip(found).zip(&leaves).map(|((name, gradient), leaf)| match gradient {
        Some(gradient) => Ok((name, gradient)),
        None => Ok((name, leaf.detach().f_zeros_like()?)),
    });
    whole.collect()
}

/// Root mean square over several tensors together.
pub(super) fn rms(tensors: &[Tensor]) -> Result<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for tensor in tensors {
        let square = tensor.detach().f_to_kind(Kind::Double)?.f_square()?.f_sum(Kind::Double)?;
        sum += square.f_double_value(&[])?;
        count += tensor.numel();
    }
    Ok((sum / count.max(1) as f64).sqrt())
}

/// Root mean square of the difference, relative to that of `expected`.
pub(super) fn relative_rms(got: &Tensor, expected: &Tensor) -> Result<f64> {
    let difference = got.detach().f_to_kind(Kind::Double)? - expected.detach().f_to_kind(Kind::Double)?;
    let (off, size) = (rms(&[difference])?, rms(&[expected.detach()])?);
    Ok(if size > 0.0 { off / size } else { off })
}

/// An element of a tensor.
struct Place(Vec<i64>);

impl Place {
    /// The first two coordinates.
    fn row_and_token(&self, tensor: &Tensor) -> (Option<usize>, Option<usize>) {
        let at = |dimension: usize| {
            (dimension < tensor.dim()).then(|| self.0.get(dimension).map(|&i| i as usize)).flatten()
        };
        (at(0), at(1))
    }

    fn values(&self, got: &Tensor, expected: &Tensor) -> Result<String> {
        let at = |tensor: &Tensor| tensor.f_to_kind(Kind::Double)?.f_double_value(&self.0);
        Ok(format!("{:.6e} instead of {:.6e}", at(got)?, at(expected)?))
    }
}

/// The largest difference over `scale`, by default the root mean square of `expected`, and where it is.
fn distance(got: &Tensor, expected: &Tensor, scale: Option<f64>) -> Result<(f64, Place)> {
    if got.numel() == 0 {
        return Ok((0.0, Place(Vec::new())));
    }
    let (a, b) = (got.detach().f_to_kind(Kind::Double)?, expected.detach().f_to_kind(Kind::Double)?);
    let difference = (&a - &b).f_abs()?;
    // `argmax` finds what is not a number first.
    let mut at = difference.f_argmax(None, false)?.f_int64_value(&[])?;
    let largest = difference.f_reshape(-1)?.f_double_value(&[at])?;
    let mut place = Vec::new();
    for size in got.size().iter().rev() {
        place.insert(0, at % size);
        at /= size;
    }
    let scale = match scale {
        Some(scale) => scale,
        None => rms(&[b])?,
    };
    Ok((if scale > 0.0 { largest / scale } else { largest }, Place(place)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_first_deviation_is_kept_with_its_place() {
        let expected = Tensor::from_slice(&[1.0, 1.0, 1.0, 1.0]).view([1, 4, 1]);
        let got = Tensor::from_slice(&[1.0, 1.0, 1.5, 1.0]).view([1, 4, 1]);
        let mut judge = Judge::new(None);
        judge.near("y", &expected, &expected, None, EXACT, Some((0, 0))).unwrap();
        assert!(judge.broken.is_none());
        judge.near("y", &got, &expected, None, EXACT, Some((3, 10))).unwrap();
        judge.near("z", &got, &expected, None, EXACT, None).unwrap();
        let broken = judge.broken.unwrap();
        assert_eq!((broken.tensor.as_str(), broken.row, broken.token), ("y", Some(3), Some(12)));
        assert!((broken.error - 0.5).abs() < 1e-12);
    }

    #[test]
    fn what_is_not_a_number_is_never_near() {
        let mut judge = Judge::new(Some(1e9));
        let nan = Tensor::from_slice(&[1.0, f64::NAN]);
        judge.near("y", &nan, &Tensor::from_slice(&[1.0, 1.0]), None, EXACT, None).unwrap();
        assert!(judge.broken.is_some());
        let mut judge = Judge::new(Some(1e9));
        judge.near("y", &nan, &nan, None, EXACT, None).unwrap();
        assert!(judge.broken.is_some());
    }
}
