//! The table between our parameters and foreign tensors.
//!
//! It is a list of pieces. A piece says that a box of one of our parameters *is* a box of a foreign tensor, element by
//! element. Every element of every parameter and of every foreign tensor belongs to exactly one piece, which is checked,
//! so the table can be read in both directions.

use std::collections::BTreeMap;

use tch::Tensor;
use torch_bridge::Result;

use crate::{params::ParameterPlan, plan::ModelPlan};

/// A range along one dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// The dimension.
    pub dimension: usize,
    /// First index.
    pub start: i64,
    /// How many.
    pub length: i64,
}

/// A box of a tensor: all of it, or ranges along some of its dimensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The tensor.
    pub name: String,
    /// The ranges; dimensions without one are taken whole.
    pub cuts: Vec<Cut>,
}

impl Part {
    /// All of a tensor.
    pub fn whole(name: impl Into<String>) -> Self {
        Self { name: name.into(), cuts: Vec::new() }
    }

    /// Only a range of the first dimension.
    #[must_use]
    pub fn rows(self, start: i64, length: i64) -> Self {
        self.range(0, start, length)
    }

    /// Only one index of the first dimension: one expert of a stack.
    #[must_use]
    pub fn index(self, index: i64) -> Self {
        self.range(0, index, 1)
    }

    /// Only a range of a dimension.
    #[must_use]
    pub fn range(mut self, dimension: usize, start: i64, length: i64) -> Self {
        self.cuts.push(Cut { dimension, start, length });
        self
    }

    /// Start and length along every dimension of a tensor of this shape; none when the box leaves the tensor.
    fn extents(&self, shape: &[i64]) -> Option<Vec<(i64, i64)>> {
        let mut extents: Vec<(i64, i64)> = shape.iter().map(|&size| (0, size)).collect();
        for cut in &self.cuts {
            let extent = extents.get_mut(cut.dimension)?;
            if cut.start < 0 || cut.length < 0 || cut.start + cut.length > extent.1 {
                return None;
            }
            *extent = (extent.0 + cut.start, cut.length);
        }
        Some(extents)
    }

    /// The box as a view of its tensor.
    pub(super) fn of(&self, tensor: &Tensor) -> Result<Tensor> {
        let mut view = tensor.shallow_clone();
        for cut in &self.cuts {
            view = view.f_narrow(cut.dimension as i64, cut.start, cut.length)?;
        }
        Ok(view)
    }
}

impl From<&str> for Part {
    fn from(name: &str) -> Self {
        Self::whole(name)
    }
}

impl From<String> for Part {
    fn from(name: String) -> Self {
        Self::whole(name)
    }
}

/// How the elements of a piece lie in the one tensor and in the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// In the same order; dimensions of size 1 may come or go (`[channels, width]` and `[channels, 1, width]`).
    Same,
    /// Rows of the one are columns of the other.
    Transposed,
}

/// One line of the table.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub(super) ours: Part,
    pub(super) theirs: Part,
    pub(super) layout: Layout,
}

impl Piece {
    /// Copies from the foreign tensor into ours.
    pub(super) fn copy_in(&self, theirs: &Tensor, ours: &Tensor) -> Result<()> {
        self.copy(&self.theirs.of(theirs)?, self.ours.of(ours)?)
    }

    /// Copies from ours into the foreign tensor.
    pub(super) fn copy_out(&self, ours: &Tensor, theirs: &Tensor) -> Result<()> {
        self.copy(&self.ours.of(ours)?, self.theirs.of(theirs)?)
    }

    fn copy(&self, from: &Tensor, mut to: Tensor) -> Result<()> {
        let from = match self.layout {
            Layout::Same => from.shallow_clone(),
            Layout::Transposed => from.f_transpose(0, 1)?,
        };
        to.f_copy_(&from.f_reshape(to.size())?)?;
        Ok(())
    }
}

/// What a foreign tensor is to the model.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Role {
    /// It holds parameters.
    Weights,
    /// It repeats another one (a tied head that is stored all the same): checked when it is there, never written.
    CopyOf(String),
    /// The foreign class has it and nothing reads it: accepted, and written with this value.
    Idle(f64),
    /// Older writers stored it and it follows from the configuration: accepted, never written.
    Derived,
}

/// A tensor of the foreign model.
#[derive(Debug, Clone)]
pub(super) struct ForeignTensor {
    pub(super) name: String,
    pub(super) shape: Vec<i64>,
    pub(super) role: Role,
}

/// The table between the parameters of one model and the tensors of a format. Built by a format's
/// [`mapping`](super::WeightFormat::mapping), foreign tensors in the order in which they shall be written.
#[derive(Debug, Clone)]
pub struct Mapping {
    ours: BTreeMap<String, Vec<i64>>,
    pub(super) theirs: Vec<ForeignTensor>,
    pieces: Vec<Piece>,
    problems: Vec<String>,
}

