//! `{% generation %}`: transformers' mark around what an assistant says, for masks of training losses.

use std::borrow::Cow;

/// The template with `{% generation %}` and `{% endgeneration %}` as blocks that always show what is in them: for
/// rendering the mark has no meaning. Signs that trim white space (`{%-`, `-%}`) stay.
pub(super) fn as_plain_blocks(source: &str) -> Cow<'_, str> {
    let (mut text, mut rest, mut is_changed) = (String::new(), source, false);
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let (before, tag) = (&rest[..start], &rest[start + 2..start + length]);
        let name = tag.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        let instead = match name {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => name,
        };
        text.push_str(before);
        text.push_str("{%");
        if instead == name {
            text.push_str(tag);
        } else {
            text.push_str(&tag.replace(name, &format!(" {instead} ")));
            is_changed = true;
        }
        text.push_str("%}");
        rest = &rest[start + length + 2..];
    }
    if is_changed { Cow::Owned(text + rest) } else { Cow::Borrowed(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_mark_is_replaced() {
        let source = "{%- generation -%}a{% endgeneration %}{% if generation %}{{ generation }}{% endif %}";
        let plain = "{%- if true -%}a{% endif %}{% if generation %}{{ generation }}{% endif %}";
        assert_eq!(as_plain_blocks(source).replace("  ", " "), plain);
        for same in ["", "{% raw", "{# generation #}{% for x in y %}"] {
            assert_eq!(as_plain_blocks(same), same);
        }
    }
}
