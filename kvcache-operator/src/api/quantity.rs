//! Amounts as Kubernetes writes them: `120Gi`, `500m`, `1e3`.
//!
//! The API server stores them in a canonical form (`10000m` becomes `10`). What the operator applies has that form
//! already, or a comparison with the stored object would find a difference for ever.

use std::fmt;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// A parsed quantity, in billionths: the finest that Kubernetes keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Amount {
    nanos: i128,
    form: Form,
}

/// Which suffixes a quantity is written with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    Decimal,
    Binary,
    Exponent,
}

const NANO: i128 = 1_000_000_000;
/// Kubernetes caps what is larger.
const NANOS_MAX: i128 = i64::MAX as i128 * NANO;
const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
/// From billionths up, each a thousand times the last.
const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];

impl Amount {
    /// The amount, or `None` for a text that is no quantity.
    pub(crate) fn parse(quantity: &Quantity) -> Option<Self> {
        let text = quantity.0.trim();
        let (negative, unsigned) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return None;
        }
        let (form, scale) = scale(suffix)?;
        let nanos = nanos(whole, fraction, scale);
        Some(Self { nanos: if negative { -nanos } else { nanos }, form })
    }

    /// Whole units, rounded down; 0 for what is negative.
    pub(crate) fn units(self) -> u64 {
        // The cap is below `u64::MAX`.
        u64::try_from(self.nanos / NANO).unwrap_or(0)
    }

    /// Whether it is less than nothing.
    pub(crate) fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// Whether both are the same amount, however written.
    pub(crate) fn cmp_amount(self, other: Self) -> std::cmp::Ordering {
        self.nanos.cmp(&other.nanos)
    }

    /// The canonical form, as the API server would store it.
    pub(crate) fn canonical(self) -> Quantity {
        Quantity(self.to_string())
    }
}

/// A suffix's form and its factor.
fn scale(suffix: &str) -> Option<(Form, Scale)> {
    if let Some(step) = BINARY.iter().skip(1).position(|known| *known == suffix) {
        return Some((Form::Binary, Scale::TwoTo(10 * (step as u32 + 1))));
    }
    if let Some(step) = DECIMAL.iter().position(|known| *known == suffix) {
        return Some((Form::Decimal, Scale::TenTo(3 * step as i32 - 9)));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    let exponent: i32 = exponent.parse().ok()?;
    Some((Form::Exponent, Scale::TenTo(exponent)))
}

#[derive(Clone, Copy)]
enum Scale {
    TwoTo(u32),
    TenTo(i32),
}

/// The digits times the scale in billionths, rounded up and capped as Kubernetes does.
fn nanos(whole: &str, fraction: &str, scale: Scale) -> i128 {
    let digits: String = whole.chars().chain(fraction.chars()).skip_while(|digit| *digit == '0').collect();
    if digits.is_empty() {
        return 0;
    }
    // Digits beyond these cannot change the result: it is capped, or they are below a billionth.
    let Ok(mut value) = digits.parse::<i128>() else { return NANOS_MAX };
    let mut ten_to = 9 - i32::try_from(fraction.len()).unwrap_or(i32::MAX);
    match scale {
        Scale::TenTo(exponent) => ten_to = ten_to.saturating_add(exponent),
        Scale::TwoTo(exponent) => {
            let Some(scaled) = value.checked_mul(1 << exponent) else { return NANOS_MAX };
            value = scaled;
        }
    }
    let Some(factor) = 10_i128.checked_pow(ten_to.unsigned_abs()) else {
        return if ten_to > 0 { NANOS_MAX } else { 1 };
    };
    let nanos = if ten_to >= 0 { value.saturating_mul(factor) } else { (value + factor - 1) / factor };
    nanos.min(NANOS_MAX)
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let is_whole = self.nanos % NANO == 0;
        if self.form == Form::Binary && is_whole && self.nanos.abs() >= 1024 * NANO {
            let (mantissa, step) = strip(self.nanos / NANO, 1024, BINARY.len() - 1);
            return write!(f, "{mantissa}{}", BINARY[step]);
        }
        let (mantissa, step) = strip(self.nanos, 1000, DECIMAL.len() - 1);
        match (self.form, 3 * step as i32 - 9) {
            (Form::Exponent, 0) => write!(f, "{mantissa}"),
            (Form::Exponent, exponent) => write!(f, "{mantissa}e{exponent}"),
            _ => write!(f, "{mantissa}{}", DECIMAL[step]),
        }
    }
}

