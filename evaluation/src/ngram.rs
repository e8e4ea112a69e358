//! N-gram models: what counting alone achieves on the same text, printed beside a network's loss.

use std::collections::HashMap;

/// An interpolated n-gram model with Witten-Bell smoothing (Witten & Bell 1991): a context that was followed by `t`
/// different symbols in `c` places gives `t / (c + t)` of its probability to the next shorter context.
#[derive(Debug)]
pub struct NGram {
    order: usize,
    vocabulary: f64,
    /// For each context length, what followed each context.
    contexts: Vec<HashMap<Vec<u32>, Followers>>,
}

#[derive(Debug, Default)]
struct Followers {
    total: f64,
    counts: HashMap<u32, f64>,
}

impl NGram {
    /// Counts all symbols but the first of each sequence, which is context only; symbols are below `vocabulary`,
    /// contexts have up to `order - 1` symbols and do not reach over the border of two sequences.
    pub fn train(order: usize, vocabulary: usize, sequences: &[&[u32]]) -> Self {
        let mut contexts: Vec<HashMap<Vec<u32>, Followers>> = (0..order).map(|_| HashMap::new()).collect();
        for sequence in sequences {
            for (i, &symbol) in sequence.iter().enumerate().skip(1) {
                for (length, table) in contexts.iter_mut().enumerate().take(i + 1) {
                    let followers = match table.get_mut(&sequence[i - length..i]) {
                        Some(followers) => followers,
                        None => table.entry(sequence[i - length..i].to_vec()).or_default(),
                    };
                    followers.total += 1.0;
                    *followers.counts.entry(symbol).or_default() += 1.0;
                }
            }
        }
        Self { order, vocabulary: vocabulary as f64, contexts }
    }

    /// Probability of `symbol` after `context`, of which the last `order - 1` symbols count.
    pub fn probability(&self, context: &[u32], symbol: u32) -> f64 {
        let mut probability = 1.0 / self.vocabulary;
        for length in 0..self.order.min(context.len() + 1) {
            let Some(followers) = self.contexts[length].get(&context[context.len() - length..]) else {
                break;
            };
            let kinds = followers.counts.len() as f64;
            let count = followers.counts.get(&symbol).copied().unwrap_or_default();
            probability = (count + kinds * probability) / (followers.total + kinds);
        }
        probability
    }

    /// Sum of `-ln p` over all symbols of the sequences but the first of each, and how many there are.
    pub fn loss(&self, sequences: &[&[u32]]) -> (f64, usize) {
        let (mut sum, mut count) = (0.0, 0);
        for sequence in sequences {
            for i in 1..sequence.len() {
                let from = i.saturating_sub(self.order - 1);
                sum -= self.probability(&sequence[from..i], sequence[i]).ln();
                count += 1;
            }
        }
        (sum, count)
    }
}

/// Stands before and after the bytes of a document.
const BORDER: u32 = 256;

/// Documents as bytes for an n-gram model with a vocabulary of 257, each between two borders: it pays for the first byte
/// of a document and for its end, as a network does.
pub fn bytes_of<'a>(texts: impl IntoIterator<Item = &'a str>) -> Vec<Vec<u32>> {
    let widen = |text: &str| -> Vec<u32> {
        let border = std::iter::once(BORDER);
        border.clone().chain(text.bytes().map(u32::from)).chain(border).collect()
    };
    texts.into_iter().map(widen).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_and_every_end_is_paid_for() {
        let sequences = bytes_of(["ab", "", "c"]);
        assert_eq!(sequences[0], [256, 97, 98, 256]);
        let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        let model = NGram::train(3, 257, &sequences);
        assert_eq!(model.loss(&sequences).1, 3 + 3);
        // A document that begins with `a` is one of three.
        let unigram = (1.0 + 4.0 / 257.0) / 10.0;
        assert!((model.probability(&[BORDER], 97) - (1.0 + 3.0 * unigram) / 6.0).abs() < 1e-12);
    }

    #[test]
    fn probabilities_sum_to_one() {
        let text: Vec<u32> = b"abracadabra".iter().map(|&byte| u32::from(byte)).collect();
        let model = NGram::train(3, 256, &[&text]);
        for context in [&b""[..], b"a", b"ab", b"zz", b"bz"] {
            let context: Vec<u32> = context.iter().map(|&byte| u32::from(byte)).collect();
            let sum: f64 = (0..256).map(|symbol| model.probability(&context, symbol)).sum();
            assert!((sum - 1.0).abs() < 1e-12, "{context:?}: {sum}");
        }
    }

    #[test]
    fn counts_by_hand() {
        // `b` came twice, `a` once: p(b) = (2 + 2 / 4) / (3 + 2); `b` followed `a` twice: (2 + 1 * p(b)) / (2 + 1).
        let model = NGram::train(2, 4, &[&[0, 1, 0, 1]]);
        let unigram = (2.0 + 2.0 / 4.0) / 5.0;
        assert!((model.probability(&[0], 1) - (2.0 + unigram) / 3.0).abs() < 1e-12);
        let (sum, count) = model.loss(&[&[0, 1]]);
        assert_eq!(count, 1);
        assert!((sum + model.probability(&[0], 1).ln()).abs() < 1e-12);
    }
}
