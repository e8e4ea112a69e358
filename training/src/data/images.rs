//! Images with a class each.

use std::{fmt::Debug, ops::Range, sync::Arc};

use tch::{Device, Tensor};

use super::{DataError, Fingerprint, Recordable, Samples, Weighted, to_device};

/// Where images come from: made or read, by index, the same for ever.
pub trait ImageSource: Debug + Send + Sync {
    /// Writes image `index` into `pixels`, `[channels, height, width]` row by row, and returns its class.
    ///
    /// # Errors
    /// When it cannot be read.
    fn image(&self, index: u64, pixels: &mut [f32]) -> Result<i64, DataError>;
}

/// The shape of every image of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageShape {
    /// 1 for grey, 3 for colour.
    pub channels: i64,
    /// Rows of pixels.
    pub height: i64,
    /// Pixels of a row.
    pub width: i64,
}

impl ImageShape {
    /// Numbers of one image.
    pub fn pixels(self) -> i64 {
        self.channels * self.height * self.width
    }
}

/// A set of images: what a `dataset` of images gives. The three splits are ranges of indices of one source.
#[derive(Debug, Clone)]
pub struct Images {
    /// Where they come from.
    pub source: Arc<dyn ImageSource>,
    /// Their shape.
    pub shape: ImageShape,
    /// What each class is called.
    pub classes: Vec<String>,
    /// To learn from.
    pub train: Range<u64>,
    /// To choose a model by.
    pub validation: Range<u64>,
    /// To measure it on in the end.
    pub test: Range<u64>,
    /// What decides the images.
    pub fingerprint: Fingerprint,
}

impl Images {
    /// One of the splits.
    pub fn split(&self, range: &Range<u64>) -> ImageSplit {
        let (source, fingerprint) = (Arc::clone(&self.source), self.fingerprint.clone());
        ImageSplit { source, shape: self.shape, range: range.clone(), fingerprint }
    }
}

/// The images of one split.
#[derive(Debug, Clone)]
pub struct ImageSplit {
    source: Arc<dyn ImageSource>,
    shape: ImageShape,
    range: Range<u64>,
    fingerprint: Fingerprint,
}

/// Images and their classes.
#[derive(Debug)]
pub struct ImageBatch {
    /// `[batch, channels, height, width]`, `Float`.
    pub images: Tensor,
    /// `[batch]`, `Int64`.
    pub classes: Tensor,
}

impl Weighted for ImageBatch {
    const TARGETS: &'static str = "images";

    fn target_tokens(&self) -> i64 {
        self.classes.size()[0]
    }
}

impl Recordable for ImageBatch {
    fn tensors(&self) -> Vec<&Tensor> {
        vec![&self.images, &self.classes]
    }

    fn with_tensors(&self, tensors: Vec<Tensor>) -> Self {
        let mut tensors = tensors.into_iter();
        let mut next = |mine: &Tensor| tensors.next().unwrap_or_else(|| mine.shallow_clone());
        Self { images: next(&self.images), classes: next(&self.classes) }
    }
}

impl Samples for ImageSplit {
    type Batch = ImageBatch;

    fn len(&self) -> u64 {
        self.range.end.saturating_sub(self.range.start)
    }

    fn batch(&self, indices: &[u64], device: Device) -> Result<ImageBatch, DataError> {
        let ImageShape { channels, height, width } = self.shape;
        let size = self.shape.pixels() as usize;
        let mut pixels = vec![0.0_f32; indices.len() * size];
        let mut classes = Vec::with_capacity(indices.len());
        for (&index, pixels) in indices.iter().zip(pixels.chunks_mut(size.max(1))) {
            classes.push(self.source.image(self.range.start + index, pixels)?);
        }
        let shape = [indices.len() as i64, channels, height, width];
        Ok(ImageBatch {
            images: to_device(&Tensor::f_from_slice(&pixels)?.f_view(shape)?, device)?,
            classes: to_device(&Tensor::f_from_slice(&classes)?, device)?,
        })
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint.clone()
    }
}
