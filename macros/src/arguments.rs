//! The settings in the brackets of the attribute.

use std::time::Duration;

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{Error, Expr, ExprLit, Ident, Lit, LitStr, Result, Token};

const SETTINGS: &str = "`ttl`, `never_expires`, `stale_while_refresh`, `stale_if_error`, `retry_backoff`, `jitter`, \
                        `lease_timeout`, `ahead`, `spawn`, `max_entries`, `name`, `in_impl`";

/// All of them, checked.
pub(crate) struct Arguments {
    /// The name of a function that makes a `Policy`, with its arguments, and the methods to be called on what that returns: a
    /// constant expression.
    pub(crate) policy: TokenStream,
    /// A constant expression, and where it stands.
    pub(crate) ahead: Option<(TokenStream, Span)>,
    /// A function.
    pub(crate) spawn: Option<Expr>,
    /// A constant expression, and where it stands.
    pub(crate) max_entries: Option<(TokenStream, Span)>,
    /// The function stands in an `impl` block.
    pub(crate) in_impl: bool,
    /// A constant expression; `None`: the path of the function.
    pub(crate) name: Option<TokenStream>,
}

/// `key` or `key = value`.
struct Setting {
    key: Ident,
    value: Option<Expr>,
}

impl Parse for Setting {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        // Also a keyword, so that the message is about the setting.
        let Ok(key) = input.call(Ident::parse_any) else {
            return Err(input.error(format!("a setting is written `ttl = \"60s\"`; there are {SETTINGS}")));
        };
        let value = if input.parse::<Option<Token![=]>>()?.is_some() {
            Some(input.parse()?)
        } else if input.is_empty() || input.peek(Token![,]) {
            None
        } else {
            return Err(input.error(format!("expected `{key} = ..`")));
        };
        Ok(Self { key, value })
    }
}

impl Setting {
    fn value(self) -> Result<Expr> {
        let Self { key, value } = self;
        let value =
            value.ok_or_else(|| Error::new(key.span(), format!("`{key}` has a value: `{key} = ..`")))?;
        Ok(peeled(value))
    }

    fn duration(self) -> Result<Time> {
        Time::of(self.value()?)
    }
}

/// What is in parentheses, or in the invisible ones around an argument of a `macro_rules!` macro.
fn peeled(mut value: Expr) -> Expr {
    loop {
        value = match value {
            Expr::Group(group) => *group.expr,
            Expr::Paren(paren) => *paren.expr,
            value => return value,
        };
    }
}

/// A duration: known here, or to the compiler only.
struct Time {
    known: Option<Duration>,
    span: Span,
    tokens: TokenStream,
}

