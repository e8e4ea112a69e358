//! `kind: shapes`: generated pictures of one shape each.

use std::{
    f64::consts::{PI, TAU},
    sync::Arc,
};

use hymba_plus::{component_config, register};

use super::{Counter, DataError, Dataset, Description, Fingerprint, ImageShape, ImageSource, Images};
use crate::slot::{DatasetSpec, Resolve, dataset};

/// Generated images of one filled shape each: where it stands, how large it is, how it is turned, how bright it is and
/// whether it is brighter or darker than its surroundings is random. All shapes have the same area, so neither a pixel
/// nor the mean of all says which it is. Every image is a function of the seed and its index; nothing is read.
#[component_config]
pub struct Shapes {
    /// The shapes, a class each.
    #[default(Shape::ALL.to_vec())]
    #[schemars(length(min = 2))]
    pub classes: Vec<Shape>,
    /// Height and width in pixels.
    #[default(32)]
    #[schemars(range(min = 8, max = 1024))]
    pub size: i64,
    /// 1 for grey, 3 for colour.
    #[default(1)]
    #[schemars(range(min = 1, max = 16))]
    pub channels: i64,
    /// Standard deviation of the noise of every pixel; shapes differ from their surroundings by 0.5 to 1.
    #[default(0.1)]
    #[schemars(range(min = 0.0, max = 10.0))]
    pub noise: f64,
    /// Images to learn from.
    #[default(8192)]
    #[schemars(range(min = 1))]
    pub train: u64,
    /// Images to choose a model by.
    #[default(1024)]
    pub validation: u64,
    /// Images to measure it on in the end.
    #[default(2048)]
    pub test: u64,
    /// Seed of the images; another one gives another set of the same kind.
    #[default(0)]
    pub seed: u64,
}

/// Shapes.
#[component_config]
pub enum Shape {
    /// A disc.
    Disc,
    /// A square.
    Square,
    /// A triangle with equal sides.
    Triangle,
    /// A cross with four equal arms.
    Cross,
    /// A ring.
    Ring,
    /// A star with five points.
    Star,
}

register!(dataset "shapes" => Shapes);

/// Radius of a disc of the same area, as a part of the image's size: smallest and largest.
const RADIUS: (f64, f64) = (0.15, 0.25);

impl Shape {
    /// Every shape.
    pub const ALL: [Self; 6] =
        [Self::Disc, Self::Square, Self::Triangle, Self::Cross, Self::Ring, Self::Star];

    /// Its name, as recipes write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Disc => "disc",
            Self::Square => "square",
            Self::Triangle => "triangle",
            Self::Cross => "cross",
            Self::Ring => "ring",
            Self::Star => "star",
        }
    }

    /// Distance of its farthest point from its middle, when its area is pi.
    fn reach(self) -> f64 {
        match self {
            Self::Disc => 1.0,
            Self::Square => (PI / 2.0).sqrt(),
            Self::Triangle => (4.0 * PI / 27.0_f64.sqrt()).sqrt(),
            Self::Cross => f64::hypot(CROSS, cross_width()),
            Self::Ring => RING,
            Self::Star => STAR,
        }
    }

    /// How far a point lies outside the shape of area pi around the origin; negative inside. The distance is exact up to
    /// corners, where it is at most the true one.
    fn distance(self, x: f64, y: f64) -> f64 {
        match self {
            Self::Disc => x.hypot(y) - 1.0,
            Self::Square => rectangle(x, y, PI.sqrt() / 2.0, PI.sqrt() / 2.0),
            Self::Triangle => polygon(x, y, 3, |_| self.reach()),
            Self::Cross => rectangle(x, y, CROSS, cross_width()).min(rectangle(x, y, cross_width(), CROSS)),
            // The inner circle leaves pi of the outer one's area.
            Self::Ring => {
                let distance = x.hypot(y);
                (distance - RING).max((RING * RING - 1.0).sqrt() - distance)
            }
            // Five points and five dents make ten triangles of area `outer * inner * sin(pi / 5) / 2`.
            Self::Star => {
                let dent = PI / (5.0 * STAR * (PI / 5.0).sin());
                polygon(x, y, 10, |corner| if corner % 2 == 0 { STAR } else { dent })
            }
        }
    }
}

