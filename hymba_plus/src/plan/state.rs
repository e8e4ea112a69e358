//! The state of a mixer as planned: types, shapes, how it grows.

use serde::Serialize;
use tch::Kind;

/// The type of a state tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StateKind {
    /// That of the activations.
    Compute,
    /// At least 32-bit floats, whatever the activations are: recurrent states that round badly.
    Float,
    /// 64-bit integers: positions.
    Int64,
    /// Bytes: packed codes.
    Uint8,
}

impl StateKind {
    /// The tensor type under activations of type `compute`.
    pub fn under(self, compute: Kind) -> Kind {
        match self {
            Self::Int64 => Kind::Int64,
            Self::Uint8 => Kind::Uint8,
            Self::Float if compute != Kind::Double => Kind::Float,
            Self::Float | Self::Compute => compute,
        }
    }
}

/// How a state tensor grows with the sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Growth {
    /// Not at all: a recurrent state.
    Fixed,
    /// One entry for each meta token, then not at all.
    Prefix,
    /// One entry for each token, the newest `0` kept.
    Window(i64),
    /// One entry for each token.
    Unbounded,
    /// One entry for each group of tokens.
    Groups(Groups),
    /// One entry for each token that is in no group yet: the newest.
    Ungrouped(Groups),
}

/// Tokens in groups: a document's first `size` tokens are a group, the next `size` the next, and so on. A group is
/// formed when `recent` tokens have come after it, and forgotten when all of it lies outside the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Groups {
    /// Tokens of a group.
    pub size: i64,
    /// The newest tokens, these many at least, are in no group.
    pub recent: i64,
    /// The newest tokens that are looked at, more than `recent`; none when all are.
    pub window: Option<i64>,
}

impl Groups {
    /// Groups that `text` tokens have formed, forgotten ones included.
    pub fn formed(&self, text: i64) -> i64 {
        (text - self.recent).max(0) / self.size
    }

    /// Of these, the forgotten.
    pub fn forgotten(&self, text: i64) -> i64 {
        self.window.map_or(0, |window| (text - window).max(0) / self.size)
    }

    /// Most groups that are kept at a time, if there is a most.
    pub fn most(&self) -> Option<i64> {
        Some((self.window? - self.recent + self.size - 1) / self.size)
    }
}

impl Growth {
    /// Entries of one sequence after `text` tokens that follow `meta` meta tokens.
    pub fn entries(self, meta: i64, text: i64) -> i64 {
        match self {
            Self::Fixed => 1,
            Self::Prefix => meta,
            Self::Window(window) => text.min(window),
            Self::Unbounded => text,
            Self::Groups(groups) => groups.formed(text) - groups.forgotten(text),
            Self::Ungrouped(groups) => text - groups.formed(text) * groups.size,
        }
    }

    /// Most entries where rows differ: padding and earlier documents may stand in the place of tokens.
    pub fn most(self, meta: i64, text: i64) -> i64 {
        match self {
            Self::Groups(groups) => groups.most().map_or(i64::MAX, |most| most).min(groups.formed(text)),
            // The border of a row's last group lies anywhere.
            Self::Ungrouped(groups) => self.entries(meta, text) + groups.size - 1,
            _ => self.entries(meta, text),
        }
    }

    /// Entries that are there for good whatever the length, once the text has that many tokens.
    pub fn fixed(self, meta: i64) -> i64 {
        match self {
            Self::Fixed | Self::Prefix => self.entries(meta, 0),
            Self::Ungrouped(groups) => groups.recent,
            Self::Window(_) | Self::Unbounded | Self::Groups(_) => 0,
        }
    }

    /// Entries that a token adds to the fixed ones until the limit is reached, in the mean over a group.
    pub fn rate(self) -> f64 {
        match self {
            Self::Fixed | Self::Prefix | Self::Ungrouped(_) => 0.0,
            Self::Window(_) | Self::Unbounded => 1.0,
            Self::Groups(groups) => 1.0 / groups.size as f64,
        }
    }

    /// Text tokens after which it grows no more, if it does at all and stops.
    pub fn limit(self) -> Option<i64> {
        match self {
            Self::Window(window) => Some(window),
            Self::Groups(groups) => groups.window,
            Self::Fixed | Self::Prefix | Self::Unbounded | Self::Ungrouped(_) => None,
        }
    }
}

/// One tensor of a mixer's state.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StatePlan {
    /// Name.
    pub name: String,
    /// Shape without the batch, the growing dimension left out.
    pub shape: Vec<i64>,
    /// Where the growing dimension goes, batch included, when there is one.
    pub growing: Option<usize>,
    /// How it grows.
    pub growth: Growth,
    /// Its type.
    pub kind: StateKind,
}

impl StatePlan {
    /// The tensor's shape for so many sequences with so many entries along the growing dimension.
    pub fn size(&self, batch: i64, entries: i64) -> Vec<i64> {
        let mut size = vec![batch];
        size.extend(&self.shape);
        if let (Some(dimension), false) = (self.growing, self.growth == Growth::Fixed) {
            size.insert(dimension, entries);
        }
        size
    }

    /// Elements of one sequence after `text` tokens that follow `meta` meta tokens.
    pub fn elements(&self, meta: i64, text: i64) -> i64 {
        self.shape.iter().product::<i64>() * self.growth.entries(meta, text)
    }

    /// Bytes of one entry in a model whose activations have the type `compute`.
    pub fn entry_bytes(&self, compute: Kind) -> i64 {
        let width = self.kind.under(compute).elt_size_in_bytes() as i64;
        self.shape.iter().product::<i64>() * width
    }

    /// Bytes of one sequence after `text` tokens that follow `meta` meta tokens, in a model whose activations have the
    /// type `compute`.
    pub fn bytes(&self, meta: i64, text: i64, compute: Kind) -> i64 {
        self.entry_bytes(compute) * self.growth.entries(meta, text)
    }
}
