//! Patch embedding of images (Dosovitskiy et al. 2020, ViT, eq. 1).

use hymba_plus::prelude::*;

/// Images `[batch, channels, image_size, image_size]` to a token for each square of `patch_size` pixels, row by row from
/// the top: `weight patch + bias`, and a learned vector for each place.
#[component_config]
pub struct PatchEmbedding {
    /// Height and width of an image.
    #[schemars(range(min = 1, max = 65_536))]
    pub image_size: i64,
    /// Height and width of a patch, a divisor of `image_size`.
    #[schemars(range(min = 1, max = 65_536))]
    pub patch_size: i64,
    /// Channels of an image: 1 for grey, 3 for colour.
    #[default(3)]
    #[schemars(range(min = 1, max = 65_536))]
    pub channels: i64,
    /// Whether there is a learned vector for each place.
    #[default(true)]
    pub learned_positions: bool,
}

register!(embedding "patch" => PatchEmbedding);

impl Embedding for PatchEmbedding {
    fn plan(&self, plan: &mut ModulePlan) -> Result<(), Finding> {
        for (name, size) in
            [("channel", self.channels), ("height", self.image_size), ("width", self.image_size)]
        {
            plan.takes(name, size);
        }
        let side = plan.divide(self.image_size, self.patch_size, "patch_size", "patches along each side")?;
        let (d_model, std) = (plan.context.d_model, plan.context.initializer_range);
        let pixels = self.channels * self.patch_size * self.patch_size;
        // The bound of a linear map's default initialisation: a patch has few inputs, which a small std would drown.
        let init = Init::Uniform { bound: 1.0 / (pixels as f64).sqrt() };
        plan.parameter("weight", &[d_model, pixels], init);
        plan.flops_per_token(2 * d_model * pixels);
        plan.parameter("bias", &[d_model], Init::ZEROS).without_weight_decay();
        if self.learned_positions {
            plan.parameter("position", &[side * side, d_model], Init::Normal { std }).without_weight_decay();
        }
        plan.embedded = Some(Embedded { tokens: side * side, channels: self.channels });
        plan.output(d_model);
        Ok(())
    }

    fn forward(&self, parts: &Parts, images: &Tensor) -> Result<Tensor> {
        let (size, patch) = (self.image_size, self.patch_size);
        let expected = [self.channels, size, size];
        let shape = images.size();
        if shape.len() != 4 || shape[1..] != expected {
            let message = format!("images are [batch, {}, {size}, {size}], got {shape:?}", self.channels);
            return Err(Error::other(message));
        }
        let batch = shape[0];
        let (weight, side) = (parts.parameter("weight")?, size / patch);
        let patches = images
            .f_to_kind(weight.kind())?
            .f_reshape([batch, self.channels, side, patch, side, patch])?
            .f_permute([0, 2, 4, 1, 3, 5])?
            .f_reshape([batch, side * side, self.channels * patch * patch])?;
        let x = patches.f_linear(weight, Some(parts.parameter("bias")?))?;
        Ok(match parts.optional_parameter("position") {
            Some(position) => x.f_add(position)?,
            None => x,
        })
    }
}
