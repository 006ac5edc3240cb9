//! Times as logs write them.

use serde_json::Value;

use super::log::TimeUnit;

/// A time in milliseconds: a number in `unit`, or a date like `2023-11-16 18:15:46.680590` or `2024-05-10T00:00:00Z`.
pub(super) fn milliseconds(value: &Value, unit: TimeUnit) -> Result<f64, String> {
    let time = match value {
        Value::Number(number) => number.as_f64().map(|time| time * unit.milliseconds()),
        Value::String(text) => match text.trim().parse::<f64>() {
            Ok(time) => Some(time * unit.milliseconds()),
            Err(_) => date(text.trim()),
        },
        _ => None,
    };
    time.filter(|time| time.is_finite() && time.abs() < TIME_MS_MAX)
        .ok_or_else(|| format!("{value} is no time; give a number or a date like 2024-05-10T12:00:00Z"))
}

/// Milliseconds since 1970 of a date and a time of day, in UTC if it does not say `+02:00` or the like.
fn date(text: &str) -> Option<f64> {
    let (day, rest) = text.split_at_checked(10)?;
    let mut parts = day.split('-').map(number);
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    if parts.next().is_some() || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let rest = rest.strip_prefix([' ', 'T'])?;
    let (clock, offset_s) = match rest.strip_suffix('Z') {
        Some(clock) => (clock, 0),
        None => match rest.rfind(['+', '-']) {
            Some(at) => (&rest[..at], offset(&rest[at..])?),
            None => (rest, 0),
        },
    };
    let mut parts = clock.split(':');
    let (hour, minute) = (number(parts.next()?)?, number(parts.next()?)?);
    let second: f64 = parts.next()?.parse().ok()?;
    if parts.next().is_some() || hour > 23 || minute > 59 || !(0.0..61.0).contains(&second) {
        return None;
    }
    let seconds = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 - offset_s;
    Some((seconds as f64 + second) * 1000.0)
}

/// `+02:00` or `+0200`, in seconds.
fn offset(text: &str) -> Option<i64> {
    let digits = text.get(1..)?.replace(':', "");
    let (hours, minutes) = digits.split_at_checked(2)?;
    let seconds = number(hours)? * 3600 + if minutes.is_empty() { 0 } else { number(minutes)? * 60 };
    Some(if text.starts_with('-') { -seconds } else { seconds })
}

fn number(text: &str) -> Option<i64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// Days since 1970 of a day in the Gregorian calendar. Years begin in March, so that the leap day is the last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month < 3 { (year - 1, month + 9) } else { (year, month - 3) };
    let leap_days = year / 4 - year / 100 + year / 400;
    // Months from March on begin on days 0, 31, 61, 92, 122, ... of their year.
    year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1 - 719_468
}

/// Far enough, and exact to the microsecond.
const TIME_MS_MAX: f64 = 1e13;

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(value: Value) -> Result<f64, String> {
        milliseconds(&value, TimeUnit::S)
    }

    #[test]
    fn dates_are_milliseconds_since_1970() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", 0.0),
            ("2000-02-29 12:00:00", 951_825_600_000.0),
            ("2023-11-16 18:15:46.680590", 1_700_158_546_680.59),
            ("2024-05-10T00:00:00+02:00", 1_715_292_000_000.0),
            ("2024-05-10T00:00:00.5-0130", 1_715_304_600_500.0),
            ("1969-12-31T23:59:59Z", -1000.0),
        ] {
            let got = ms(Value::from(text)).expect(text);
            assert!((got - expected).abs() < 0.001, "{text}: {got}");
        }
    }

    #[test]
    fn numbers_have_a_unit() {
        assert_eq!(ms(Value::from(1.5)), Ok(1500.0));
        assert_eq!(ms(Value::from(" 1.5 ")), Ok(1500.0));
        assert_eq!(milliseconds(&Value::from(1500), TimeUnit::Us), Ok(1.5));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for bad in [
            "",
            "now",
            "2024-13-01 00:00:00",
            "2024-01-01",
            "2024-01-01 25:00:00",
            "2024-01-01 00:00",
            "NaN",
            "1e300",
        ] {
            let error = ms(Value::from(bad)).expect_err(bad);
            assert!(error.contains("is no time"), "{error}");
        }
        assert!(ms(Value::Null).is_err());
        assert!(ms(Value::from("2024-05-10T00:00:0é")).is_err());
    }
}
