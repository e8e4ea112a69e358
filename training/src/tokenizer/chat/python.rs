//! What templates take from Python: methods, and the clock.

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{ValueKind, from_args},
};
use minijinja_contrib::pycompat;

/// Methods of Python's values that Jinja templates call.
pub(super) fn method(
    state: &mut State<'_, '_>,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if value.kind() == ValueKind::String
        && let Some(text) = value.as_str()
        && let Some(result) = more_of_texts(text, name, args)?
    {
        return Ok(result);
    }
    pycompat::unknown_method_callback(state, value, name, args)
}

/// Methods of texts that `pycompat` does not have.
fn more_of_texts(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let one = |args| -> Result<String, Error> { from_args::<(String,)>(args).map(|(one,)| one) };
    Ok(Some(match name {
        "removeprefix" => {
            let prefix = one(args)?;
            text.strip_prefix(&*prefix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let suffix = one(args)?;
            text.strip_suffix(&*suffix).unwrap_or(text).into()
        }
        "partition" => {
            let at = one(args)?;
            let parts = text.split_once(&*at).map_or([text, "", ""], |(before, after)| [before, &*at, after]);
            parts.into_iter().map(Value::from).collect()
        }
        "rpartition" => {
            let at = one(args)?;
            let parts =
                text.rsplit_once(&*at).map_or(["", "", text], |(before, after)| [before, &*at, after]);
            parts.into_iter().map(Value::from).collect()
        }
        "rsplit" => {
            let (at, most): (Option<String>, Option<i64>) = from_args(args)?;
            let most = most.and_then(|most| usize::try_from(most).ok()).map_or(usize::MAX, |most| most + 1);
            let mut parts: Vec<&str> = match &at {
                Some(at) => text.rsplitn(most, at.as_str()).collect(),
                None => split_at_spaces_from_the_end(text, most),
            };
            parts.reverse();
            parts.into_iter().map(Value::from).collect()
        }
        _ => return Ok(None),
    }))
}

/// The last `most` parts of a text between white space, the last first; what is left is one part.
fn split_at_spaces_from_the_end(text: &str, most: usize) -> Vec<&str> {
    let (mut parts, mut rest) = (Vec::new(), text.trim_end());
    while !rest.trim_start().is_empty() {
        let cut = if parts.len() + 1 == most { None } else { rest.rfind(char::is_whitespace) };
        let Some(at) = cut else {
            parts.push(rest.trim_start());
            break;
        };
        let width = rest[at..].chars().next().map_or(1, char::len_utf8);
        parts.push(&rest[at + width..]);
        rest = rest[..at].trim_end();
    }
    parts
}

/// The function `strftime_now(format)`: the local time.
#[allow(clippy::needless_pass_by_value)] // a function takes its arguments as minijinja hands them
pub(super) fn strftime_now(format: String) -> Result<String, Error> {
    jiff::fmt::strtime::format(&format, &jiff::Zoned::now()).map_err(|error| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now(\"{format}\"): {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_pythons() {
        let call = |text: &str, name: &str, args: &[Value]| -> Vec<String> {
            let result = more_of_texts(text, name, args).unwrap().unwrap();
            match result.as_str() {
                Some(text) => vec![text.to_owned()],
                None => result.try_iter().unwrap().map(|part| part.to_string()).collect(),
            }
        };
        let text = |text: &str| Value::from(text);
        assert_eq!(call("abab", "removeprefix", &[text("ab")]), ["ab"]);
        assert_eq!(call("abab", "removesuffix", &[text("x")]), ["abab"]);
        assert_eq!(call("a:b:c", "partition", &[text(":")]), ["a", ":", "b:c"]);
        assert_eq!(call("a:b:c", "rpartition", &[text(":")]), ["a:b", ":", "c"]);
        assert_eq!(call("abc", "partition", &[text(":")]), ["abc", "", ""]);
        assert_eq!(call("abc", "rpartition", &[text(":")]), ["", "", "abc"]);
        assert_eq!(call("a:b:c", "rsplit", &[text(":"), Value::from(1)]), ["a:b", "c"]);
        assert_eq!(call("a:b:c", "rsplit", &[text(":")]), ["a", "b", "c"]);
        assert_eq!(call("  a b  c ", "rsplit", &[]), ["a", "b", "c"]);
        assert_eq!(call("  a b  c ", "rsplit", &[Value::from(()), Value::from(1)]), ["a b", "c"]);
        assert!(more_of_texts("a", "strip", &[]).unwrap().is_none());
    }

    #[test]
    fn the_clock_has_pythons_formats() {
        let year = strftime_now("%Y".to_owned()).unwrap();
        assert!(year.len() == 4 && year.as_str() >= "2024", "{year}");
        assert_eq!(strftime_now("%d %b %Y".to_owned()).unwrap().split(' ').count(), 3);
        assert!(strftime_now("%Q%!".to_owned()).is_err());
    }
}
