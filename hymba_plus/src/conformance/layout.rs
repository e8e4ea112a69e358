//! A layout: how the tokens of a batch are dealt out to calls, with padding and document starts. The example of every
//! law, and what shrinks when a law is broken.

use std::fmt;

use serde::{Serialize, Serializer};

use super::noise::Noise;

/// What stands at one place of a row in one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cell {
    /// The row's next token.
    Token,
    /// The row's next token, which is the first of a new document.
    First,
    /// Padding.
    Padding,
}

/// One call: what it brings each row, all rows equally long.
pub(super) type Turn = Vec<Vec<Cell>>;

/// Calls for a batch, after so many meta tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    pub(super) meta_tokens: i64,
    pub(super) turns: Vec<Turn>,
}

impl Layout {
    /// Calls of the given lengths, the same for each row, without padding.
    pub(super) fn plain(meta_tokens: i64, batch: usize, calls: &[usize]) -> Self {
        let turns = calls.iter().map(|&time| vec![vec![Cell::Token; time]; batch]).collect();
        Self { meta_tokens, turns }
    }

    /// One call, written: `t` a token, `d` a document's first, `.` padding; a word for each row.
    pub(super) fn written(meta_tokens: i64, calls: &[&str]) -> Self {
        let cell = |letter: char| match letter {
            'd' => Cell::First,
            '.' => Cell::Padding,
            _ => Cell::Token,
        };
        let turn = |call: &&str| call.split(' ').map(|row| row.chars().map(cell).collect()).collect();
        Self { meta_tokens, turns: calls.iter().map(turn).collect() }
    }

    pub(super) fn batch(&self) -> usize {
        self.turns.first().map_or(0, Vec::len)
    }

    /// Length of each call, padding included.
    pub(super) fn calls(&self) -> Vec<usize> {
        self.turns.iter().map(|turn| turn.first().map_or(0, Vec::len)).collect()
    }

    /// Tokens of a row in all calls.
    pub(super) fn tokens(&self, row: usize) -> usize {
        self.turns.iter().map(|turn| tokens(&turn[row])).sum()
    }

    /// Tokens of the longest row.
    pub(super) fn longest(&self) -> usize {
        (0..self.batch()).map(|row| self.tokens(row)).max().unwrap_or(0)
    }

    /// Whether some place holds this.
    pub(super) fn has(&self, cell: Cell) -> bool {
        self.turns.iter().flatten().flatten().any(|&c| c == cell)
    }

    /// The layout of one row.
    pub(super) fn row(&self, row: usize) -> Self {
        self.rows(&[row])
    }

    /// The layout of some rows, in this order.
    pub(super) fn rows(&self, rows: &[usize]) -> Self {
        let pick = |turn: &Turn| rows.iter().map(|&row| turn[row].clone()).collect();
        Self { meta_tokens: self.meta_tokens, turns: self.turns.iter().map(pick).collect() }
    }

    /// Everything in one call.
    pub(super) fn merged(&self) -> Self {
        let row = |row: usize| self.turns.iter().flat_map(|turn| turn[row].iter().copied()).collect();
        let turn: Turn = (0..self.batch()).map(row).collect();
        Self { meta_tokens: self.meta_tokens, turns: vec![turn] }
    }

    /// Without padding; rows must stay equally long, so this is for a single row.
    pub(super) fn dense(&self) -> Self {
        let dense = |turn: &Turn| {
            turn.iter()
                .map(|row| row.iter().copied().filter(|cell| *cell != Cell::Padding).collect())
                .collect()
        };
        Self { meta_tokens: self.meta_tokens, turns: self.turns.iter().map(dense).collect() }
    }

    /// Lengths of the documents of a row; the first goes on with the initial state.
    pub(super) fn documents(&self, row: usize) -> Vec<usize> {
        let mut lengths = vec![0];
        for cell in self.turns.iter().flat_map(|turn| &turn[row]) {
            if *cell == Cell::First && lengths != [0] {
                lengths.push(0);
            }
            if *cell != Cell::Padding
                && let Some(last) = lengths.last_mut()
            {
                *last += 1;
            }
        }
        lengths
    }