impl Time {
    fn of(value: Expr) -> Result<Self> {
        let span = value.span();
        let known = match &value {
            Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(parse_duration(text)?),
            Expr::Lit(_) | Expr::Unary(_) | Expr::Tuple(_) => {
                let message = "a duration is a string with a unit, such as \"60s\" or \"1h 30m\", or a constant of the \
                               type `Duration`";
                return Err(Error::new(span, message));
            }
            _ => None,
        };
        let tokens = match known {
            Some(time) => {
                let (seconds, nanos) = (time.as_secs(), time.subsec_nanos());
                quote_spanned!(span=> ::core::time::Duration::new(#seconds, #nanos))
            }
            None => value.into_token_stream(),
        };
        Ok(Self { known, span, tokens })
    }

    fn is_zero(&self) -> bool {
        self.known.is_some_and(|time| time.is_zero())
    }

    fn is_longer_than(&self, other: &Self) -> bool {
        matches!((self.known, other.known), (Some(this), Some(other)) if this > other)
    }
}

fn parse_duration(text: &LitStr) -> Result<Duration> {
    humantime::parse_duration(&text.value()).map_err(|error| {
        let message = format!("not a duration such as \"60s\", \"100ms\" or \"1h 30m\": {error}");
        Error::new(text.span(), message)
    })
}

fn retry_backoff(value: Expr) -> Result<TokenStream> {
    let span = value.span();
    let (first, max) = match value {
        Expr::Tuple(pair) if pair.elems.len() == 2 => {
            let mut pair = pair.elems.into_iter();
            (pair.next(), pair.next())
        }
        _ => (None, None),
    };
    let (Some(first), Some(max)) = (first, max) else {
        return Err(Error::new(
            span,
            "`retry_backoff` is a pair: the first pause and the longest one, such as (\"100ms\", \"10s\")",
        ));
    };
    let (first, max) = (Time::of(peeled(first))?, Time::of(peeled(max))?);
    if first.is_longer_than(&max) {
        return Err(Error::new(first.span, "the first pause must not be longer than the longest one"));
    }
    if first.is_zero() && max.known.is_some_and(|max| !max.is_zero()) {
        return Err(Error::new(
            first.span,
            "the first pause must be longer than zero; (\"0s\", \"0s\") means no pause",
        ));
    }
    let (first, max) = (first.tokens, max.tokens);
    Ok(quote!(.retry_backoff(#first, #max)))
}

fn jitter(value: &Expr) -> Result<TokenStream> {
    if let Expr::Lit(ExprLit { lit, .. }) = value {
        let percent = if let Lit::Int(percent) = lit { percent.base10_parse::<u8>().ok() } else { None };
        if percent.is_none_or(|percent| percent > 100) {
            return Err(Error::new(value.span(), "`jitter` is a percentage, from 0 to 100"));
        }
    }
    Ok(quote!(.jitter(#value)))
}

fn max_entries(value: &Expr) -> Result<TokenStream> {
    const ZERO: &str = "`max_entries` must be at least 1: a map that holds nothing builds at each call";
    let span = value.span();
    if let Expr::Lit(ExprLit { lit, .. }) = value {
        let Lit::Int(number) = lit else {
            return Err(Error::new(span, "`max_entries` is a number: how many keys have a value at most"));
        };
        if number.base10_parse::<u128>().is_ok_and(|number| number == 0) {
            return Err(Error::new(span, ZERO));
        }
    }
    // Known to the compiler only.
    Ok(quote_spanned! {span=> const {
        let __dogpile_entries: usize = #value;
        ::core::assert!(__dogpile_entries > 0, #ZERO);
        __dogpile_entries
    }})
}

/// What has been read so far.
#[derive(Default)]
struct Known {
    ttl: Option<Time>,
    never_expires: Option<Span>,
    rest: TokenStream,
    ahead: Option<Time>,
    name: Option<TokenStream>,
    spawn: Option<Expr>,
    max_entries: Option<(TokenStream, Span)>,
    in_impl: bool,
}

impl Known {
    fn add(&mut self, setting: Setting) -> Result<()> {
        match &*setting.key.to_string() {
            "ttl" => self.ttl = Some(setting.duration()?),
            "never_expires" => {
                if let Some(value) = setting.value {
                    return Err(Error::new(value.span(), "`never_expires` has no value"));
                }
                self.never_expires = Some(setting.key.span());
            }
            "stale_while_refresh" => {
                let window = setting.duration()?.tokens;
                self.rest.extend(quote!(.stale_while_refresh(#window)));
            }
            "stale_if_error" => {
                let window = setting.duration()?.tokens;
                self.rest.extend(quote!(.stale_if_error(#window)));
            }
            "retry_backoff" => self.rest.extend(retry_backoff(setting.value()?)?),
            "jitter" => self.rest.extend(jitter(&setting.value()?)?),
            "lease_timeout" => {
                let timeout = setting.duration()?;
                if timeout.is_zero() {
                    let message =
                        "`lease_timeout` must be longer than zero, or every build would be superseded";
                    return Err(Error::new(timeout.span, message));
                }
                let timeout = timeout.tokens;
                self.rest.extend(quote!(.lease_timeout(#timeout)));
            }
            "ahead" => self.ahead = Some(setting.duration()?),
            "spawn" => {
                let value = setting.value()?;
                if matches!(value, Expr::Lit(_)) {
                    let message = "`spawn` is a function that runs a build elsewhere, such as `std::thread::spawn`, or \
                                   `tokio::spawn` for an `async fn`";
                    return Err(Error::new(value.span(), message));
                }
                self.spawn = Some(value);
            }
            "max_entries" => {
                let value = setting.value()?;
                self.max_entries = Some((max_entries(&value)?, value.span()));
            }
            "in_impl" => {
                if let Some(value) = setting.value {
                    return Err(Error::new(value.span(), "`in_impl` has no value"));
                }
                self.in_impl = true;
            }
            "name" => {
                let value = setting.value()?;
                if matches!(&value, Expr::Lit(ExprLit { lit, .. }) if !matches!(lit, Lit::Str(_))) {
                    return Err(Error::new(value.span(), "`name` is a string"));
                }
                self.name = Some(value.into_token_stream());
            }
            key => {
                let message = format!("there is no setting `{key}`; there are {SETTINGS}");
                return Err(Error::new(setting.key.span(), message));
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Arguments> {
        let Self { ttl, never_expires, rest, ahead, name, spawn, max_entries, in_impl } = self;
        let (policy, ttl) = match (ttl, never_expires) {
            (Some(_), Some(never)) => {
                return Err(Error::new(never, "either a `ttl`, or `never_expires`"));
            }
            (Some(ttl), None) => {
                let time = &ttl.tokens;
                (quote!(ttl(#time)), Some(ttl))
            }
            (None, Some(_)) => (quote!(never_expires()), None),
            (None, None) => {
                return Err(Error::new(
                    Span::call_site(),
                    "say how long a value is fresh: `ttl = \"60s\"`, or `never_expires`",
                ));
            }
        };
        let ahead = match (ahead, ttl) {
            (None, _) => None,
            (Some(ahead), None) => {
                return Err(Error::new(
                    ahead.span,
                    "`ahead` needs a `ttl`: a value that never expires is never due",
                ));
            }
            (Some(ahead), Some(ttl)) => {
                let message =
                    "`ahead` must be shorter than the `ttl`, or a value would be due as soon as it is there";
                if !ttl.is_longer_than(&ahead) && ttl.known.is_some() && ahead.known.is_some() {
                    return Err(Error::new(ahead.span, message));
                }
                let (time, ttl) = (ahead.tokens, ttl.tokens);
                // Known to the compiler only. No item, which would hide one of the user's that has its name.
                let checked = quote_spanned! {ahead.span=> const {
                    let (__dogpile_ahead, __dogpile_ttl): (::core::time::Duration, ::core::time::Duration) =
                        (#time, #ttl);
                    ::core::assert!(__dogpile_ahead.as_nanos() < __dogpile_ttl.as_nanos(), #message);
                    __dogpile_ahead
                }};
                Some((checked, ahead.span))
            }
        };
        Ok(Arguments { policy: quote!(#policy #rest), ahead, name, spawn, max_entries, in_impl })
    }
}

impl Parse for Arguments {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let mut known = Known::default();
        let mut seen = Vec::new();
        let mut errors: Option<Error> = None;
        for setting in Punctuated::<Setting, Token![,]>::parse_terminated(input)? {
            let key = setting.key.clone();
            let added = if seen.contains(&key) {
                Err(Error::new(key.span(), format!("`{key}` is there twice")))
            } else {
                known.add(setting)
            };
            seen.push(key);
            // All of them at once.
            match (added, &mut errors) {
                (Ok(()), _) => {}
                (Err(error), Some(errors)) => errors.combine(error),
                (Err(error), None) => errors = Some(error),
            }
        }
        match errors {
            Some(errors) => Err(errors),
            None => known.finish(),
        }
    }
}
