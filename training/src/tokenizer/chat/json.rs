//! `tojson` as Python's `json.dumps` writes.

use std::fmt::Write as _;

use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, ValueKind},
};

use super::conversation::{items, pairs};

/// How a document is laid out.
struct Layout {
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
    ensure_ascii: bool,
}

/// The filter `tojson(indent=None, separators=None, sort_keys=False, ensure_ascii=False)`.
#[allow(clippy::needless_pass_by_value)] // a filter takes its options as minijinja hands them
pub(super) fn tojson(value: &Value, indent: Option<Value>, options: Kwargs) -> Result<String, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<Value>>("indent")?,
    };
    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => Some(match (indent.as_usize(), indent.as_str()) {
            (Some(width), _) => " ".repeat(width),
            (None, Some(text)) => text.to_owned(),
            _ => return Err(Error::new(ErrorKind::InvalidOperation, "`indent` must be a number or a text")),
        }),
    };
    let separators: Vec<String> = match options.get::<Option<Value>>("separators")? {
        Some(pair) if !pair.is_none() => items(&pair).map(|text| text.to_string()).collect(),
        // As Python: with an indent, a line ends with its comma.
        _ => vec![if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()],
    };
    let [item_separator, key_separator] = <[String; 2]>::try_from(separators)
        .map_err(|_| Error::new(ErrorKind::InvalidOperation, "`separators` must be two texts"))?;
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let ensure_ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    options.assert_all_used()?;
    let layout = Layout { indent, item_separator, key_separator, sort_keys, ensure_ascii };
    let mut text = String::new();
    write_value(&mut text, value, &layout, 0)?;
    Ok(text)
}

fn write_value(text: &mut String, value: &Value, layout: &Layout, depth: usize) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => text.push_str("null"),
        ValueKind::Bool => text.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => write_number(text, value),
        ValueKind::String => write_text(text, value.as_str().unwrap_or_default(), layout),
        ValueKind::Seq | ValueKind::Iterable => {
            let list: Vec<Value> = items(value).collect();
            bracket(text, ['[', ']'], list, layout, depth, |text, item| {
                write_value(text, &item, layout, depth + 1)
            })?;
        }
        ValueKind::Map => {
            let mut map: Vec<(String, Value)> = pairs(value).collect();
            if layout.sort_keys {
                map.sort_by(|a, b| a.0.cmp(&b.0));
            }
            bracket(text, ['{', '}'], map, layout, depth, |text, (key, value)| {
                write_text(text, &key, layout);
                text.push_str(&layout.key_separator);
                write_value(text, &value, layout, depth + 1)
            })?;
        }
        kind => {
            let what = format!("a value of kind {kind} cannot be written as JSON");
            return Err(Error::new(ErrorKind::BadSerialization, what));
        }
    }
    Ok(())
}

fn bracket<T>(
    text: &mut String,
    [open, close]: [char; 2],
    items: Vec<T>,
    layout: &Layout,
    depth: usize,
    mut write: impl FnMut(&mut String, T) -> Result<(), Error>,
) -> Result<(), Error> {
    let is_empty = items.is_empty();
    let line = |text: &mut String, depth: usize| {
        if let Some(indent) = layout.indent.as_ref().filter(|_| !is_empty) {
            text.push('\n');
            text.push_str(&indent.repeat(depth));
        }
    };
    text.push(open);
    for (i, item) in items.into_iter().enumerate() {
        if i > 0 {
            text.push_str(&layout.item_separator);
        }
        line(text, depth + 1);
        write(text, item)?;
    }
    line(text, depth);
    text.push(close);
    Ok(())
}

fn write_text(text: &mut String, value: &str, layout: &Layout) {
    text.push('"');
    for c in value.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            c if (c as u32) < 0x20
                || (layout.ensure_ascii && !c.is_ascii() && !super::encode::is_mark(c)) =>
            {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(text, "\\u{unit:04x}"); // a String takes everything
                }
            }
            c => text.push(c),
        }
    }
    text.push('"');
}

/// A number as Python writes it: exponents have two digits and a sign, and begin at 1e16 and below 1e-4.
fn write_number(text: &mut String, value: &Value) {
    let number = f64::try_from(value.clone());
    let Ok(number) =
        number.map_err(|_| ()).and_then(|number| if value.is_integer() { Err(()) } else { Ok(number) })
    else {
        text.push_str(&value.to_string());
        return;
    };
    let shown = if number.is_nan() {
        "NaN".to_owned()
    } else if number.is_infinite() {
        if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()
    } else if number != 0.0 && (number.abs() >= 1e16 || number.abs() < 1e-4) {
        let digits = format!("{number:e}");
        let (digits, exponent) = digits.split_once('e').unwrap_or((&digits, "0"));
        let exponent: i32 = exponent.parse().unwrap_or(0);
        format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
    } else {
        format!("{number:?}")
    };
    text.push_str(&shown);
}
