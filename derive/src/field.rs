//! One field of a table. Key type: [`Field`].

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Error, GenericArgument, Ident, Path, PathArguments, Type};

/// A field, as far as the description needs it.
pub(crate) struct Field<'a> {
    field: &'a syn::Field,
    name: &'a Ident,
    kind: Kind,
}

enum Kind {
    Func { default: Option<Path> },
    Data,
}

impl<'a> Field<'a> {
    pub(crate) fn parse(field: &'a syn::Field) -> syn::Result<Self> {
        let name = (field.ident.as_ref())
            .ok_or_else(|| Error::new_spanned(field, "the members of a table have names"))?;
        let (mut is_func, mut default) = (is_function(&field.ty), None);
        for attr in field
            .attrs
            .iter()
            .filter(|attr| attr.path().is_ident("ops"))
        {
            attr.parse_nested_meta(|meta| {
                if meta.path.is_ident("default") {
                    default = Some(meta.value()?.parse::<Path>()?);
                } else if meta.path.is_ident("function") {
                    is_func = true;
                } else if meta.path.is_ident("data") {
                    is_func = false;
                } else {
                    return Err(meta.error("there are: default = path, function, data"));
                }
                Ok(())
            })?;
        }
        if !is_func && default.is_some() {
            let text = "data has no default: it is zero until a table says otherwise";
            return Err(Error::new_spanned(field, text));
        }
        let kind = match is_func {
            true => Kind::Func { default },
            false => Kind::Data,
        };
        Ok(Field { field, name, kind })
    }

    /// Its line in the struct of keys.
    pub(crate) fn key(&self, table: &Ident) -> TokenStream {
        let (vis, name, ty) = (&self.field.vis, self.name, &self.field.ty);
        let doc = format!("Key of `{name}`.");
        match &self.kind {
            Kind::Func { .. } => quote! {
                #[doc = #doc]
                #vis #name: ::rvbpf::struct_ops::MemberKey<
                    #table,
                    <#ty as ::rvbpf::struct_ops::FnField>::Fn,
                >
            },
            Kind::Data => quote! {
                #[doc = #doc]
                #vis #name: ::rvbpf::struct_ops::DataKey<#table, #ty>
            },
        }
    }

    /// The key itself.
    pub(crate) fn value(&self, index: usize) -> TokenStream {
        let name = self.name;
        match &self.kind {
            Kind::Func { .. } => quote! { #name: ::rvbpf::struct_ops::MemberKey::new(#index) },
            Kind::Data => quote! { #name: ::rvbpf::struct_ops::DataKey::new(#index) },
        }
    }

    /// Its line of the description.
    pub(crate) fn describe(&self, table: &Ident) -> TokenStream {
        let (name, ty) = (self.name, &self.field.ty);
        let text = name.to_string();
        let offset = quote! { ::core::mem::offset_of!(#table, #name) };
        match &self.kind {
            Kind::Func { default } => {
                let default = match default {
                    Some(path) => quote! { ::core::option::Option::Some(#path) },
                    None => quote! { ::core::option::Option::None },
                };
                quote! { to.function::<#ty>(#text, #offset, #default); }
            }
            Kind::Data => quote! { to.data::<#ty>(#text, #offset); },
        }
    }
}

/// A function pointer, or an `Option` of one, as far as the words show it.
fn is_function(ty: &Type) -> bool {
    match ty {
        Type::FnPtr(_) => true,
        Type::Paren(inner) => is_function(&inner.elem),
        Type::Group(inner) => is_function(&inner.elem),
        Type::Path(path) => {
            let Some(last) = path.path.segments.last() else {
                return false;
            };
            let PathArguments::AngleBracketed(args) = &last.arguments else {
                return false;
            };
            let of_func = |arg: &GenericArgument| match arg {
                GenericArgument::Type(ty) => is_function(ty),
                _ => false,
            };
            last.ident == "Option" && args.args.iter().any(of_func)
        }
        _ => false,
    }
}
