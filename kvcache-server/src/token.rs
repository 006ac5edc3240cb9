//! The secret that clients share with a server.

use std::fmt;
use std::path::Path;

use kvcache_wire::extension::Hello;

use crate::Error;

/// A token, kept as its hash: comparing hashes takes the same time wherever the difference is.
#[derive(Clone)]
pub struct Token(blake3::Hash);

impl Token {
    /// The token of these bytes.
    pub fn new(token: &[u8]) -> Self {
        Self(blake3::hash(token))
    }

    /// The content of a file without white space around it.
    ///
    /// # Errors
    ///
    /// [`Error::File`], or [`Error::Token`] for less than 16 bytes or more than the protocol carries.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
        let token = text.trim_ascii();
        if !(TOKEN_BYTES_MIN..=Hello::TOKEN_BYTES_MAX).contains(&token.len()) {
            return Err(Error::Token { path: path.to_owned(), bytes: token.len() });
        }
        Ok(Self::new(token))
    }

    /// Whether a client knows the token.
    pub fn is(&self, other: &[u8]) -> bool {
        // Equality of `blake3::Hash` takes constant time.
        self.0 == blake3::hash(other)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Shorter ones can be guessed by asking.
const TOKEN_BYTES_MIN: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_itself_is_the_token() {
        let token = Token::new(b"0123456789abcdef");
        assert!(token.is(b"0123456789abcdef"));
        for other in [b"".as_slice(), b"0123456789abcdeg", b"0123456789abcde", b"0123456789abcdef0"] {
            assert!(!token.is(other));
        }
        assert_eq!(format!("{token:?}"), "Token(..)");
    }

    #[test]
    fn a_file_is_read_without_its_line_end_and_short_ones_are_refused() {
        let path = std::env::temp_dir().join(format!("kvcache-token-{}", std::process::id()));
        std::fs::write(&path, "0123456789abcdef\n").unwrap();
        assert!(Token::from_file(&path).unwrap().is(b"0123456789abcdef"));
        std::fs::write(&path, "short\n").unwrap();
        let error = Token::from_file(&path).unwrap_err().to_string();
        assert!(error.contains("has 5 bytes: put 16 to 4096"), "{error}");
        std::fs::remove_file(&path).unwrap();
        let error = Token::from_file(&path).unwrap_err().to_string();
        assert!(error.starts_with("cannot read "), "{error}");
    }
}