/// Half the length of the cross.
const CROSS: f64 = 1.25;
/// Outer radius of the ring.
const RING: f64 = 1.25;
/// Outer radius of the star.
const STAR: f64 = 1.5;

/// Half the width of the cross's bars: `8 length width - 4 width^2 = pi`.
fn cross_width() -> f64 {
    CROSS - (CROSS * CROSS - PI / 4.0).sqrt()
}

fn rectangle(x: f64, y: f64, half_width: f64, half_height: f64) -> f64 {
    let (x, y) = (x.abs() - half_width, y.abs() - half_height);
    x.max(0.0).hypot(y.max(0.0)) + x.max(y).min(0.0)
}

/// Signed distance to a polygon whose corner `i` of `corners` lies at angle `i / corners` of a turn, `radius(i)` away.
fn polygon(x: f64, y: f64, corners: usize, radius: impl Fn(usize) -> f64) -> f64 {
    let corner = |i: usize| {
        let (sin, cos) = (TAU * i as f64 / corners as f64).sin_cos();
        (radius(i % corners) * cos, radius(i % corners) * sin)
    };
    let (mut nearest, mut inside) = (f64::INFINITY, false);
    for i in 0..corners {
        let ((ax, ay), (bx, by)) = (corner(i), corner(i + 1));
        let (ex, ey, px, py) = (bx - ax, by - ay, x - ax, y - ay);
        let along = ((px * ex + py * ey) / (ex * ex + ey * ey)).clamp(0.0, 1.0);
        nearest = nearest.min((px - ex * along).hypot(py - ey * along));
        // A ray to the right crosses this side: even and odd (Shimrat 1962).
        if (ay > y) != (by > y) && x < ax + ex * (y - ay) / ey {
            inside = !inside;
        }
    }
    if inside { -nearest } else { nearest }
}

impl Shapes {
    fn shape(&self) -> ImageShape {
        ImageShape { channels: self.channels, height: self.size, width: self.size }
    }
}

impl ImageSource for Shapes {
    fn image(&self, index: u64, pixels: &mut [f32]) -> Result<i64, DataError> {
        let mut random = Counter::new(self.seed, index);
        let class = random.below(self.classes.len());
        let shape = self.classes[class];
        let size = self.size as f64;
        let radius = size * random.uniform(RADIUS.0, RADIUS.1);
        let reach = (radius * shape.reach()).min(size / 2.0);
        let (x, y) = (random.uniform(reach, size - reach), random.uniform(reach, size - reach));
        let (sin, cos) = random.uniform(0.0, TAU).sin_cos();
        let sign = if random.unit() < 0.5 { -1.0 } else { 1.0 };
        let contrast = sign * random.uniform(0.5, 1.0);
        let plane = (self.size * self.size) as usize;
        for pixels in pixels.chunks_mut(plane) {
            // In colour, each channel has a background and a share of the contrast of its own.
            let background = random.uniform(-0.25, 0.25);
            let contrast = contrast * if self.channels == 1 { 1.0 } else { random.uniform(0.5, 1.0) };
            for (i, pixel) in pixels.iter_mut().enumerate() {
                let (dx, dy) =
                    ((i as i64 % self.size) as f64 + 0.5 - x, (i as i64 / self.size) as f64 + 0.5 - y);
                let (u, v) = ((dx * cos + dy * sin) / radius, (dy * cos - dx * sin) / radius);
                // A pixel on the edge is covered by about as much as its middle lies inside.
                let cover = (0.5 - radius * shape.distance(u, v)).clamp(0.0, 1.0);
                *pixel = (background + contrast * cover) as f32;
            }
            for pair in pixels.chunks_mut(2) {
                let (a, b) = random.normal_pair();
                for (pixel, noise) in pair.iter_mut().zip([a, b]) {
                    *pixel += (self.noise * noise) as f32;
                }
            }
        }
        Ok(class as i64)
    }
}

