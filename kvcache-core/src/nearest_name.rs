//! Finds what a misspelt name probably meant.

/// The one of `known` that is the fewest single-character edits away from `name`, if it is close enough to be a
/// likely typing error (a third of its length, at least two edits). The first of equals wins.
pub fn nearest_name<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (edit_distance(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.chars().count() / 3).max(2))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance, ignoring ASCII case; O(|a| |b|), for names only.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a_char) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b_char) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(!a_char.eq_ignore_ascii_case(b_char));
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_edits() {
        assert_eq!(edit_distance("lru", "lru"), 0);
        assert_eq!(edit_distance("", "lru"), 3);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("LRU", "lru"), 0);
    }

    #[test]
    fn suggests_only_what_is_close() {
        let known = ["default", "lru", "s3fifo", "s3fifo-fixed"];
        assert_eq!(nearest_name("s3-fifo", known), Some("s3fifo"));
        assert_eq!(nearest_name("s3fifo_fixed", known), Some("s3fifo-fixed"));
        assert_eq!(nearest_name("lur", known), Some("lru"));
        assert_eq!(nearest_name("belady", known), None);
    }
}
