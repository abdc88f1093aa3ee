//! `#[derive(StructOps)]`: a C table of functions, described to rvbpf.
//!
//! One macro, used through the re-export `rvbpf::StructOps`; `rvbpf::struct_ops` says what it is
//! for. What it makes of a struct `Ops`:
//!
//! - `OpsMembers`, a struct with a key for each member, by which builders and links name it;
//! - `unsafe impl StructOps for Ops`, which lists each member with its offset and its type. Models
//!   of functions are made from the types, by the traits that they implement.
//!
//! Neighbours: `rvbpf::struct_ops` declares what is implemented here.

mod field;

use proc_macro::TokenStream;
use quote::{format_ident, quote};
use syn::{Data, DeriveInput, Error, Fields, parse_macro_input};

use field::Field;

/// Implements `StructOps` for a `#[repr(C)]` struct with named fields and no parameters.
///
/// A field is a member function if its type is `extern "C" fn(…)` or `unsafe extern "C" fn(…)`, or
/// an `Option` of one, which a table may leave out; everything else is data. Attributes:
///
/// | attribute | means |
/// | --- | --- |
/// | `#[ops(default = path)]` | tables that say nothing of the member have this function |
/// | `#[ops(function)]` | the type is another name of a function pointer's |
/// | `#[ops(data)]` | a function pointer that is no member: it is copied as it is |
///
/// ```
/// use std::ffi::{c_int, c_void};
///
/// extern "C" fn ignore(_: *mut c_void) {}
///
/// #[derive(rvbpf::StructOps)]
/// #[repr(C)]
/// pub struct Ops {
///     /// Must be there.
///     pub open: extern "C" fn(*mut c_void, c_int) -> c_int,
///     /// May be left out; C finds null in a pinned table then.
///     pub flush: Option<extern "C" fn(*mut c_void)>,
///     #[ops(default = ignore)]
///     pub close: extern "C" fn(*mut c_void),
///     pub flags: u32,
/// }
/// ```
///
/// ```compile_fail
/// #[derive(rvbpf::StructOps)]
/// struct NotC { f: extern "C" fn() }
/// ```
#[proc_macro_derive(StructOps, attributes(ops))]
pub fn struct_ops(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand(&input)
        .unwrap_or_else(Error::into_compile_error)
        .into()
}

fn expand(input: &DeriveInput) -> syn::Result<proc_macro2::TokenStream> {
    let Data::Struct(data) = &input.data else {
        return Err(Error::new_spanned(
            input,
            "a table of functions is a struct",
        ));
    };
    let Fields::Named(fields) = &data.fields else {
        return Err(Error::new_spanned(
            input,
            "the members of a table have names",
        ));
    };
    if !is_repr_c(input)? {
        let text = "C finds the members of a table in a `#[repr(C)]` struct";
        return Err(Error::new_spanned(&input.ident, text));
    }
    if !input.generics.params.is_empty() {
        let text = "a table of functions has one layout, and no parameters";
        return Err(Error::new_spanned(&input.generics, text));
    }
    let fields = fields.named.iter().map(Field::parse);
    let fields = fields.collect::<syn::Result<Vec<_>>>()?;
    Ok(generate(input, &fields))
}

fn generate(input: &DeriveInput, fields: &[Field<'_>]) -> proc_macro2::TokenStream {
    let (name, vis) = (&input.ident, &input.vis);
    let members = format_ident!("{name}Members");
    let doc = format!("Keys of the members of [`{name}`].");
    let keys = fields.iter().map(|field| field.key(name));
    let values = fields.iter().enumerate().map(|(i, field)| field.value(i));
    let lines = fields.iter().map(|field| field.describe(name));
    let text = name.to_string();
    quote! {
        #[doc = #doc]
        #[derive(Copy, Clone, Debug)]
        #vis struct #members { #(#keys),* }

        // SAFETY: 1. every field is listed once, with its own offset and type. 2. the struct is
        //    repr(C).
        #[allow(
            unsafe_code,
            clippy::undocumented_unsafe_blocks,
            reason = "this is the promise that the derive makes for its struct, argued for above"
        )]
        unsafe impl ::rvbpf::struct_ops::StructOps for #name {
            type Members = #members;
            const NAME: &'static str = #text;
            const MEMBERS: #members = #members { #(#values),* };

            fn describe(to: &mut ::rvbpf::struct_ops::Describe) {
                #(#lines)*
            }
        }
    }
}

/// Whether the struct is `#[repr(C)]`, with an alignment beside it perhaps.
fn is_repr_c(input: &DeriveInput) -> syn::Result<bool> {
    let mut is_c = false;
    for attr in input
        .attrs
        .iter()
        .filter(|attr| attr.path().is_ident("repr"))
    {
        attr.parse_nested_meta(|meta| {
            is_c |= meta.path.is_ident("C");
            if meta.input.peek(syn::token::Paren) {
                let content;
                syn::parenthesized!(content in meta.input);
                content.parse::<proc_macro2::TokenStream>()?;
            }
            Ok(())
        })?;
    }
    Ok(is_c)
}