impl DatasetSpec for Shapes {
    fn describe(&self, _resolve: Resolve<'_>) -> Result<Description, DataError> {
        Ok(Description::Images { shape: self.shape(), classes: self.classes.len() as i64, test: self.test })
    }

    fn load(&self, _resolve: Resolve<'_>) -> Result<Dataset, DataError> {
        let (validation, test) = (self.train, self.train.saturating_add(self.validation));
        let settings = serde_json::to_string(self).unwrap_or_default();
        Ok(Dataset::Images(Images {
            source: Arc::new(self.clone()),
            shape: self.shape(),
            classes: self.classes.iter().map(|shape| shape.name().to_owned()).collect(),
            train: 0..validation,
            validation: validation..test,
            test: test..test.saturating_add(self.test),
            fingerprint: Fingerprint::default().with("shapes", settings),
        }))
    }

    fn holds_out(&self) -> bool {
        self.validation > 0
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;
    use crate::data::{ImageBatch, Samples};

    fn shapes(changes: serde_json::Value) -> Shapes {
        serde_json::from_value(changes).unwrap()
    }

    fn images(shapes: &Shapes) -> Images {
        match shapes.load(&|path| path.as_str().into()).unwrap() {
            Dataset::Images(images) => images,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_shape_has_area_pi_and_stays_within_its_reach() {
        let n = 1000;
        for shape in Shape::ALL {
            let step = 4.0 / n as f64;
            let (mut area, mut farthest) = (0.0, 0.0_f64);
            for i in 0..n * n {
                let (x, y) = ((i % n) as f64 * step - 2.0, (i / n) as f64 * step - 2.0);
                if shape.distance(x, y) < 0.0 {
                    area += step * step;
                    farthest = farthest.max(x.hypot(y));
                }
            }
            assert!((area - PI).abs() < 0.02, "{}: {area}", shape.name());
            let reach = shape.reach();
            assert!(farthest <= reach && farthest > reach - 0.05, "{}: {farthest} of {reach}", shape.name());
        }
    }

    #[test]
    fn an_image_depends_on_seed_and_index_alone() {
        let set = shapes(serde_json::json!({ "train": 10, "validation": 5, "test": 5, "channels": 3 }));
        let draw = |set: &Shapes, indices: &[u64]| {
            let images = images(set);
            images.split(&images.train).batch(indices, Device::Cpu).unwrap()
        };
        let (all, some) = (draw(&set, &[0, 1, 2, 3]), draw(&set, &[3, 1]));
        assert_eq!(all.images.size(), [4, 3, 32, 32]);
        assert_eq!(all.images.index_select(0, &Tensor::from_slice(&[3_i64, 1])), some.images);
        assert_ne!(draw(&Shapes { seed: 1, ..set.clone() }, &[3, 1]).images, some.images);
        let images = images(&set);
        let first = |range| images.split(range).batch(&[0], Device::Cpu).unwrap().images;
        assert_ne!(first(&images.validation), first(&images.test));
        assert_eq!(images.split(&images.test).len(), 5);
    }

    #[test]
    fn brightness_and_classes_are_balanced() {
        let set = shapes(serde_json::json!({ "train": 3000 }));
        let images = images(&set);
        let all: Vec<u64> = (0..3000).collect();
        let ImageBatch { images: pixels, classes } =
            images.split(&images.train).batch(&all, Device::Cpu).unwrap();
        let counts = classes.bincount::<Tensor>(None, 0);
        assert!(counts.min().int64_value(&[]) > 430, "{counts:?}");
        assert!(pixels.mean(Kind::Double).double_value(&[]).abs() < 0.01);
        // The mean brightness of an image says nothing of its class: the shapes have one area and both signs.
        let means = pixels.mean_dim([1_i64, 2, 3].as_slice(), false, Kind::Double);
        for class in 0..6 {
            let of_class = means.masked_select(&classes.eq(class));
            let (mean, std) =
                (of_class.mean(Kind::Double).double_value(&[]), of_class.std(true).double_value(&[]));
            assert!(mean.abs() < 0.03 && (std - 0.17).abs() < 0.03, "{class}: {mean} {std}");
        }
    }
}
