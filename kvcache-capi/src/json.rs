//! Settings as JSON. Every error says the key and where in the text its value stands.

use std::cell::RefCell;
use std::fmt;

use kvcache_core::byte_size::ByteSize;
use kvcache_core::nearest_name::nearest_name;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::status::Failure;

/// The settings of one object.
pub(crate) struct Settings<'a> {
    /// The whole text, for places in it.
    text: &'a str,
    entries: Vec<(String, &'a RawValue)>,
}

impl<'a> Settings<'a> {
    /// Reads an object whose keys are among `known`.
    pub(crate) fn parse(text: &'a str, known: &[&str]) -> Result<Self, Failure> {
        Self::parse_part(text, text, known)
    }

    fn parse_part(text: &'a str, part: &'a str, known: &[&str]) -> Result<Self, Failure> {
        let entries = RefCell::new(Vec::new());
        let reading = RefCell::new(None);
        let mut parser = serde_json::Deserializer::from_str(part);
        let read = parser.deserialize_map(Entries { entries: &entries, reading: &reading });
        let read = read.and_then(|()| parser.end());
        let start = offset_in(text, part);
        if let Err(error) = read {
            let at = start + offset_of(part, error.line(), error.column());
            let key = reading.take().map(|key: String| format!(", at key {key:?}")).unwrap_or_default();
            let problem = error.to_string();
            let problem = problem.split(" at line ").next().unwrap_or_default();
            return Err(Failure::config(format!(
                "the configuration is not JSON{key}: {problem}{}",
                place(text, at)
            )));
        }
        let settings = Self { text, entries: entries.into_inner() };
        settings.check_names(known)?;
        Ok(settings)
    }

    fn check_names(&self, known: &[&str]) -> Result<(), Failure> {
        for (position, (name, value)) in self.entries.iter().enumerate() {
            let at = place(self.text, offset_in(self.text, value.get()));
            if !known.contains(&name.as_str()) {
                let remedy = match nearest_name(name, known.iter().copied()) {
                    Some(near) => format!("did you mean {near:?}?"),
                    None => format!("known ones are {}", known.join(", ")),
                };
                return Err(Failure::config(format!("unknown setting {name:?}{at}: {remedy}")));
            }
            if self.entries[..position].iter().any(|(earlier, _)| earlier == name) {
                return Err(Failure::config(format!("setting {name:?} stands twice{at}: remove one")));
            }
        }
        Ok(())
    }

