//! The function that carries the attribute. Its body is not looked at.

use proc_macro2::{Span, TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{
    Attribute, Error, FnArg, GenericArgument, Ident, Lifetime, Meta, MetaList, Pat, PatType, Path,
    PathArguments, Result, ReturnType, Signature, Token, Type, Visibility,
};

pub(crate) struct Function {
    pub(crate) attributes: Attributes,
    pub(crate) vis: Visibility,
    pub(crate) name: Ident,
    pub(crate) asyncness: Option<Token![async]>,
    pub(crate) fn_token: Token![fn],
    /// What is in the parentheses, as it was written.
    pub(crate) inputs: TokenStream,
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) returns: Box<Type>,
    /// `fn .. { .. }` in braces, as it was written.
    pub(crate) body: TokenStream,
}

impl Parse for Function {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let attributes = input.call(Attribute::parse_outer)?;
        let (vis, signature) = match input.parse().and_then(|vis| Ok((vis, input.parse::<Signature>()?))) {
            Ok(parsed) => parsed,
            Err(error) => return Err(not_a_function(input, &error)),
        };
        if let Some(semicolon) = input.parse::<Option<Token![;]>>()? {
            return Err(Error::new(semicolon.span(), "the function needs a body, which builds the value"));
        }
        let body = input.parse::<TokenTree>()?.into_token_stream();
        let returns = check(&signature)?;
        let parameters =
            signature.inputs.iter().enumerate().map(|(place, input)| Parameter::of(input, place));
        let parameters = all(parameters)?;
        Ok(Self {
            attributes: Attributes::of(attributes)?,
            vis,
            name: signature.ident,
            asyncness: signature.asyncness,
            fn_token: signature.fn_token,
            inputs: signature.inputs.into_token_stream(),
            parameters,
            returns,
            body,
        })
    }
}

/// All of them, or all errors.
fn all<T>(results: impl Iterator<Item = Result<T>>) -> Result<Vec<T>> {
    let mut all = Ok(Vec::new());
    for result in results {
        match (&mut all, result) {
            (Ok(all), Ok(one)) => all.push(one),
            (Err(_), Ok(_)) => {}
            (Ok(_), Err(error)) => all = Err(error),
            (Err(errors), Err(error)) => errors.combine(error),
        }
    }
    all
}

/// If it was not even meant as one.
fn not_a_function(input: ParseStream<'_>, error: &Error) -> Error {
    // Of the rest only if the cursor is at what cannot begin a signature.
    let begins = ["const", "async", "unsafe", "extern", "fn"];
    if input.cursor().ident().is_some_and(|(word, _)| begins.contains(&&*word.to_string())) {
        error.clone()
    } else {
        Error::new(input.span(), "`#[dogpile]` keeps what a function returns: it belongs on a `fn`")
    }
}

/// Whether there is one value to keep, and of which type.
fn check(signature: &Signature) -> Result<Box<Type>> {
    let refuse =
        |tokens: &dyn ToTokens, message: &str| Err(Error::new_spanned(tokens.to_token_stream(), message));
    if let Some(receiver) = signature.receiver() {
        return refuse(
            receiver,
            "a method has no one value: there may be any number of objects. Put a `DogpileCell` (with further arguments: a \
             `DogpileMap`) into the struct, and call `get_or_refresh` or `try_get_or_refresh` here",
        );
    }
    let lifetimes = signature.generics.lifetimes().count();
    if lifetimes > 0 && lifetimes == signature.generics.params.len() && !signature.inputs.is_empty() {
        return refuse(
            &signature.generics.params,
            "a value is kept for longer than its arguments live: leave the lifetimes out, and return what borrows nothing",
        );
    }
    if !signature.generics.params.is_empty() {
        return refuse(
            &signature.generics.params,
            "a generic function has no one value: a `static` cannot depend on its parameters. Write a function for each \
             type, or keep a `DogpileCell` by hand",
        );
    }
    if let Some(clause) = &signature.generics.where_clause {
        return refuse(clause, "a function without parameters needs no `where`");
    }
    if let Some(word) = &signature.unsafety {
        return refuse(word, "the cell calls the function when it likes, so it cannot be `unsafe`");
    }
    if let Some(word) = &signature.constness {
        return refuse(word, "the value is made when it is first read, so the function cannot be `const`");
    }
    if let Some(abi) = &signature.abi {
        return refuse(abi, "what the function returns is changed to an `Arc`, so it cannot be `extern`");
    }
    let returns = match &signature.output {
        ReturnType::Type(_, returns) => returns,
        ReturnType::Default => return refuse(&signature.ident, NOTHING),
    };
    match peeled(returns) {
        Type::Tuple(tuple) if tuple.elems.is_empty() => refuse(returns, NOTHING),
        Type::Never(_) => refuse(returns, NOTHING),
        of if !signature.inputs.is_empty() && is_borrowed(of) => refuse(
            returns,
            "a value is kept for longer than its arguments live: return what owns it, such as `String` for `&str`",
        ),
        Type::ImplTrait(_) => refuse(
            returns,
            "a `static` needs a type with a name: in place of `impl Trait` name the type, or return a `Box<dyn Trait>`; \
             in place of `impl Future` write `async fn`",
        ),
        _ if names_self(returns) => refuse(returns, SELF),
        _ => Ok(returns.clone()),
    }
}

