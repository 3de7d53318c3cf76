//! The code that is written.
//!
//! A function and a type live in different namespaces, so both have the name that the function had. The type is an `enum`
//! without variants, not a module: what is inside resolves names as the function did, also in the body of another function.
//!
//! Whether the function returns a `Result` is decided by its type, which only the compiler knows: `Probe::<R>::IS_RESULT` is a
//! constant, and `Returned<IS_RESULT>` says for both cases what a call returns (`src/attribute.rs` of the crate `dogpile`).
//! What the type looks like decides only how the signature is written, for its readers; if the two do not fit, that is an error
//! of the compiler.

use proc_macro2::{Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Error, Ident, Result};

use crate::arguments::Arguments;
use crate::function::{Function, Looks};

pub(crate) fn expand(arguments: TokenStream, item: &TokenStream) -> TokenStream {
    let (arguments, function) = (syn::parse2(arguments), syn::parse2(item.clone()));
    let written = match (arguments, function) {
        (Ok(arguments), Ok(function)) => write(&arguments, &function),
        (Err(error), Ok(_)) | (Ok(_), Err(error)) => Err(error),
        (Err(mut errors), Err(error)) => {
            errors.combine(error);
            Err(errors)
        }
    };
    written.unwrap_or_else(|error| refused(&error, item))
}

