//! The command line, for files that say how they were made.

/// The command line as it could be typed again, without the file that it writes: where a file is does not change it.
/// A key is not told.
pub(crate) fn made_by() -> String {
    written(std::env::args().skip(1))
}

fn written(mut arguments: impl Iterator<Item = String>) -> String {
    let mut text = "kvcache".to_owned();
    while let Some(argument) = arguments.next() {
        let (name, value) =
            argument.split_once('=').map_or((&*argument, None), |(name, value)| (name, Some(value)));
        if !matches!(name, "--out" | "--api-key") {
            text.push(' ');
            text += &quoted(&argument);
        } else if value.is_none() {
            arguments.next();
        }
    }
    text
}

/// An argument as a shell wants it.
fn quoted(argument: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:,=@%+".contains(&byte);
    if !argument.is_empty() && argument.bytes().all(is_plain) {
        return argument.to_owned();
    }
    format!("'{}'", argument.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_and_keys_are_left_out() {
        let line = "load a.jsonl --out b.jsonl --api-key=x --rate poisson:2 --api-key y --out=c --json";
        let text = written(line.split(' ').map(str::to_owned));
        assert_eq!(text, "kvcache load a.jsonl --rate poisson:2 --json");
    }

    #[test]
    fn arguments_are_quoted_where_a_shell_would_change_them() {
        for (argument, expected) in [
            ("poisson:2.5", "poisson:2.5"),
            ("a b", "'a b'"),
            ("", "''"),
            ("it's", "'it'\\''s'"),
            ("*", "'*'"),
        ] {
            assert_eq!(quoted(argument), expected);
        }
    }
}