const SELF: &str = "`Self` has no meaning in a `static`, where the value is kept: write the name of the type";

const NOTHING: &str = "there is nothing to keep: the function returns no value";

fn names_self(of: &impl ToTokens) -> bool {
    fn look(tokens: TokenStream) -> bool {
        tokens.into_iter().any(|token| match token {
            TokenTree::Ident(word) => word == "Self",
            TokenTree::Group(group) => look(group.stream()),
            _ => false,
        })
    }
    look(of.to_token_stream())
}

/// A part of the key, of a function with arguments.
pub(crate) struct Parameter {
    /// As callers see it.
    pub(crate) name: Ident,
    /// As it was written.
    pub(crate) given: Type,
    pub(crate) kept: Kept,
}

/// How the key keeps it.
pub(crate) enum Kept {
    /// As it is.
    Given,
    /// As the owned form of this type: it is a reference.
    Owned(Box<Type>),
}

impl Parameter {
    fn of(input: &FnArg, place: usize) -> Result<Self> {
        let FnArg::Typed(PatType { attrs, pat, ty, .. }) = input else {
            return Err(Error::new(input.span(), "a method has no one value"));
        };
        let is_conditional =
            |attribute: &&Attribute| ["cfg", "cfg_attr"].iter().any(|cfg| attribute.path().is_ident(cfg));
        if let Some(attribute) = attrs.iter().find(is_conditional) {
            let message = "the key is made of all arguments, so none can be conditional: write a function for each case, with \
                           the `cfg` on the function";
            return Err(Error::new_spanned(attribute, message));
        }
        let mut name = match &**pat {
            Pat::Ident(pattern) => pattern.ident.clone(),
            other => Ident::new(&format!("__dogpile_argument_{place}"), other.span()),
        };
        // It hides neither what the user has named in a setting, nor the function itself, nor another parameter.
        name.set_span(Span::mixed_site().located_at(name.span()));
        let kept = match peeled(ty) {
            Type::Reference(reference) if !is_static(reference.lifetime.as_ref()) => {
                if let Some(word) = &reference.mutability {
                    let message =
                        "a call that is served from the map would not change it: take a `&`, or a value";
                    return Err(Error::new(word.span(), message));
                }
                Kept::Owned(reference.elem.clone())
            }
            _ => Kept::Given,
        };
        let own = match &kept {
            Kept::Given => ty,
            Kept::Owned(referred) => referred,
        };
        match unkeepable(own) {
            Some(message) => Err(Error::new(ty.span(), message)),
            None => Ok(Self { name, given: (**ty).clone(), kept }),
        }
    }
}

/// A reference, or a `Result` of one. What else may borrow, the compiler sees.
fn is_borrowed(returns: &Type) -> bool {
    let value = match Looks::of(returns) {
        Looks::Result(value) => value,
        Looks::Unclear | Looks::Value => returns,
    };
    matches!(peeled(value), Type::Reference(reference) if !is_static(reference.lifetime.as_ref()))
}

fn is_static(lifetime: Option<&Lifetime>) -> bool {
    lifetime.is_some_and(|lifetime| lifetime.ident == "static")
}

/// Why a key cannot keep it.
fn unkeepable(of: &Type) -> Option<&'static str> {
    const BORROWS: &str = "an argument is kept as a key, so it cannot borrow: take what owns it, such as `Option<String>`, \
                           or a reference by itself, such as `&str`";
    if names_self(of) {
        return Some(SELF);
    }
    let mut tokens = flat(of.to_token_stream()).into_iter().peekable();
    while let Some(token) = tokens.next() {
        match (&token, tokens.peek()) {
            (TokenTree::Ident(word), _) if word == "impl" => {
                return Some("a key has one type: name it, in place of `impl Trait`");
            }
            (TokenTree::Punct(mark), Some(TokenTree::Ident(word)))
                if mark.as_char() == '\'' && word != "static" =>
            {
                return Some(BORROWS);
            }
            (TokenTree::Punct(mark), next) if mark.as_char() == '&' => {
                let is_named = matches!(next, Some(TokenTree::Punct(mark)) if mark.as_char() == '\'');
                if !is_named {
                    return Some(BORROWS);
                }
            }
            _ => {}
        }
    }
    None
}

/// Without groups, and without the parameters of `fn` and `Fn`, which borrow nothing.
fn flat(tokens: TokenStream) -> Vec<TokenTree> {
    let mut all: Vec<TokenTree> = Vec::new();
    for token in tokens {
        match token {
            TokenTree::Group(group) => {
                let call = ["fn", "Fn", "FnMut", "FnOnce"];
                match all.last() {
                    Some(TokenTree::Ident(word)) if call.iter().any(|call| word == call) => {}
                    _ => all.extend(flat(group.stream())),
                }
            }
            token => all.push(token),
        }
    }
    all
}

