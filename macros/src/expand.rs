//! The code that is written.
//!
//! A function and a type live in different namespaces, so both have the name that the function had. The type is an `enum`
//! without variants, not a module: what is inside resolves names as the function did, also in the body of another function.
//!
//! Whether the function returns a `Result` is decided by its type, which only the compiler knows: `Probe::<R>::IS_RESULT` is a
//! constant, and `Returned<IS_RESULT>` says for both cases what a call returns (`src/attribute.rs` of the crate `dogpile`).
//! What the type looks like decides only how the signature is written, for its readers; if the two do not fit, that is an error
//! of the compiler.
//!
//! Names of items are not hygienic: a `static` beside an expression or a type of the user's hides what has its name there. Such
//! items have names that begin with `__DOGPILE`. Local names and parameters are hygienic, if their span is `mixed_site`, with
//! two exceptions: a constant of the user's turns a variable of its name into a pattern, and an argument of the user's clashes with a
//! parameter of its name. So these names begin with `__dogpile`.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Error, Ident, Result, Type};

use crate::arguments::Arguments;
use crate::function::{Function, Kept, Looks, Parameter};

/// Whose attribute it is.
#[derive(Clone, Copy)]
pub(crate) enum Home {
    /// The crate `dogpile`.
    Cell,
    /// The crate `dogpile-map`.
    Map,
}

impl Home {
    /// The path of the crate `dogpile`. The other one may be the only one that the user depends on.
    fn dogpile(self, span: Span) -> TokenStream {
        match self {
            Self::Cell => quote_spanned!(span=> ::dogpile),
            Self::Map => quote_spanned!(span=> ::dogpile_map::__private::dogpile),
        }
    }
}