impl Mapping {
    /// An empty table for the parameters of a plan.
    pub fn new(plan: &ModelPlan) -> Self {
        let shape = |parameter: &ParameterPlan| (parameter.name.clone(), parameter.shape.clone());
        Self {
            ours: plan.parameters.iter().map(shape).collect(),
            theirs: Vec::new(),
            pieces: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// Whether the model has a parameter of that name.
    pub fn has(&self, name: &str) -> bool {
        self.ours.contains_key(name)
    }

    /// The shape of a parameter, if the model has it.
    pub fn shape(&self, name: &str) -> Option<&[i64]> {
        self.ours.get(name).map(Vec::as_slice)
    }

    /// A foreign tensor that is a part of ours, in the same shape.
    pub fn same(&mut self, ours: impl Into<Part>, theirs: impl Into<String>) {
        self.stacked([ours.into()], theirs);
    }

    /// A foreign tensor that is parts of ours, one under the other.
    pub fn stacked(&mut self, ours: impl IntoIterator<Item = Part>, theirs: impl Into<String>) {
        let (theirs, mut shape, mut pieces) = (theirs.into(), Vec::<i64>::new(), Vec::new());
        for part in ours {
            let Some(size) = self.size(&part) else { return };
            let start = shape.first().copied().unwrap_or_default();
            let rows = size.first().copied().unwrap_or(1);
            if shape.is_empty() {
                shape.clone_from(&size);
            } else if shape[1..] == size[1..] {
                shape[0] += rows;
            } else {
                self.problems
                    .push(format!("{theirs}: {size:?} of {} does not stand under {shape:?}", part.name));
                return;
            }
            pieces.push((part, start, rows));
        }
        let one = pieces.len() == 1;
        for (ours, start, rows) in pieces {
            let part = Part::whole(theirs.clone());
            let part = if one { part } else { part.rows(start, rows) };
            self.pieces.push(Piece { ours, theirs: part, layout: Layout::Same });
        }
        self.tensor(theirs, &shape, Role::Weights);
    }

    /// A foreign tensor that is a part of ours in another shape or orientation.
    pub fn shaped(
        &mut self,
        ours: impl Into<Part>,
        theirs: impl Into<String>,
        shape: &[i64],
        layout: Layout,
    ) {
        let (ours, theirs) = (ours.into(), theirs.into());
        self.pieces.push(Piece { ours, theirs: Part::whole(theirs.clone()), layout });
        self.tensor(theirs, shape, Role::Weights);
    }

    /// A foreign tensor whose parts are told by [`piece`](Self::piece).
    pub fn foreign(&mut self, theirs: impl Into<String>, shape: &[i64]) {
        self.tensor(theirs.into(), shape, Role::Weights);
    }

    /// A part of ours that is a part of a foreign tensor.
    pub fn piece(&mut self, ours: impl Into<Part>, theirs: impl Into<Part>, layout: Layout) {
        self.pieces.push(Piece { ours: ours.into(), theirs: theirs.into(), layout });
    }

    /// A foreign tensor that repeats another one (a tied head): when it is there it must be equal; it is not written.
    pub fn copy_of(&mut self, original: &str, theirs: impl Into<String>) {
        let theirs = theirs.into();
        match self.theirs.iter().find(|tensor| tensor.name == original).map(|tensor| tensor.shape.clone()) {
            Some(shape) => self.tensor(theirs, &shape, Role::CopyOf(original.to_owned())),
            None => {
                self.problems
                    .push(format!("{theirs} is a copy of {original}, which is not in the table yet"));
            }
        }
    }

    /// A foreign tensor that its class has and nothing reads: accepted, and written with `value` everywhere.
    pub fn idle(&mut self, theirs: impl Into<String>, shape: &[i64], value: f64) {
        self.tensor(theirs.into(), shape, Role::Idle(value));
    }

    /// A foreign tensor that older writers stored though it follows from the configuration: accepted, not written.
    pub fn derived(&mut self, theirs: impl Into<String>, shape: &[i64]) {
        self.tensor(theirs.into(), shape, Role::Derived);
    }

    fn tensor(&mut self, name: String, shape: &[i64], role: Role) {
        self.theirs.push(ForeignTensor { name, shape: shape.to_vec(), role });
    }

    /// The shape of a part of ours.
    fn size(&mut self, part: &Part) -> Option<Vec<i64>> {
        let Some(shape) = self.ours.get(&part.name) else {
            self.problems.push(format!("the model has no parameter {}", part.name));
            return None;
        };
        let size = part.extents(shape).map(|extents| extents.into_iter().map(|(_, length)| length).collect());
        if size.is_none() {
            self.problems.push(format!("{:?} leaves {}, which is {shape:?}", part.cuts, part.name));
        }
        size
    }

    /// The pieces of each foreign tensor.
    pub(super) fn pieces(&self) -> BTreeMap<&str, Vec<&Piece>> {
        let mut pieces = BTreeMap::<&str, Vec<&Piece>>::new();
        for piece in &self.pieces {
            pieces.entry(&piece.theirs.name).or_default().push(piece);
        }
        pieces
    }

    /// Foreign tensors (gradients, say) as tensors of our parameters; a parameter of which a part is absent is left out.
    ///
    /// # Errors
    /// When libtorch refuses, or a tensor has not the shape that the table says.
    pub fn translate(&self, theirs: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
        let mut ours = BTreeMap::new();
        for (name, shape) in &self.ours {
            let pieces = self.pieces.iter().filter(|piece| piece.ours.name == *name);
            let sources: Option<Vec<_>> =
                pieces.map(|piece| Some((piece, theirs.get(&piece.theirs.name)?))).collect();
            let Some([(first, source), rest @ ..]) = sources.as_deref() else { continue };
            let target = Tensor::f_empty(shape.as_slice(), (source.kind(), source.device()))?;
            for (piece, source) in std::iter::once(&(*first, *source)).chain(rest) {
                piece.copy_in(source, &target)?;
            }
            ours.insert(name.clone(), target);
        }
        Ok(ours)
    }

    /// Everything in which the table is no one-to-one map.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = self.problems.clone();
        let mut theirs = BTreeMap::new();
        for tensor in &self.theirs {
            if theirs.insert(tensor.name.clone(), tensor.shape.clone()).is_some() {
                problems.push(format!("the foreign tensor {} stands twice", tensor.name));
            }
        }
        let weights: BTreeMap<_, _> = self
            .theirs
            .iter()
            .filter(|tensor| tensor.role == Role::Weights)
            .map(|tensor| (tensor.name.clone(), tensor.shape.clone()))
            .collect();
        problems.extend(uncovered(&self.ours, self.pieces.iter().map(|piece| &piece.ours), "parameter"));
        problems.extend(uncovered(&weights, self.pieces.iter().map(|piece| &piece.theirs), "foreign tensor"));
        for piece in &self.pieces {
            let sizes = (self.ours.get(&piece.ours.name), weights.get(&piece.theirs.name));
            let (Some(ours), Some(theirs)) = sizes else { continue };
            let (Some(ours), Some(theirs)) = (piece.ours.extents(ours), piece.theirs.extents(theirs)) else {
                continue;
            };
            if !agree(&lengths(&ours), &lengths(&theirs), piece.layout) {
                problems.push(format!(
                    "{} {:?} cannot be {} {:?} ({:?})",
                    piece.ours.name,
                    lengths(&ours),
                    piece.theirs.name,
                    lengths(&theirs),
                    piece.layout
                ));
            }
        }
        problems
    }
}

fn lengths(extents: &[(i64, i64)]) -> Vec<i64> {
    extents.iter().map(|(_, length)| *length).collect()
}

/// Whether boxes of these sizes can hold the same elements.
fn agree(ours: &[i64], theirs: &[i64], layout: Layout) -> bool {
    let plain = |sizes: &[i64]| sizes.iter().copied().filter(|&size| size != 1).collect::<Vec<_>>();
    match layout {
        Layout::Same => plain(ours) == plain(theirs),
        Layout::Transposed => {
            ours.len() == 2 && theirs.len() == 2 && ours[0] == theirs[1] && ours[1] == theirs[0]
        }
    }
}

/// Tensors whose elements do not belong to exactly one box each.
fn uncovered<'a>(
    tensors: &BTreeMap<String, Vec<i64>>,
    parts: impl Iterator<Item = &'a Part>,
    what: &str,
) -> Vec<String> {
    let (mut problems, mut boxes) = (Vec::new(), BTreeMap::<&str, Vec<Vec<(i64, i64)>>>::new());
    for part in parts {
        match tensors.get(&part.name).map(|shape| part.extents(shape)) {
            Some(Some(extents)) => boxes.entry(&part.name).or_default().push(extents),
            Some(None) => problems.push(format!("{:?} leaves the {what} {}", part.cuts, part.name)),
            None => problems.push(format!("there is no {what} {}", part.name)),
        }
    }
    for (name, shape) in tensors {
        let boxes = boxes.remove(name.as_str()).unwrap_or_default();
        let volume = |extents: &[(i64, i64)]| extents.iter().map(|(_, length)| length).product::<i64>();
        let covered: i64 = boxes.iter().map(|extents| volume(extents)).sum();
        let overlap = |a: &[(i64, i64)], b: &[(i64, i64)]| {
            a.iter().zip(b).all(|(a, b)| a.0 < b.0 + b.1 && b.0 < a.0 + a.1)
        };
        let overlapping = boxes.iter().enumerate().any(|(i, a)| boxes[..i].iter().any(|b| overlap(a, b)));
        if boxes.is_empty() {
            problems.push(format!("the {what} {name} has no counterpart"));
        } else if overlapping || covered != shape.iter().product::<i64>() {
            problems.push(format!("the {what} {name} {shape:?} is not covered exactly once"));
        }
    }
    problems
}