/// What is in parentheses, or in the invisible ones around an argument of a `macro_rules!` macro.
fn peeled(mut of: &Type) -> &Type {
    loop {
        of = match of {
            Type::Group(group) => &group.elem,
            Type::Paren(paren) => &paren.elem,
            of => return of,
        };
    }
}

/// What the type looks like. What it is, the compiler knows.
pub(crate) enum Looks<'a> {
    /// `Result<T, E>`, `io::Result<T>`: that of the value.
    Result(&'a Type),
    /// Perhaps a `Result`: `fmt::Result`, `QueryResult<T>`.
    Unclear,
    /// Not like a `Result`.
    Value,
}

impl<'a> Looks<'a> {
    pub(crate) fn of(returns: &'a Type) -> Self {
        let Type::Path(path) = peeled(returns) else { return Self::Value };
        let Some(last) = path.path.segments.last() else { return Self::Value };
        if last.ident == "Result"
            && let PathArguments::AngleBracketed(of) = &last.arguments
            && let Some(GenericArgument::Type(value)) = of.args.first()
        {
            return Self::Result(value);
        }
        if last.ident.to_string().ends_with("Result") { Self::Unclear } else { Self::Value }
    }
}

/// The other attributes of the function: each of them goes where it means what it meant.
#[derive(Default)]
pub(crate) struct Attributes {
    /// `cfg` and `allow`: on everything that is written.
    pub(crate) all: TokenStream,
    /// Those for callers (`doc`, `must_use`, `deprecated`, `inline`, ..): on the function that they call.
    pub(crate) called: TokenStream,
    /// Those that look at the body, or change it (other lints, other macros): on the function as it was written.
    pub(crate) built: TokenStream,
}

impl Attributes {
    fn of(attributes: Vec<Attribute>) -> Result<Self> {
        let mut this = Self::default();
        for attribute in attributes {
            match &attribute.meta {
                Meta::List(list) if list.path.is_ident("cfg_attr") => this.add_conditional(list)?,
                meta => match without_dead_code(meta) {
                    None => this.place(meta.path())?.extend(attribute.to_token_stream()),
                    Some(metas) => {
                        for meta in metas {
                            this.place(meta.path())?.extend(quote!(#[#meta]));
                        }
                    }
                },
            }
        }
        Ok(this)
    }

    /// `cfg_attr(condition, a, b)` as one for each of `a` and `b`.
    fn add_conditional(&mut self, list: &MetaList) -> Result<()> {
        let parts = list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated)?;
        let mut parts = parts.into_iter();
        let Some(condition) = parts.next() else { return Ok(()) };
        for meta in parts {
            for meta in without_dead_code(&meta).unwrap_or_else(|| vec![meta]) {
                self.place(meta.path())?.extend(quote!(#[cfg_attr(#condition, #meta)]));
            }
        }
        Ok(())
    }

    fn place(&mut self, path: &Path) -> Result<&mut TokenStream> {
        const FOR_CALLERS: [&str; 6] = ["doc", "must_use", "deprecated", "inline", "cold", "track_caller"];
        const FOR_LINKERS: [&str; 4] = ["no_mangle", "export_name", "link_section", "unsafe"];
        let is = |name: &&str| path.is_ident(name);
        if path.is_ident("cfg") || path.is_ident("allow") {
            Ok(&mut self.all)
        } else if FOR_CALLERS.iter().any(is) {
            Ok(&mut self.called)
        } else if FOR_LINKERS.iter().any(is) {
            Err(Error::new(
                path.span(),
                "what the function returns is changed to an `Arc`, so it cannot be exported",
            ))
        } else {
            Ok(&mut self.built)
        }
    }
}

fn is_dead_code(lint: &Meta) -> bool {
    lint.path().is_ident("dead_code")
}

/// Replaces `expect(dead_code)` by `allow(dead_code)`, and keeps the other lints of the attribute. `None`: it expects no dead
/// code.
///
/// The attribute goes on each item that is written. Some of them are used, and there the expectation would not be met.
fn without_dead_code(meta: &Meta) -> Option<Vec<Meta>> {
    let Meta::List(list) = meta else { return None };
    if !list.path.is_ident("expect") {
        return None;
    }
    // What cannot be read is for the compiler to refuse.
    let lints = list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated).ok()?;
    let (dead, others): (Vec<_>, Vec<_>) = lints.into_iter().partition(is_dead_code);
    if dead.is_empty() {
        return None;
    }
    let mut metas = vec![syn::parse_quote!(allow(#(#dead),*))];
    if others.iter().any(|part| !part.path().is_ident("reason")) {
        metas.push(syn::parse_quote!(expect(#(#others),*)));
    }
    Some(metas)
}
