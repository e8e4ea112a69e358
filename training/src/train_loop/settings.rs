//! The keys of a training loop, written once for every stage that has one.

/// A configuration with the keys of a training loop beside its own, as one flat mapping, and `loop_config()`, which
/// gives the loop's part of it.
///
/// ```ignore
/// training::loop_settings! {
///     /// Trains on pairs.
///     pub struct Pairs {
///         /// How hard.
///         #[default(0.1)]
///         pub beta: f64,
///     }
/// }
/// ```
#[macro_export]
macro_rules! loop_settings {
    (@keys $(#[$meta:meta])* $visibility:vis struct $name:ident { $($own:tt)* }) => {
        $(#[$meta])*
        #[::hymba_plus::component_config]
        $visibility struct $name {
            /// Steps of the optimizer.
            #[schemars(range(min = 1))]
            pub steps: u64,
            /// Sequences or other examples per step, over all micro-batches.
            #[schemars(range(min = 1))]
            #[default(8)]
            pub batch_size: usize,
            /// Micro-batches that a step is cut into to save memory; it must divide `batch_size` and changes nothing
            /// else.
            #[schemars(range(min = 1))]
            #[default(1)]
            pub accumulation: usize,
            /// Largest norm of all gradients together; 0 leaves them as they are.
            #[schemars(range(min = 0.0))]
            #[default(1.0)]
            pub gradient_clip: f64,
            /// How gradients change parameters.
            #[default(::hymba_plus::registry::Component::of("adamw"))]
            pub optimizer: ::hymba_plus::registry::Component<$crate::slot::optimizer>,
            /// How the learning rate moves.
            #[default(::hymba_plus::registry::Component::of("cosine"))]
            pub schedule: ::hymba_plus::registry::Component<$crate::slot::schedule>,
            /// Steps between two evaluations; there is always one after the last step.
            #[schemars(range(min = 1))]
            pub evaluate_every: Option<u64>,
            /// Evaluate before the first step, too.
            #[default(true)]
            pub evaluate_at_start: bool,
            $($own)*
        }
    };
    ($(#[$meta:meta])* $visibility:vis struct $name:ident { $($own:tt)* }) => {
        $crate::loop_settings! { @keys $(#[$meta])* $visibility struct $name { $($own)* } }

        impl $name {
            /// The settings of the training loop.
            fn loop_config(&self) -> $crate::train_loop::LoopConfig {
                $crate::train_loop::LoopConfig {
                    steps: self.steps,
                    batch_size: self.batch_size,
                    accumulation: self.accumulation,
                    gradient_clip: self.gradient_clip,
                    optimizer: self.optimizer.clone(),
                    schedule: self.schedule.clone(),
                    evaluate_every: self.evaluate_every,
                    evaluate_at_start: self.evaluate_at_start,
                }
            }
        }
    };
}
