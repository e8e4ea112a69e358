//! Which value an unquoted word is: the core schema of YAML 1.2.

use super::Yaml;

/// The value of an unquoted word.
pub(super) fn plain(text: &str) -> Yaml {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Yaml::Null,
        "true" | "True" | "TRUE" => Yaml::Bool(true),
        "false" | "False" | "FALSE" => Yaml::Bool(false),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => Yaml::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => Yaml::Float(f64::NEG_INFINITY),
        ".nan" | ".NaN" | ".NAN" => Yaml::Float(f64::NAN),
        _ => integer(text).or_else(|| float(text)).unwrap_or_else(|| Yaml::Text(text.to_owned())),
    }
}

fn integer(text: &str) -> Option<Yaml> {
    let based = |digits: &str, radix| {
        // `from_str_radix` would take a second sign.
        digits
            .starts_with(|c: char| c.is_digit(radix))
            .then(|| i128::from_str_radix(digits, radix).ok())
            .flatten()
    };
    if let Some(digits) = text.strip_prefix("0x") {
        return based(digits, 16).map(Yaml::Int);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return based(digits, 8).map(Yaml::Int);
    }
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let all = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    // More digits than 128 bits hold: a number all the same, only not an exact one.
    all.then(|| text.parse().map_or_else(|_| Yaml::Float(text.parse().unwrap_or(f64::INFINITY)), Yaml::Int))
}

/// `[-+]? ( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )?`
fn float(text: &str) -> Option<Yaml> {
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['+', '-']).unwrap_or(exponent))),
        None => (unsigned, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let written = digits(whole) && digits(fraction) && !(whole.is_empty() && fraction.is_empty());
    let scaled = exponent.is_none_or(|exponent| !exponent.is_empty() && digits(exponent));
    // One too large for any number is a word, as it is for other readers of YAML; writers leave it without quotes.
    let number = || text.parse().ok().filter(|number: &f64| number.is_finite());
    (written && scaled).then(number).flatten().map(Yaml::Float)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_the_values_of_the_core_schema() {
        let cases = [
            ("12", "Int(12)"),
            ("-3", "Int(-3)"),
            ("007", "Int(7)"),
            ("0x1F", "Int(31)"),
            ("0o17", "Int(15)"),
            ("1e-3", "Float(0.001)"),
            ("1.", "Float(1.0)"),
            (".5", "Float(0.5)"),
            ("-1.5E+3", "Float(-1500.0)"),
            (".inf", "Float(inf)"),
            ("true", "Bool(true)"),
            ("yes", "Text(\"yes\")"),
            ("1_000", "Text(\"1_000\")"),
            ("0x-1", "Text(\"0x-1\")"),
            ("e5", "Text(\"e5\")"),
            (".", "Text(\".\")"),
            ("inf", "Text(\"inf\")"),
            ("1e", "Text(\"1e\")"),
            ("1e999", "Text(\"1e999\")"),
            ("~", "Null"),
        ];
        for (text, expected) in cases {
            assert_eq!(format!("{:?}", plain(text)), expected, "{text}");
        }
        assert!(matches!(plain(&"9".repeat(60)), Yaml::Float(value) if value > 1e59));
    }
}
