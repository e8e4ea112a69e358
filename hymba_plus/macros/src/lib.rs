//! The `#[component_config]` attribute: what makes a struct or an enum a part of a recipe.
//!
//! It derives what every configuration needs (serde, JSON schema, `Debug`, `Clone`, `PartialEq`), refuses unknown
//! keys, and turns `#[default(expression)]` on a field into a serde default that the schema shows too.

use proc_macro::TokenStream;
use quote::{format_ident, quote};
use syn::{Attribute, Fields, Item, ItemEnum, ItemStruct, parse_macro_input};

/// Makes a struct with named fields, or an enum of unit variants, usable in a recipe.
///
/// * Structs refuse unknown keys. A field without `#[default(...)]` that is not an `Option` is required.
/// * Enums are written in `snake_case`.
///
/// Doc comments become `--help`, the JSON schema and the reference page, so write them for a reader of YAML.
///
/// ```ignore
/// /// Linear attention with one learned decay per head.
/// #[component_config]
/// pub struct DecayAttention {
///     /// Number of heads.
///     #[schemars(range(min = 1))]
///     n_heads: i64,
///     /// Width of a key, per head.
///     #[default(64)]
///     head_dim: i64,
/// }
/// ```
#[proc_macro_attribute]
pub fn component_config(_arguments: TokenStream, item: TokenStream) -> TokenStream {
    match parse_macro_input!(item as Item) {
        Item::Struct(item) => config_struct(item),
        Item::Enum(item) => config_enum(&item),
        other => Err(syn::Error::new_spanned(other, "#[component_config] goes on a struct or an enum")),
    }
    .unwrap_or_else(syn::Error::into_compile_error)
    .into()
}

fn config_struct(mut item: ItemStruct) -> syn::Result<proc_macro2::TokenStream> {
    let name = item.ident.clone();
    let Fields::Named(fields) = &mut item.fields else {
        return Err(syn::Error::new_spanned(
            item,
            "#[component_config] needs named fields: they are the YAML keys",
        ));
    };
    let mut defaults = Vec::new();
    for field in &mut fields.named {
        let Some(position) = field.attrs.iter().position(is_default) else { continue };
        let attribute = field.attrs.remove(position);
        let value: syn::Expr = attribute.parse_args()?;
        let (ident, ty) = (field.ident.clone().unwrap_or_else(|| format_ident!("field")), &field.ty);
        let function = format_ident!("default_{}", ident);
        let path = format!("{name}::{function}");
        field.attrs.push(syn::parse_quote!(#[serde(default = #path)]));
        defaults.push(quote! {
            #[doc(hidden)]
            #[allow(clippy::unnecessary_wraps)] // an optional field may have a value by default
            fn #function() -> #ty { #value }
        });
    }
    let (impl_generics, type_generics, bounds) = item.generics.split_for_impl();
    let methods = quote! { impl #impl_generics #name #type_generics #bounds { #(#defaults)* } };
    Ok(quote! {
        #[derive(
            Debug, Clone, PartialEq,
            ::hymba_plus::serde::Serialize, ::hymba_plus::serde::Deserialize, ::hymba_plus::schemars::JsonSchema,
        )]
        #[serde(crate = "::hymba_plus::serde", deny_unknown_fields)]
        #[schemars(crate = "::hymba_plus::schemars")]
        #item
        #methods
    })
}

fn config_enum(item: &ItemEnum) -> syn::Result<proc_macro2::TokenStream> {
    if let Some(variant) = item.variants.iter().find(|variant| !matches!(variant.fields, Fields::Unit)) {
        return Err(syn::Error::new_spanned(variant, "#[component_config] enums list names only: no fields"));
    }
    Ok(quote! {
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq,
            ::hymba_plus::serde::Serialize, ::hymba_plus::serde::Deserialize, ::hymba_plus::schemars::JsonSchema,
        )]
        #[serde(crate = "::hymba_plus::serde", rename_all = "snake_case")]
        #[schemars(crate = "::hymba_plus::schemars")]
        #item
    })
}

fn is_default(attribute: &Attribute) -> bool {
    attribute.path().is_ident("default")
}