    fn value(&self, name: &str) -> Option<&'a RawValue> {
        let (_, value) = self.entries.iter().find(|(key, _)| key == name)?;
        (value.get() != "null").then_some(*value)
    }

    /// An error about the value of `name`.
    pub(crate) fn wrong(&self, name: &str, remedy: impl fmt::Display) -> Failure {
        let Some(value) = self.value(name) else {
            return Failure::config(format!("setting {name:?} is missing: {remedy}"));
        };
        let at = place(self.text, offset_in(self.text, value.get()));
        let mut shown: String = value.get().chars().take(80).collect();
        if shown.len() < value.get().len() {
            shown.push_str("...");
        }
        Failure::config(format!("setting {name:?} is {shown}{at}: {remedy}"))
    }

    fn typed<T: serde::Deserialize<'a>>(&self, name: &str, remedy: &str) -> Result<Option<T>, Failure> {
        let Some(value) = self.value(name) else { return Ok(None) };
        serde_json::from_str(value.get()).map(Some).map_err(|_| self.wrong(name, remedy))
    }

    /// Whether `name` is set.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }

    /// A text.
    pub(crate) fn text(&self, name: &str) -> Result<Option<String>, Failure> {
        self.typed(name, "give a text in quotes")
    }

    /// True or false.
    pub(crate) fn flag(&self, name: &str) -> Result<Option<bool>, Failure> {
        self.typed(name, "give true or false")
    }

    /// A whole number from 0 up.
    pub(crate) fn count(&self, name: &str) -> Result<Option<u64>, Failure> {
        self.typed(name, "give a whole number from 0 up")
    }

    /// A whole number of 32 bits.
    pub(crate) fn small_count(&self, name: &str) -> Result<Option<u32>, Failure> {
        self.typed(name, "give a whole number from 0 to 4294967295")
    }

    /// A list of whole numbers; empty without one.
    pub(crate) fn counts(&self, name: &str) -> Result<Vec<u64>, Failure> {
        Ok(self.typed(name, "give a list of whole numbers from 0 up, such as [0, 1]")?.unwrap_or_default())
    }

    /// A number of bytes, plain or with a unit.
    pub(crate) fn byte_count(&self, name: &str) -> Result<Option<u64>, Failure> {
        let Some(value) = self.value(name) else { return Ok(None) };
        if let Ok(count) = serde_json::from_str(value.get()) {
            return Ok(Some(count));
        }
        let remedy = "give a number of bytes, or a text such as \"8GiB\"";
        let text: String = serde_json::from_str(value.get()).map_err(|_| self.wrong(name, remedy))?;
        text.parse().map(|ByteSize(bytes)| Some(bytes)).map_err(|_| self.wrong(name, remedy))
    }

    /// Seconds from 0 up.
    pub(crate) fn seconds(&self, name: &str) -> Result<Option<f64>, Failure> {
        let remedy = "give seconds from 0 up";
        match self.typed::<f64>(name, remedy)? {
            Some(seconds) if std::time::Duration::try_from_secs_f64(seconds).is_err() => {
                Err(self.wrong(name, remedy))
            }
            seconds => Ok(seconds),
        }
    }

    /// 16 bytes, written as 32 hexadecimal digits.
    pub(crate) fn fingerprint(&self, name: &str) -> Result<Option<[u8; 16]>, Failure> {
        let remedy = "give 32 hexadecimal digits";
        let Some(text) = self.typed::<String>(name, remedy)? else { return Ok(None) };
        let mut bytes = [0; 16];
        if text.len() != 32 || !text.is_ascii() {
            return Err(self.wrong(name, remedy));
        }
        for (position, byte) in bytes.iter_mut().enumerate() {
            let digits = &text[2 * position..2 * position + 2];
            let digits = digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then_some(digits);
            *byte = digits
                .and_then(|digits| u8::from_str_radix(digits, 16).ok())
                .ok_or_else(|| self.wrong(name, remedy))?;
        }
        Ok(Some(bytes))
    }

    /// The objects of a list, each with keys among `known`.
    pub(crate) fn list(&self, name: &str, known: &[&str]) -> Result<Option<Vec<Settings<'a>>>, Failure> {
        let Some(parts) = self.typed::<Vec<&RawValue>>(name, "give a list of objects")? else {
            return Ok(None);
        };
        let parts = parts.into_iter().map(|part| Settings::parse_part(self.text, part.get(), known));
        parts.collect::<Result<_, _>>().map(Some)
    }
}

/// Reads an object's entries, and keeps the key that is being read.
struct Entries<'s, 'a> {
    entries: &'s RefCell<Vec<(String, &'a RawValue)>>,
    reading: &'s RefCell<Option<String>>,
}

impl<'a> Visitor<'a> for Entries<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of settings")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(key) = map.next_key::<String>()? {
            self.reading.replace(Some(key.clone()));
            let value = map.next_value::<&RawValue>()?;
            self.reading.replace(None);
            if self.entries.borrow().len() == ENTRIES_MAX {
                return Err(M::Error::custom(format!("more than {ENTRIES_MAX} settings")));
            }
            self.entries.borrow_mut().push((key, value));
        }
        Ok(())
    }
}

/// Far more than there are settings.
const ENTRIES_MAX: usize = 1000;

/// Where `part`, which lies in `text`, begins.
fn offset_in(text: &str, part: &str) -> usize {
    part.as_ptr().addr() - text.as_ptr().addr()
}

/// The offset of a line and a column, which both count from 1, the column in bytes.
fn offset_of(text: &str, line: usize, column: usize) -> usize {
    let start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    (start + column.saturating_sub(1)).min(text.len())
}