/// The function stays there as it was written, so that the only error is this one.
fn refused(error: &Error, item: &TokenStream) -> TokenStream {
    let error = error.to_compile_error();
    quote!(#error #item)
}

const HIDDEN: &str = "this type is a `Result` under another name: write it as `Result<Value, Error>`";

/// How the signatures are written.
struct Signatures {
    /// Of the function.
    call: TokenStream,
    /// Of `with`, where `__R` is what the closure returns.
    with: TokenStream,
    /// The type of the value.
    value: TokenStream,
    /// `true`, `false`, or a constant expression.
    is_result: TokenStream,
    /// The type is not what it looks like: an error of the compiler.
    check: TokenStream,
}

impl Signatures {
    fn of(function: &Function) -> Self {
        let returns = &function.returns;
        let span = returns.span();
        let probe = quote_spanned! {span=> {
            #[allow(unused_imports)] // not used where it is a `Result`
            use ::dogpile::__private::IsValue as _;
            ::dogpile::__private::Probe::<#returns>::IS_RESULT
        }};
        match Looks::of(returns) {
            Looks::Result(value) => Self {
                call: quote!(::core::result::Result<::std::sync::Arc<#value>, ::dogpile::RefreshError>),
                with: quote!(::core::result::Result<__R, ::dogpile::RefreshError>),
                value: quote!(#value),
                is_result: quote!(true),
                check: quote!(),
            },
            Looks::Value => Self {
                call: quote!(::std::sync::Arc<#returns>),
                with: quote!(__R),
                value: quote!(#returns),
                is_result: quote!(false),
                check: quote_spanned!(span=> const _: () = ::core::assert!(!#probe, #HIDDEN);),
            },
            Looks::Unclear => {
                let returned = quote_spanned!(span=> <#returns as ::dogpile::__private::Returned<#probe>>);
                Self {
                    call: quote!(#returned::Read),
                    with: quote!(#returned::With<__R>),
                    value: quote!(#returned::Value),
                    is_result: probe,
                    check: quote!(),
                }
            }
        }
    }
}

fn write(arguments: &Arguments, function: &Function) -> Result<TokenStream> {
    let Function { attributes, vis, name, asyncness, fn_token, returns, body } = function;
    let (all, called, built) = (&attributes.all, &attributes.called, &attributes.built);
    let Signatures { call, with, value, is_result, check } = Signatures::of(function);
    let policy = &arguments.policy;
    let plain = name.unraw().to_string();
    let cell_name = arguments.name.clone().unwrap_or_else(|| {
        let name = format!("::{plain}");
        quote!(::core::concat!(::core::module_path!(), #name))
    });
    let span = returns.span();
    let returned = quote_spanned!(span=> <#returns as ::dogpile::__private::Returned<#is_result>>);

    let (is_async, read_method, with_method, wait) = match asyncness {
        Some(word) => {
            let needs = quote_spanned!(word.span()=> ::dogpile::__needs_async!{});
            (needs, "read_async", "with_async", quote!(.await))
        }
        None => (quote!(), "read", "with", quote!()),
    };
    // What the compiler says about a call is shown at the type.
    let (read_method, with_method) = (Ident::new(read_method, span), Ident::new(with_method, span));
    // An `async fn` cannot have the first one yet, and is not made smaller by the second one.
    let (track_caller, inline) = match asyncness {
        Some(_) => (quote!(), quote!(#[inline])),
        None => (quote!(#[track_caller]), quote!(#[inline(always)])),
    };

    let Ahead { begun, refresher } = Ahead::of(arguments, function, &value, &returned)?;
    // By way of the trait, so that a value that threads cannot share is one short message.
    let cell = quote_spanned!(span=> ::dogpile::DogpileCell<#returned::Value>);
    let about = format!("What belongs to the value of [`{plain}`](fn@{plain}).");
    // A type parameter is not hygienic: `__R` is a name that no return type has.
    let read = Ident::new("read", Span::mixed_site());
    let call_build = quote_spanned!(span=> #returned::#read_method(#begun(), #name::build) #wait);
    let with_build =
        quote_spanned!(span=> #returned::#with_method(Self::reader(), #begun, Self::build, #read) #wait);
    // In an `impl` block, where it cannot be, the message is shown at the name.
    let beside = quote_spanned! {name.span()=>
        #all
        #[doc = #about]
        #[allow(non_camel_case_types)]
        #vis enum #name {}
    };
    // Lints about the signature and the documentation: they are for the function that is called.
    let signature = quote!(
        clippy::missing_errors_doc,
        clippy::missing_panics_doc,
        clippy::missing_const_for_fn,
        clippy::must_use_candidate
    );
    Ok(quote! {
        #is_async

        #all
        #called
        #track_caller
        #vis #asyncness #fn_token #name() -> #call {
            #check
            #call_build
        }

        #beside

        #all
        impl #name {
            /// The function as it was written: makes a value, past the cell.
            #[allow(#signature)]
            #built
            #vis #asyncness #fn_token build() -> #returns #body
        }

        // Not the one above: what is allowed here is not allowed in the body.
        #all
        #[allow(dead_code, unreachable_pub, #signature, clippy::inline_always, clippy::type_complexity)]
        impl #name {
            /// The cell, for everything else.
            #[inline]
            #vis fn cell() -> &'static ::dogpile::DogpileCell<#value> {
                static CELL: #cell = ::dogpile::DogpileCell::with_policy(#policy).named(#cell_name);
                &CELL
            }

            /// Reads the value through the thread's own reader: the cheapest read.
            ///
            /// The thread keeps the value until its next read, until [`release`](Self::release), or until it ends.
            #track_caller
            #inline
            #vis #asyncness fn with<__R>(#read: impl ::core::ops::FnOnce(&#value) -> __R) -> #with {
                #with_build
            }

            /// Lets go of the value that this thread keeps for [`with`](Self::with).
            #vis fn release() {
                ::dogpile::__private::LocalReader::release(Self::reader());
            }

            /// Value, failures, retry pause and statistics are gone. For tests.
            #vis fn reset() {
                Self::release();
                Self::cell().reset();
            }

            #[inline]
            fn reader() -> &'static ::std::thread::LocalKey<::dogpile::__private::LocalReader<#value>> {
                ::std::thread_local! {
                    static READER: ::dogpile::__private::LocalReader<#value> =
                        const { ::dogpile::__private::LocalReader::new() };
                }
                &READER
            }

            #refresher
        }
    })
}

/// What starts the refresher.
struct Ahead {
    /// The function that returns the cell, with its refresher running.
    begun: TokenStream,
    /// Further functions of the type.
    refresher: TokenStream,
}

impl Ahead {
    fn of(
        arguments: &Arguments,
        function: &Function,
        value: &TokenStream,
        returned: &TokenStream,
    ) -> Result<Self> {
        let Function { name, vis, asyncness, .. } = function;
        let Some((ahead, span)) = &arguments.ahead else {
            return Ok(Self { begun: quote!(#name::cell), refresher: quote!() });
        };
        if asyncness.is_some() {
            let message = format!(
                "a refresher of an `async fn` is a task: start it where the executor is known, with \
                 `Refresher::spawn_async({name}::cell(), ahead, tokio::spawn, |_| {name}::build())`"
            );
            return Err(Error::new(*span, message));
        }
        let refresher = quote! {
            /// What rebuilds the value ahead of its end. `None`: nothing was read yet, or no thread could be started.
            #vis fn refresher() -> ::core::option::Option<&'static ::dogpile::Refresher> {
                Self::ahead().get()
            }

            fn ahead() -> &'static ::dogpile::__private::Ahead {
                static AHEAD: ::dogpile::__private::Ahead = ::dogpile::__private::Ahead::new();
                &AHEAD
            }

            #[inline]
            fn begun() -> &'static ::dogpile::DogpileCell<#value> {
                Self::ahead().start(|| #returned::refresher(Self::cell(), #ahead, Self::build));
                Self::cell()
            }
        };
        Ok(Self { begun: quote!(#name::begun), refresher })
    }
}
