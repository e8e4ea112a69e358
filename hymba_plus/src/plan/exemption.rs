//! The laws of sequence mixers by name, and a component's word that it cannot keep one.

use std::fmt;

use serde::{Serialize, Serializer};

/// Declares the laws: variant, name, statement.
macro_rules! laws {
    ($($(#[$doc:meta])* $law:ident $name:literal $statement:literal;)*) => {
        /// A law that every sequence mixer keeps; `hymba conformance` proves each.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Law {
            $($(#[$doc])* $law,)*
        }

        impl Law {
            /// Every law, in the order in which they are proved.
            pub const ALL: &'static [Self] = &[$(Self::$law),*];

            /// The name that reports and exemptions use.
            pub fn name(self) -> &'static str {
                match self { $(Self::$law => $name,)* }
            }

            /// The law in a sentence.
            pub fn statement(self) -> &'static str {
                match self { $(Self::$law => $statement,)* }
            }
        }
    };
}

laws! {
    /// Width, type and shape of the output.
    OutputAsPlanned "output_as_planned"
        "the output is [batch, time, output_width] in the type of the inputs, for every length, 0 included";
    /// Names, types, shapes and growth of the state.
    StateAsPlanned "state_as_planned"
        "the state's tensors have the planned names, types and shapes, and grow as planned";
    /// Parameters and inputs all take part.
    ParametersAsPlanned "parameters_as_planned"
        "every planned parameter and input slice takes part in the output";
    /// Nothing is read from the future.
    Causality "causality"
        "an output depends on its own and earlier tokens, on no later one";
    /// How far back a token sees.
    Window "window"
        "with a window of W a token sees W text tokens, itself among them, and all meta tokens";
    /// Any split into calls.
    SplitInvariance "split_invariance"
        "a sequence in any calls, single tokens and empty calls among them, is the sequence in one call";
    /// Any batch.
    BatchInvariance "batch_invariance"
        "a row of a batch is that row alone";
    /// Padding anywhere.
    Padding "padding"
        "padding on the left, on the right or in the middle of a row, in any turn, changes nothing";
    /// Documents in one row.
    PackedDocuments "packed_documents"
        "documents in one row are each document alone from the initial state, and so are all gradients";
    /// Meta tokens as an initial state.
    MetaPrefix "meta_prefix"
        "meta tokens run once, with batch 1, are those tokens in front of every row, seen by every token";
    /// Keys and values of another layer.
    SharedKeys "shared_keys"
        "a consumer that reads a producer's keys and values is a mixer with those keys and values of its own";
    /// Beam search.
    StateSelection "state_selection"
        "going on from chosen rows of a state is going on with those rows";
    /// Nothing is written in place.
    StatesAreValues "states_are_values"
        "a call writes neither its states nor its inputs nor its parameters";
    /// Bytes out and in.
    SaveAndLoad "save_and_load"
        "parameters and state that were saved and loaded into a fresh module go on bit for bit";
    /// The same twice.
    Determinism "determinism"
        "the same call twice gives the same bits, gradients included";
    /// Slopes.
    Gradients "gradients"
        "gradients of inputs, parameters and state are the slopes that small steps measure, in fp64";
    /// Types.
    Precision "precision"
        "fp32 and bf16 are within their tolerance of fp64";
    /// Stubs.
    NeutralNone "neutral_none"
        "`none` has no parameters and no state, and adds nothing";
}

impl fmt::Display for Law {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Law {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A law that a component cannot keep, or keeps within an error only.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Exemption {
    /// The law.
    pub law: Law,
    /// Relative error within which it is kept all the same; none when nothing is promised.
    pub within: Option<f64>,
    /// Why, for the reader of a plan or a report.
    pub reason: String,
}

impl fmt::Display for Exemption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.within {
            Some(error) => write!(f, "{} within relative error {error:e}: {}", self.law, self.reason),
            None => write!(f, "{}: {}", self.law, self.reason),
        }
    }
}