    /// Layouts that are a little smaller, the boldest first.
    pub(super) fn smaller(&self) -> Vec<Self> {
        let mut all = Vec::new();
        let with = |turns: Vec<Turn>| Self { meta_tokens: self.meta_tokens, turns };
        let batch = self.batch();
        if batch > 1 {
            all.extend((0..batch).map(|row| self.row(row)));
            let without = |row| self.rows(&(0..batch).filter(|&r| r != row).collect::<Vec<_>>());
            all.extend((0..batch).map(without));
        }
        if self.turns.len() > 1 {
            for turn in (0..self.turns.len()).rev() {
                let mut turns = self.turns.clone();
                turns.remove(turn);
                all.push(with(turns));
            }
        }
        if self.meta_tokens > 0 {
            all.push(Self { meta_tokens: 0, ..self.clone() });
            all.push(Self { meta_tokens: self.meta_tokens - 1, ..self.clone() });
        }
        // Columns of a call: half of them, then one by one from the end.
        for (index, turn) in self.turns.iter().enumerate() {
            let time = turn.first().map_or(0, Vec::len);
            let mut cut = |from: usize, to: usize| {
                let mut turns = self.turns.clone();
                for row in &mut turns[index] {
                    row.drain(from..to);
                }
                all.push(with(turns));
            };
            if time > 2 {
                cut(time / 2, time);
                cut(0, time / 2);
            }
            (0..time).rev().for_each(|column| cut(column, column + 1));
        }
        // Plainer cells.
        for (index, turn) in self.turns.iter().enumerate() {
            for (row, cells) in turn.iter().enumerate() {
                for (column, cell) in cells.iter().enumerate() {
                    if *cell == Cell::First {
                        let mut turns = self.turns.clone();
                        turns[index][row][column] = Cell::Token;
                        all.push(with(turns));
                    }
                }
            }
        }
        if self.turns.len() > 1 {
            for index in 1..self.turns.len() {
                let mut turns = self.turns.clone();
                let next = turns.remove(index);
                for (row, cells) in turns[index - 1].iter_mut().zip(next) {
                    row.extend(cells);
                }
                all.push(with(turns));
            }
        }
        all
    }
}

/// Tokens among cells.
pub(super) fn tokens(cells: &[Cell]) -> usize {
    cells.iter().filter(|cell| **cell != Cell::Padding).count()
}

/// `total` tokens in calls of random lengths, some empty.
pub(super) fn chunks(noise: &mut Noise, total: usize) -> Vec<usize> {
    let (mut left, mut calls) = (total, Vec::new());
    let most = 1 + noise.below(total);
    while left > 0 {
        let length = noise.below(most + 1).min(left);
        calls.push(length);
        left -= length;
    }
    calls
}

/// Calls for rows that bring different numbers of tokens each time, padded on any side.
pub(super) fn padded(noise: &mut Noise, meta_tokens: i64, batch: usize, calls: &[usize]) -> Layout {
    let mut row = |most: usize, time: usize| -> Vec<Cell> {
        let mut cells = vec![Cell::Token; noise.below(most + 1)];
        let side = noise.below(4);
        while cells.len() < time {
            let at = match side {
                0 => 0,
                1 => cells.len(),
                2 => cells.len() / 2,
                _ => noise.below(cells.len() + 1),
            };
            cells.insert(at, Cell::Padding);
        }
        cells
    };
    let turn = |(index, &most): (usize, &usize)| (0..batch).map(|_| row(most, most + index % 3)).collect();
    Layout { meta_tokens, turns: calls.iter().enumerate().map(turn).collect() }
}

/// The layout with documents that begin at random tokens, one in so many.
pub(super) fn packed(noise: &mut Noise, mut layout: Layout, one_in: usize) -> Layout {
    for cell in layout.turns.iter_mut().flatten().flatten() {
        if *cell == Cell::Token && noise.chance(one_in) {
            *cell = Cell::First;
        }
    }
    layout
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch {}, meta tokens {}, ", self.batch(), self.meta_tokens)?;
        let calls = self.calls();
        if !self.has(Cell::Padding) && !self.has(Cell::First) {
            return match calls.as_slice() {
                [one] => write!(f, "one call of {one} tokens"),
                many => write!(f, "calls of {many:?} tokens"),
            };
        }
        write!(f, "calls")?;
        for turn in &self.turns {
            let row = |cells: &Vec<Cell>| -> String {
                let letter = |cell: &Cell| match cell {
                    Cell::Token => 't',
                    Cell::First => 'd',
                    Cell::Padding => '.',
                };
                cells.iter().map(letter).collect()
            };
            write!(f, " [{}]", turn.iter().map(row).collect::<Vec<_>>().join(" "))?;
        }
        write!(f, " (a word a row; t token, d first of a document, . padding)")
    }
}

impl Serialize for Layout {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_rows_and_merging() {
        let layout = Layout::written(2, &["ttd. .dtt", "dt. t.t"]);
        assert_eq!((layout.batch(), layout.calls(), layout.longest()), (2, vec![4, 3], 5));
        assert_eq!(layout.documents(0), [2, 1, 2]);
        // A document that begins where the row begins is the first one.
        assert_eq!(layout.documents(1), [5]);
        assert_eq!(layout.row(1).dense(), Layout::written(2, &["dtt", "tt"]));
        assert_eq!(layout.merged(), Layout::written(2, &["ttd.dt. .dttt.t"]));
    }

    #[test]
    fn shrinking_ends() {
        let mut layout = packed(&mut Noise::new(1), Layout::plain(3, 3, &[4, 0, 5]), 3);
        let mut steps = 0;
        while let Some(smaller) = layout.smaller().into_iter().next() {
            layout = smaller;
            steps += 1;
            assert!(steps < 100, "{layout}");
        }
        assert_eq!(layout, Layout::plain(0, 1, &[0]));
    }

    #[test]
    fn calls_add_up() {
        let mut noise = Noise::new(5);
        for total in [0, 1, 7, 30] {
            assert_eq!(chunks(&mut noise, total).iter().sum::<usize>(), total);
        }
    }
}