/// Divides by `base` while nothing is lost, `steps_max` times at most.
fn strip(mut mantissa: i128, base: i128, steps_max: usize) -> (i128, usize) {
    let mut steps = 0;
    while steps < steps_max && mantissa % base == 0 {
        mantissa /= base;
        steps += 1;
    }
    (mantissa, steps)
}

/// A number of bytes as a binary quantity: `34359738368` is `32Gi`.
pub(crate) fn of_bytes(bytes: u64) -> Quantity {
    Amount { nanos: i128::from(bytes) * NANO, form: Form::Binary }.canonical()
}

/// Whole units of a quantity, rounded down.
#[cfg(test)]
pub(crate) fn units(quantity: &Quantity) -> Option<u64> {
    Amount::parse(quantity).map(Amount::units)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(text: &str) -> Option<String> {
        Amount::parse(&Quantity(text.to_owned())).map(|amount| amount.to_string())
    }

    /// What Kubernetes' own `resource.Quantity` prints for these.
    #[test]
    fn quantities_are_written_as_the_api_server_stores_them() {
        for (text, stored) in [
            ("0", "0"),
            ("0Gi", "0"),
            ("10000m", "10"),
            ("1500m", "1500m"),
            ("1.5", "1500m"),
            ("0.5", "500m"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("1000Mi", "1000Mi"),
            ("120Gi", "120Gi"),
            ("120G", "120G"),
            ("1000", "1k"),
            ("1024", "1024"),
            ("1024Ki", "1Mi"),
            ("512", "512"),
            ("0.5Ki", "512"),
            ("1.5Ki", "1536"),
            ("62.5Ki", "64000"),
            ("64000", "64k"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("12e4", "120e3"),
            ("1e-3", "1e-3"),
            ("5E", "5E"),
            ("0.1n", "1n"),
            ("+3", "3"),
            ("-1.5", "-1500m"),
            (".5", "500m"),
            ("5.", "5"),
            ("100000000000000000000", "9223372036854775807"),
        ] {
            assert_eq!(canonical(text).as_deref(), Some(stored), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_not_taken_for_one() {
        for text in ["", ".", "-", "Gi", "1GiB", "1 Gi", "1gi", "1K", "1e", "1.2.3", "0x10", "1e1.5", "١"] {
            assert_eq!(canonical(text), None, "{text}");
        }
    }

    #[test]
    fn units_are_rounded_down() {
        for (text, units) in [("400m", 0), ("1.9", 1), ("2Gi", 2 << 30), ("-5", 0), ("1e3", 1000)] {
            assert_eq!(Amount::parse(&Quantity(text.to_owned())).map(Amount::units), Some(units), "{text}");
        }
        assert_eq!(of_bytes(32 << 30).0, "32Gi");
        assert_eq!(of_bytes(1000).0, "1k");
    }

    proptest! {
        /// The canonical form is the same amount, and a fixed point once it is read again: a fraction of a binary suffix is
        /// written without any, and read as a decimal number.
        #[test]
        fn canonical_forms_stay_as_they_are(
            number in "[0-9]{1,9}(\\.[0-9]{0,4})?",
            suffix in prop::sample::select(vec!["", "m", "k", "M", "G", "Ki", "Mi", "Gi", "Ti", "e3", "E-2", "u"]),
        ) {
            let first = Amount::parse(&Quantity(format!("{number}{suffix}"))).expect("a quantity");
            let again = Amount::parse(&first.canonical()).expect("a quantity");
            let third = Amount::parse(&again.canonical()).expect("a quantity");
            prop_assert_eq!((first.nanos, first.nanos), (again.nanos, third.nanos));
            prop_assert_eq!(again.to_string(), third.to_string());
        }
    }
}
