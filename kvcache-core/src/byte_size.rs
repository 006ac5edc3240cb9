//! Sizes as users write and read them: `2MiB`, `512 KiB`, `8GB`, plain bytes.

use std::fmt;
use std::str::FromStr;

/// A number of bytes given by a user.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ByteSize(pub u64);

/// A text that is no size.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not a size: use a number with B, KiB, MiB, GiB, TiB, kB, MB, GB or TB, such as 2MiB")]
pub struct NoSize(String);

const UNITS: [(&str, u64); 13] = [
    ("", 1),
    ("b", 1),
    ("k", 1 << 10),
    ("kib", 1 << 10),
    ("m", 1 << 20),
    ("mib", 1 << 20),
    ("g", 1 << 30),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
];

impl FromStr for ByteSize {
    type Err = NoSize;

    fn from_str(text: &str) -> Result<Self, NoSize> {
        let error = || NoSize(text.to_owned());
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let unit = unit.trim().to_ascii_lowercase();
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(error)?;
        let bytes = if number.contains('.') {
            let bytes = number.parse::<f64>().map_err(|_| error())? * *factor as f64;
            // Above this a float no longer tells whole bytes apart, and no machine has as much.
            if bytes < 9e15 { bytes as u64 } else { return Err(error()) }
        } else {
            number.parse::<u64>().ok().and_then(|whole| whole.checked_mul(*factor)).ok_or_else(error)?
        };
        Ok(Self(bytes))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as f64;
        let (divisor, unit) = match self.0 {
            0..1024 => return write!(f, "{} B", self.0),
            1024..1_048_576 => (1024.0, "KiB"),
            1_048_576..1_073_741_824 => (1_048_576.0, "MiB"),
            _ => (1_073_741_824.0, "GiB"),
        };
        let value = bytes / divisor;
        if value.fract() < 0.05 || value >= 100.0 {
            write!(f, "{value:.0} {unit}")
        } else {
            write!(f, "{value:.1} {unit}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("2MiB", 2 << 20),
            ("1.5 gib", 3 << 29),
            ("8GB", 8_000_000_000),
            (" 32k ", 32 << 10),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_names_itself_and_the_remedy() {
        for text in ["", "GiB", "-1", "2 parsecs", "1.2.3MiB", "99999999999999999999", "20000000TiB"] {
            let error = text.parse::<ByteSize>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")) && error.contains("such as 2MiB"), "{error}");
        }
    }

    #[test]
    fn sizes_are_shown_short() {
        let shown =
            [500, 32 << 10, 3 << 19, 8 << 30, (23 << 30) + (1 << 29)].map(|b| ByteSize(b).to_string());
        assert_eq!(shown, ["500 B", "32 KiB", "1.5 MiB", "8 GiB", "23.5 GiB"]);
    }
}
