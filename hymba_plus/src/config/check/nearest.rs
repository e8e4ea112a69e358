//! The nearest right word to a wrong one.

/// More names than these in a message help nobody.
const MOST_NAMES: usize = 24;

/// The candidate that was probably meant, if one is near enough.
pub(in crate::config) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let plain = |word: &str| word.to_lowercase().replace(['-', ' ', '.'], "_");
    let wanted = plain(word);
    let best = candidates
        .into_iter()
        .map(|candidate| (cost(&wanted, &plain(candidate)), candidate))
        .min_by_key(|one| one.0)?;
    (best.0 <= allowed(wanted.chars().count()).max(usize::from(wanted.len() == 2 && best.1.contains('_'))))
        .then_some(best.1)
}

/// Edits between two words; a word that only begins or ends the other counts as one.
fn cost(wanted: &str, candidate: &str) -> usize {
    let edits = strsim::damerau_levenshtein(wanted, candidate);
    let (short, long) =
        if wanted.len() < candidate.len() { (wanted, candidate) } else { (candidate, wanted) };
    let part = short.len() >= 3 && long.split('_').any(|part| part == short);
    let squeezed = |word: &str| word.replace('_', "");
    let initials = |word: &str| word.split('_').filter_map(|part| part.chars().next()).collect::<String>();
    let initial = short.len() >= 2 && initials(long) == short; // `learning_rate` for `lr`
    if squeezed(wanted) == squeezed(candidate)
        || part
        || initial
        || (short.len() >= 3 && long.starts_with(short))
    {
        edits.min(1)
    } else {
        edits
    }
}

fn allowed(length: usize) -> usize {
    match length {
        0..=2 => 0,
        3..=5 => 1,
        6..=9 => 2,
        _ => 3,
    }
}

/// `PREFIX `NAME`?`, if a candidate is near enough.
pub(in crate::config) fn suggestion<'a>(
    prefix: &str,
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    let end = if prefix.starts_with("did") { "?" } else { "" };
    nearest(word, candidates).map(|near| format!("{prefix} `{near}`{end}"))
}

/// Names in a row, the first ones if there are many.
pub(in crate::config) fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    let shown = names.iter().take(MOST_NAMES).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(MOST_NAMES) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn slips_are_understood_and_other_words_are_not() {
        let keys =
            ["n_heads", "n_kv_heads", "head_dim", "window", "lr", "learning_rate", "rotary", "d_state"];
        for (word, expected) in [
            ("n_head", Some("n_heads")),
            ("nheads", Some("n_heads")),
            ("N_HEADS", Some("n_heads")),
            ("n-heads", Some("n_heads")),
            ("num_heads", Some("n_heads")),
            ("windw", Some("window")),
            ("wnidow", Some("window")),
            ("lr_", Some("lr")),
            ("xx", None),
            ("dropout", None),
            ("state", Some("d_state")),
            ("rot", Some("rotary")),
            ("hd", Some("head_dim")),
        ] {
            assert_eq!(nearest(word, keys), expected, "{word}");
        }
    }
}