/// The place of an offset, in words.
fn place(text: &str, offset: usize) -> String {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
    format!(" (line {line}, column {column})")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[&str] = &["block_bytes", "capacity_bytes", "namespace", "layers", "shared_memory", "id"];

    fn refusal(text: &str) -> String {
        match Settings::parse(text, KNOWN) {
            Ok(_) => String::new(),
            Err(failure) => failure.text,
        }
    }

    #[test]
    fn broken_text_names_key_and_place() {
        assert_eq!(
            refusal(""),
            "the configuration is not JSON: EOF while parsing a value (line 1, column 1)"
        );
        assert_eq!(
            refusal("[1]"),
            "the configuration is not JSON: invalid type: sequence, expected an object of settings (line 1, column 1)"
        );
        assert_eq!(
            refusal("{\n \"block_bytes\": 4096,\n \"namespace\": demo}"),
            "the configuration is not JSON, at key \"namespace\": expected value (line 3, column 15)"
        );
        assert!(refusal("{} {}").contains("trailing characters (line 1, column 4)"));
    }

    #[test]
    fn unknown_and_doubled_names_are_refused() {
        assert_eq!(
            refusal("{\"block_byte\": 1}"),
            "unknown setting \"block_byte\" (line 1, column 16): did you mean \"block_bytes\"?"
        );
        assert!(refusal("{\"zzzzzzzzzzzz\": 1}").contains("known ones are block_bytes, capacity_bytes"));
        assert_eq!(
            refusal("{\"id\": 1,\n\"id\": 2}"),
            "setting \"id\" stands twice (line 2, column 7): remove one"
        );
    }

    #[test]
    fn wrong_values_name_key_value_place_and_remedy() {
        let text = "{\"block_bytes\": \"many\", \"capacity_bytes\": -1,\n \"namespace\": 7, \"shared_memory\": 1, \"id\": \"0g\"}";
        let settings = Settings::parse(text, KNOWN).unwrap();
        assert_eq!(
            settings.byte_count("block_bytes").unwrap_err().text,
            "setting \"block_bytes\" is \"many\" (line 1, column 17): give a number of bytes, or a text such as \"8GiB\""
        );
        assert!(
            settings.byte_count("capacity_bytes").unwrap_err().text.contains("is -1 (line 1, column 43)")
        );
        assert!(
            settings.text("namespace").unwrap_err().text.contains("is 7 (line 2, column 15): give a text")
        );
        assert!(settings.flag("shared_memory").unwrap_err().text.contains("give true or false"));
        assert!(settings.fingerprint("id").unwrap_err().text.contains("32 hexadecimal digits"));
    }

    #[test]
    fn values_are_read() {
        let text = "{\"block_bytes\": 4096, \"capacity_bytes\": \"8GiB\", \"namespace\": \"a\\u00e4\", \"shared_memory\": null, \
                    \"id\": \"000102030405060708090a0b0c0d0e0F\", \"layers\": [{\"id\": 1}, {\"id\": 2}]}";
        let settings = Settings::parse(text, KNOWN).unwrap();
        assert_eq!(settings.byte_count("block_bytes").unwrap(), Some(4096));
        assert_eq!(settings.byte_count("capacity_bytes").unwrap(), Some(8 << 30));
        assert_eq!(settings.text("namespace").unwrap().as_deref(), Some("aä"));
        assert_eq!(settings.flag("shared_memory").unwrap(), None);
        assert_eq!(settings.fingerprint("id").unwrap(), Some(std::array::from_fn(|byte| byte as u8)));
        let layers = settings.list("layers", KNOWN).unwrap().unwrap();
        assert_eq!(layers[1].count("id").unwrap(), Some(2));
        assert!(
            Settings::parse("{\"layers\": [{\"idd\": 1}]}", KNOWN)
                .unwrap()
                .list("layers", KNOWN)
                .err()
                .is_some_and(|failure| failure.text.contains("\"idd\" (line 1, column 21)"))
        );
    }
}