pub(crate) fn expand(home: Home, arguments: TokenStream, item: &TokenStream) -> TokenStream {
    let (arguments, function) = (syn::parse2(arguments), syn::parse2(item.clone()));
    let written = match (arguments, function) {
        (Ok(arguments), Ok(function)) => Writer::new(home, &arguments, &function).and_then(|it| it.write()),
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
    /// Of `with`, where `__DogpileR` is what the closure returns.
    with: TokenStream,
    /// The type of the value.
    value: TokenStream,
    /// `true`, `false`, or a constant expression.
    is_result: TokenStream,
    /// The type is not what it looks like: an error of the compiler.
    check: TokenStream,
}

impl Signatures {
    fn of(function: &Function, home: Home) -> Self {
        let returns = &function.returns;
        let span = returns.span();
        let (dogpile, at_type) = (home.dogpile(Span::call_site()), home.dogpile(span));
        let private = quote_spanned!(span=> #at_type::__private);
        let probe = quote_spanned! {span=> {
            #[allow(unused_imports)] // not used where it is a `Result`
            use #private::IsValue as _;
            #private::Probe::<#returns>::IS_RESULT
        }};
        match Looks::of(returns) {
            Looks::Result(value) => Self {
                call: quote!(::core::result::Result<::std::sync::Arc<#value>, #dogpile::RefreshError>),
                with: quote!(::core::result::Result<__DogpileR, #dogpile::RefreshError>),
                value: quote!(#value),
                is_result: quote!(true),
                check: quote!(),
            },
            Looks::Value => Self {
                call: quote!(::std::sync::Arc<#returns>),
                with: quote!(__DogpileR),
                value: quote!(#returns),
                is_result: quote!(false),
                check: quote_spanned!(span=> const _: () = ::core::assert!(!#probe, #HIDDEN);),
            },
            Looks::Unclear => {
                let returned = quote_spanned!(span=> <#returns as #private::Returned<#probe>>);
                Self {
                    call: quote!(#returned::Read),
                    with: quote!(#returned::With<__DogpileR>),
                    value: quote!(#returned::Value),
                    is_result: probe,
                    check: quote!(),
                }
            }
        }
    }
}

/// The key of a function with arguments.
struct Key {
    /// Its type.
    kept: TokenStream,
    /// A reference to it, or to its borrowed form, made of the arguments.
    asked: TokenStream,
    /// The arguments, made of a reference `key` to it.
    given: TokenStream,
    /// The parameters, for callers.
    parameters: TokenStream,
    /// The arguments, handed on.
    passed: TokenStream,
}

impl Key {
    /// `span` is that of the function's name.
    fn of(parameters: &[Parameter], key: &Ident, span: Span) -> Self {
        let types = parameters.iter().map(kept_type);
        let names: Vec<&Ident> = parameters.iter().map(|parameter| &parameter.name).collect();
        let given_types = parameters.iter().map(|parameter| &parameter.given);
        let give = |parameter: &Parameter, part: TokenStream| match &parameter.kept {
            Kept::Given => quote!(::core::clone::Clone::clone(#part)),
            Kept::Owned(referred) => quote!(::core::borrow::Borrow::<#referred>::borrow(#part)),
        };
        let (kept, asked, given) = match parameters {
            [only] => {
                let name = &only.name;
                let asked = match only.kept {
                    Kept::Given => quote!(&#name),
                    Kept::Owned(_) => quote!(#name),
                };
                (quote!(#(#types)*), asked, give(only, quote!(#key)))
            }
            several => {
                let asked = several.iter().map(|Parameter { name, kept, .. }| match kept {
                    Kept::Given => quote!(#name),
                    Kept::Owned(referred) => quote!(<#referred as ::std::borrow::ToOwned>::to_owned(#name)),
                });
                let given = several.iter().enumerate().map(|(place, parameter)| {
                    let place = syn::Index::from(place);
                    give(parameter, quote!(&#key.#place))
                });
                (quote_spanned!(span=> (#(#types),*)), quote!(&(#(#asked),*)), quote!(#(#given),*))
            }
        };
        Self {
            kept,
            asked,
            given,
            parameters: quote!(#(#names: #given_types),*),
            passed: quote!(#(#names),*),
        }
    }
}

/// The type by which the key keeps it, as one would write it.
fn kept_type(Parameter { given, kept, .. }: &Parameter) -> TokenStream {
    let span = given.span();
    let Kept::Owned(referred) = kept else { return given.to_token_stream() };
    match &**referred {
        Type::Path(path) if path.path.is_ident("str") => quote_spanned!(span=> ::std::string::String),
        Type::Slice(slice) => {
            let element = &slice.elem;
            quote_spanned!(span=> ::std::vec::Vec<#element>)
        }
        referred => quote_spanned!(span=> <#referred as ::std::borrow::ToOwned>::Owned),
    }
}

/// What all parts of the code are made of.
struct Writer<'a> {
    home: Home,
    dogpile: TokenStream,
    arguments: &'a Arguments,
    function: &'a Function,
    /// Without `r#`.
    plain: String,
    signatures: Signatures,
    /// The type that is returned, with the trait that says what that means.
    returned: TokenStream,
    /// `.await`, or nothing.
    wait: TokenStream,
    /// A parameter beside the user's.
    read: Ident,
}

impl<'a> Writer<'a> {
    fn new(home: Home, arguments: &'a Arguments, function: &'a Function) -> Result<Self> {
        check(home, arguments, function)?;
        let signatures = Signatures::of(function, home);
        let (returns, is_result) = (&function.returns, &signatures.is_result);
        let dogpile = home.dogpile(returns.span());
        let returned =
            quote_spanned!(returns.span()=> <#returns as #dogpile::__private::Returned<#is_result>>);
        Ok(Self {
            plain: function.name.unraw().to_string(),
            wait: if function.asyncness.is_some() { quote!(.await) } else { quote!() },
            read: Ident::new("__dogpile_read", Span::mixed_site()),
            home,
            dogpile: home.dogpile(Span::call_site()),
            arguments,
            function,
            signatures,
            returned,
        })
    }

    /// The name of what stands beside the function.
    fn item(&self, what: &str) -> Ident {
        let span = self.function.name.span();
        if self.arguments.in_impl {
            format_ident!("{}_{what}", self.plain, span = span)
        } else {
            Ident::new(what, span)
        }
    }

    /// Its path.
    fn path(&self, what: &str) -> TokenStream {
        let item = self.item(what);
        if self.arguments.in_impl {
            quote!(Self::#item)
        } else {
            let name = &self.function.name;
            quote!(#name::#item)
        }
    }

    /// Of the documentation: a link to it.
    fn link(&self, what: &str) -> String {
        let item = self.item(what);
        format!("[`{item}`](Self::{item})")
    }

    /// A method of a trait. What the compiler says about a call is shown at the type.
    fn method(&self, of: &str) -> Ident {
        let suffix = if self.function.asyncness.is_some() { "_async" } else { "" };
        let spawned = if self.arguments.spawn.is_some() { "_spawned" } else { "" };
        format_ident!("{of}{spawned}{suffix}", span = self.function.returns.span())
    }

    /// An argument, with its comma. By way of a function that takes nothing else, so that a spawner of another kind is one
    /// message, at the setting.
    fn spawner(&self) -> Option<TokenStream> {
        let kind = if self.function.asyncness.is_some() { "spawns_tasks" } else { "spawns_jobs" };
        self.arguments.spawn.as_ref().map(|spawn| {
            let (dogpile, kind) = (self.home.dogpile(spawn.span()), Ident::new(kind, spawn.span()));
            let wrapped = quote_spanned!(spawn.span()=> #dogpile::__private::#kind(#spawn));
            quote!(#wrapped,)
        })
    }

    /// The name of the cell or the map.
    fn label(&self) -> TokenStream {
        self.arguments.name.clone().unwrap_or_else(|| {
            let name = format!("::{}", self.plain);
            quote!(::core::concat!(::core::module_path!(), #name))
        })
    }

    fn write(&self) -> Result<TokenStream> {
        if self.function.parameters.is_empty() { self.write_cell() } else { Ok(self.write_map()) }
    }

    /// What a function consists of, whatever its value is kept in: itself, with these parameters and this body, and beside it
    /// itself as it was written, and `beside`.
    fn assemble(&self, parameters: &TokenStream, body: &TokenStream, beside: &TokenStream) -> TokenStream {
        let Function { attributes, vis, name, asyncness, fn_token, inputs, returns, body: written, .. } =
            self.function;
        let (all, called, built) = (&attributes.all, &attributes.called, &attributes.built);
        let Signatures { call, check, .. } = &self.signatures;
        let (body, not_generic, track_caller) =
            (self.if_async(body), self.not_generic(), self.track_caller());
        let (build_name, allowed) = (self.item("build"), lints_of_all());
        // The arguments are used by reference where the map allows it.
        let of_arguments = (!parameters.is_empty()).then(|| {
            let lints = lints_of_arguments();
            quote!(#[allow(#lints)])
        });
        let signature = lints_of_signatures();
        let called_function = quote! {
            #all
            #called
            #track_caller
            #of_arguments
            #vis #asyncness #fn_token #name(#parameters) -> #call {
                #not_generic
                #check
                #body
            }
        };
        let built_function = quote! {
            /// The function as it was written: makes a value, and keeps it nowhere.
            #[allow(#signature)]
            #built
            #vis #asyncness #fn_token #build_name(#inputs) -> #returns #written
        };
        if self.arguments.in_impl {
            return quote! {
                #called_function

                #all
                #[allow(dead_code)]
                #built_function

                #beside
            };
        }
        let type_lints = lints_of_types();
        let about = format!("What belongs to the value of [`{0}`](fn@{0}).", self.plain);
        // In an `impl` block, where it cannot be, the message is shown at the name.
        let its_type = quote_spanned! {name.span()=>
            #all
            #[doc = #about]
            #[allow(#type_lints)]
            #vis enum #name {}
        };
        quote! {
            #called_function

            #its_type

            #all
            impl #name {
                #built_function
            }

            // Not the one above: what is allowed here is not allowed in the body.
            #all
            #[allow(#allowed)]
            impl #name {
                #beside
            }
        }
    }

    /// The body; of an `async fn`, an error of the compiler if the feature `async` is missing.
    fn if_async(&self, body: &TokenStream) -> TokenStream {
        let Some(asyncness) = self.function.asyncness else { return body.clone() };
        let span = asyncness.span();
        // A function without arguments needs nothing of the map.
        let home = match self.home {
            Home::Map if !self.function.parameters.is_empty() => quote_spanned!(span=> ::dogpile_map),
            home => home.dogpile(span),
        };
        quote_spanned!(span=> #home::__async_body!(#body))
    }

    /// An error of the compiler in a generic `impl` block: a `static` in a method is one for all of its types.
    fn not_generic(&self) -> Option<TokenStream> {
        self.arguments.in_impl.then(|| {
            quote_spanned! {self.function.name.span()=>
                let _: [(); { let _: ::core::option::Option<*const Self> = ::core::option::Option::None; 0 }] = [];
            }
        })
    }

    /// An `async fn` cannot have it yet.
    fn track_caller(&self) -> TokenStream {
        if self.function.asyncness.is_some() { quote!() } else { quote!(#[track_caller]) }
    }

    /// In an `impl` block, what the type beside a function has for all of its functions.
    fn attributes(&self) -> Option<TokenStream> {
        self.arguments.in_impl.then(|| {
            let (all, allowed) = (&self.function.attributes.all, lints_of_all());
            quote!(#all #[allow(#allowed)])
        })
    }

    /// One value, in a cell.
    fn write_cell(&self) -> Result<TokenStream> {
        let Function { vis, asyncness, returns, .. } = self.function;
        let Signatures { with, value, .. } = &self.signatures;
        let Self { dogpile, returned, wait, read, .. } = self;
        let span = returns.span();
        let (policy, label) = (&self.arguments.policy, self.label());
        let (cell, build, reader, release) =
            (self.path("cell"), self.path("build"), self.path("reader"), self.path("release"));
        let [cell_item, with_item, reader_item, release_item, reset_item] =
            ["cell", "with", "reader", "release", "reset"].map(|what| self.item(what));
        let Ahead { begun, refresher } = self.ahead()?;
        let (read_method, spawner, name) = (self.method("read"), self.spawner(), self.called());
        let body = quote_spanned!(span=> #returned::#read_method(#begun(), #spawner #build) #wait);
        let with_body = if asyncness.is_some() {
            quote_spanned!(span=> #returned::with_async(#reader(), #begun, #name, #read).await)
        } else {
            let method = self.method("with");
            quote_spanned!(span=> #returned::#method(#reader(), #begun, #spawner #build, #read))
        };
        // By way of the trait, so that a value that threads cannot share is one short message.
        let at_type = self.home.dogpile(span);
        let cell_type = quote_spanned!(span=> #at_type::DogpileCell<#returned::Value>);
        // An `async fn` is not made smaller by it.
        let inline = if asyncness.is_some() { quote!(#[inline]) } else { quote!(#[inline(always)]) };
        let (track_caller, attributes) = (self.track_caller(), self.attributes());
        let about_with = format!(
            "The thread keeps the value until its next read, until {}, or until it ends.",
            self.link("release")
        );
        let about_release = format!("Lets go of the value that this thread keeps for {}.", self.link("with"));
        Ok(self.assemble(
            &quote!(),
            &body,
            &quote! {
                /// The cell, for everything else.
                #attributes
                #[inline]
                #vis fn #cell_item() -> &'static #dogpile::DogpileCell<#value> {
                    static __DOGPILE_CELL: #cell_type =
                        #dogpile::DogpileCell::with_policy(#dogpile::Policy::#policy).named(#label);
                    &__DOGPILE_CELL
                }

                /// Reads the value through the thread's own reader: the cheapest read.
                ///
                #[doc = #about_with]
                #attributes
                #track_caller
                #inline
                // A type parameter is not hygienic: `__DogpileR` is a name that no return type has.
                #vis #asyncness fn #with_item<__DogpileR>(#read: impl ::core::ops::FnOnce(&#value) -> __DogpileR) -> #with {
                    #with_body
                }

                #[doc = #about_release]
                #attributes
                #vis fn #release_item() {
                    #reader().release();
                }

                /// Value, failures, retry pause and statistics are gone. For tests.
                #attributes
                #vis fn #reset_item() {
                    #release();
                    #cell().reset();
                }

                #attributes
                #[inline]
                fn #reader_item() -> #dogpile::__private::LocalReader<#value> {
                    #dogpile::__local_reader!(#value)
                }

                #refresher
            },
        ))
    }

    /// The path of the function that is called.
    fn called(&self) -> TokenStream {
        let name = &self.function.name;
        if self.arguments.in_impl { quote!(Self::#name) } else { quote!(#name) }
    }

    /// A value for each combination of arguments, in a map.
    fn write_map(&self) -> TokenStream {
        let Function { vis, asyncness, returns, parameters, .. } = self.function;
        let Signatures { with, value, is_result, .. } = &self.signatures;
        let Self { dogpile, returned, wait, read, .. } = self;
        let span = returns.span();
        let (policy, label) = (&self.arguments.policy, self.label());
        let max_entries = self.arguments.max_entries.as_ref().map(|(entries, _)| entries);
        let (map, build) = (self.path("map"), self.path("build"));
        let [map_item, with_item, reset_item] = ["map", "with", "reset"].map(|what| self.item(what));
        // What the compiler says about a key is shown at the function's name, as the span of all arguments cannot be had.
        let at_name = self.function.name.span();
        let key_name = Ident::new("__dogpile_key", Span::mixed_site());
        let Key { kept, asked, given, parameters, passed } = &Key::of(parameters, &key_name, at_name);
        let (read_method, spawner, name) = (self.method("read"), self.spawner(), self.called());
        let build = match (asyncness, &spawner) {
            (None, _) => quote!(|#key_name| #build(#given)),
            (Some(_), None) => quote!(async |#key_name| #build(#given).await),
            // The future owns the key.
            (Some(_), Some(_)) => quote!(|#key_name| async move {
                let #key_name = &#key_name;
                #build(#given).await
            }),
        };
        let body = quote_spanned! {span=>
            <#returns as ::dogpile_map::__private::Keyed<#is_result>>::#read_method(#map(), #asked, #spawner #build) #wait
        };
        let with_body = quote_spanned!(span=> #returned::look(#name(#passed) #wait, #read));
        let map_type = quote_spanned!(at_name=> ::dogpile_map::DogpileMap<#kept, #returned::Value>);
        let (new, reset) = (
            quote_spanned!(at_name=> ::dogpile_map::__private::new::<#kept, #returned::Value>),
            quote_spanned!(at_name=> ::dogpile_map::__private::reset::<#kept, #returned::Value>),
        );
        let (track_caller, attributes) = (self.track_caller(), self.attributes());
        self.assemble(
            parameters,
            &body,
            &quote! {
                /// The map, for everything else.
                #attributes
                #vis fn #map_item() -> &'static ::dogpile_map::DogpileMap<#kept, #value> {
                    static __DOGPILE_MAP: ::std::sync::LazyLock<#map_type> = ::std::sync::LazyLock::new(|| {
                        #new(const { #dogpile::Policy::#policy }, #max_entries, #label)
                    });
                    &__DOGPILE_MAP
                }

                /// As a call, for a look at the value.
                #attributes
                #track_caller
                // A type parameter is not hygienic: `__DogpileR` is a name that no type of the user's has.
                #vis #asyncness fn #with_item<__DogpileR>(
                    #parameters,
                    #read: impl ::core::ops::FnOnce(&#value) -> __DogpileR,
                ) -> #with {
                    #with_body
                }

                /// All values, failures, retry pauses and statistics are gone. For tests.
                #attributes
                #vis fn #reset_item() {
                    #reset(#map());
                }
            },
        )
    }

    fn ahead(&self) -> Result<Ahead> {
        let Function { vis, asyncness, .. } = self.function;
        let (cell, build) = (self.path("cell"), self.path("build"));
        let Some((ahead, span)) = &self.arguments.ahead else {
            return Ok(Ahead { begun: cell, refresher: quote!() });
        };
        if asyncness.is_some() {
            let message = format!(
                "a refresher of an `async fn` is a task: start it where the executor is known, with \
                 `Refresher::spawn_async({cell}(), ahead, tokio::spawn, |_| {build}())`",
                cell = unspaced(&cell),
                build = unspaced(&build),
            );
            return Err(Error::new(*span, message));
        }
        let dogpile = &self.dogpile;
        let value = &self.signatures.value;
        let ([refresher_item, ahead_item, begun_item], attributes) =
            (["refresher", "ahead", "begun"].map(|what| self.item(what)), self.attributes());
        let (its_ahead, begun) = (self.path("ahead"), self.path("begun"));
        let its_type = quote!(::std::sync::OnceLock<::core::option::Option<#dogpile::Refresher>>);
        let refresher = quote! {
            /// What rebuilds the value ahead of its end. `None`: nothing was read yet, or no thread could be started.
            #attributes
            #vis fn #refresher_item() -> ::core::option::Option<&'static #dogpile::Refresher> {
                #its_ahead().get()?.as_ref()
            }

            #attributes
            fn #ahead_item() -> &'static #its_type {
                static __DOGPILE_AHEAD: #its_type = ::std::sync::OnceLock::new();
                &__DOGPILE_AHEAD
            }

            // The first call starts it. Where no thread can be started, callers build.
            #attributes
            #[inline]
            fn #begun_item() -> &'static #dogpile::DogpileCell<#value> {
                #its_ahead().get_or_init(|| #dogpile::Refresher::spawn(#cell(), #ahead, |_| #build()).ok());
                #cell()
            }
        };
        Ok(Ahead { begun, refresher })
    }
}

/// About the signature and the documentation: they are for the function that is called.
fn lints_of_signatures() -> TokenStream {
    quote! {
        clippy::missing_errors_doc,
        clippy::missing_panics_doc,
        clippy::missing_const_for_fn,
        clippy::must_use_candidate
    }
}

/// About arguments: they are for the function as it was written.
fn lints_of_arguments() -> TokenStream {
    quote! {
        clippy::needless_pass_by_value,
        clippy::ptr_arg,
        clippy::trivially_copy_pass_by_ref,
        clippy::used_underscore_binding
    }
}

/// About the type of a function's name.
fn lints_of_types() -> TokenStream {
    quote! {
        missing_copy_implementations,
        missing_debug_implementations,
        non_camel_case_types,
        clippy::exhaustive_enums
    }
}

/// About what stands beside a function. It may call the function, which may be deprecated.
fn lints_of_all() -> TokenStream {
    let (signatures, arguments) = (lints_of_signatures(), lints_of_arguments());
    quote! {
        dead_code,
        deprecated,
        unreachable_pub,
        clippy::inline_always,
        clippy::too_many_arguments,
        clippy::type_complexity,
        #signatures,
        #arguments
    }
}

/// As one would write it.
fn unspaced(tokens: &TokenStream) -> String {
    tokens.to_string().replace(' ', "")
}

/// What starts the refresher.
struct Ahead {
    /// The function that returns the cell, with its refresher running.
    begun: TokenStream,
    /// Further functions.
    refresher: TokenStream,
}

/// Whether the settings fit the arguments of the function.
fn check(home: Home, arguments: &Arguments, function: &Function) -> Result<()> {
    let Arguments { ahead, max_entries, .. } = arguments;
    let inputs = &function.inputs;
    let refuse = |span, message: &str| Err(Error::new(span, message));
    match (home, function.parameters.is_empty(), max_entries, ahead) {
        (_, true, Some((_, span)), _) => {
            refuse(*span, "`max_entries` is for a function with arguments: without, there is one value")
        }
        (Home::Cell, false, ..) => Err(Error::new_spanned(
            inputs,
            concat!(
                "a function with arguments has a value for each of them, and those are kept by the crate `dogpile-map`: \
                 add `dogpile-map = { version = \"",
                env!("CARGO_PKG_VERSION_MAJOR"),
                ".",
                env!("CARGO_PKG_VERSION_MINOR"),
                "\", features = [\"macros\"] }` to Cargo.toml, and `use dogpile_map::dogpile` in place of \
                 `use dogpile::dogpile`"
            ),
        )),
        (Home::Map, false, _, Some((_, span))) => refuse(
            *span,
            "`ahead` is for a function without arguments: a map rebuilds a key when it is read. With `spawn`, no caller \
             waits for that if there is an old value",
        ),
        (Home::Map, false, None, None) => Err(Error::new_spanned(
            inputs,
            "a function with arguments has a value for each of them: say how many to keep, with `max_entries = 1_000`",
        )),
        (_, true, None, _) | (Home::Map, false, Some(_), None) => Ok(()),
    }
}
