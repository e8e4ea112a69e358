//! Slots: the places in a recipe that a component fills.

/// A place that a component fills, as a type: `sequence_mixer`, `norm`, `optimizer`, ...
///
/// Made by [`define_slot!`](crate::define_slot); the type carries the slot's name and what its components are
/// once their configuration is read.
pub trait Slot: 'static {
    /// The name used in errors, `hymba components NAME` and the JSON schema.
    const NAME: &'static str;
    /// What every component of this slot can do: a trait object that its typed configuration turns into.
    type Object: ?Sized + 'static;
}

/// A slot as a row of a list: its name and what it is for.
#[derive(Debug, Clone, Copy)]
pub struct SlotInfo {
    /// The name, as in `hymba components NAME`.
    pub name: &'static str,
    /// One line on what goes there.
    pub doc: &'static str,
}

inventory::collect!(SlotInfo);

/// Declares a slot: `define_slot!(/** One line. */ norm: dyn NormSpec);`
///
/// Any crate may declare slots of its own; they are listed, validated and documented like the built-in ones.
#[macro_export]
macro_rules! define_slot {
    (#[doc = $doc:literal] $name:ident: $object:ty) => {
        #[doc = $doc]
        // Without values, so that a variable may have the slot's name.
        #[allow(non_camel_case_types)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {}
        impl $crate::registry::Slot for $name {
            const NAME: &'static str = stringify!($name);
            type Object = $object;
        }
        $crate::inventory::submit! {
            $crate::registry::SlotInfo { name: stringify!($name), doc: $doc }
        }
    };
}
