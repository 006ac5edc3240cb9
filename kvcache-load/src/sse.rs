//! Server-sent events, cut out of bytes as they arrive (WHATWG HTML, section 9.2.6 "Interpreting an event stream").

/// Takes an event stream apart, wherever the network has cut it. Only the data of events is of interest here: their
/// names, ids and comments are skipped.
///
/// Memory: one line and the data of one event, [`EVENT_BYTES_MAX`] each.
#[derive(Default, Debug)]
pub(crate) struct EventReader {
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    /// The data of the event whose end has not come, each line with a line end.
    data: Vec<u8>,
    /// The last byte was a carriage return: a line feed after it belongs to it.
    after_return: bool,
    /// The first line, which may begin with a byte order mark, has been read.
    begun: bool,
}

/// A line or an event is longer than [`EVENT_BYTES_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TooLong;

impl EventReader {
    /// Reads `bytes` and gives the data of each event that ends in them to `event`, which may refuse to go on.
    pub(crate) fn read<E: From<TooLong>>(
        &mut self,
        mut bytes: &[u8],
        mut event: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() {
            if std::mem::take(&mut self.after_return) && bytes[0] == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
                return append(&mut self.line, bytes).map_err(E::from);
            };
            self.after_return = bytes[end] == b'\r';
            if self.line.is_empty() {
                self.end_line(&bytes[..end], &mut event)?;
            } else {
                append(&mut self.line, &bytes[..end])?;
                let line = std::mem::take(&mut self.line);
                self.end_line(&line, &mut event)?;
                // Its memory is used again.
                self.line = line;
                self.line.clear();
            }
            bytes = &bytes[end + 1..];
        }
        Ok(())
    }

    /// Ends the stream. An event that was not ended by a blank line is given as well: some servers leave that out
    /// after the last one.
    pub(crate) fn end<E: From<TooLong>>(
        &mut self,
        mut event: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let line = std::mem::take(&mut self.line);
        self.end_line(&line, &mut event)?;
        self.end_line(b"", &mut event)
    }

    fn end_line<E: From<TooLong>>(
        &mut self,
        line: &[u8],
        event: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let line = match std::mem::replace(&mut self.begun, true) {
            true => line,
            false => line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line),
        };
        if line.is_empty() {
            if self.data.is_empty() {
                return Ok(());
            }
            self.data.pop();
            let result = event(&self.data);
            self.data.clear();
            return result;
        }
        let Some(value) = line.strip_prefix(b"data") else { return Ok(()) };
        let value = match value.split_first() {
            None => value,
            Some((b':', value)) => value.strip_prefix(b" ").unwrap_or(value),
            // Another field, whose name only begins like this.
            Some(_) => return Ok(()),
        };
        append(&mut self.data, value)?;
        self.data.push(b'\n');
        Ok(())
    }
}

fn append(buffer: &mut Vec<u8>, bytes: &[u8]) -> Result<(), TooLong> {
    if buffer.len() + bytes.len() > EVENT_BYTES_MAX {
        return Err(TooLong);
    }
    buffer.extend_from_slice(bytes);
    Ok(())
}

/// An event of one token is 300 bytes long, one with the log probabilities of 20 candidates some KiB.
pub(crate) const EVENT_BYTES_MAX: usize = 1 << 20;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The data of the events of a stream that comes in these parts.
    fn events(parts: &[&[u8]]) -> Result<Vec<Vec<u8>>, TooLong> {
        let (mut reader, mut events) = (EventReader::default(), Vec::new());
        for part in parts {
            reader.read::<TooLong>(part, |data| {
                events.push(data.to_vec());
                Ok(())
            })?;
        }
        reader.end::<TooLong>(|data| {
            events.push(data.to_vec());
            Ok(())
        })?;
        Ok(events)
    }

    fn texts(stream: &str) -> Vec<String> {
        let events = events(&[stream.as_bytes()]).expect("short");
        events.into_iter().map(|event| String::from_utf8(event).expect("text")).collect()
    }

    #[test]
    fn data_of_events_is_given() {
        assert_eq!(texts("data: {\"a\": 1}\n\ndata: [DONE]\n\n"), ["{\"a\": 1}", "[DONE]"]);
        assert_eq!(texts("data:a\r\n\r\ndata:  b\r\rdata: c\n\r\n"), ["a", " b", "c"]);
        assert_eq!(texts("data: first\ndata: second\ndata\n\n"), ["first\nsecond\n"]);
    }

    #[test]
    fn what_is_no_data_is_skipped() {
        let stream = ": ping\n\nevent: x\nid: 7\nretry: 3\ndatabase: no\ndata: a\n\n\n\n: end\n\n";
        assert_eq!(texts(stream), ["a"]);
        assert_eq!(texts("\u{feff}data: a\n\n\u{feff}data: b\n\n"), ["a"]);
    }

    #[test]
    fn the_last_event_may_lack_its_blank_line() {
        assert_eq!(texts("data: a\n\ndata: [DONE]"), ["a", "[DONE]"]);
        assert_eq!(texts("data: a\n\ndata: [DONE]\n"), ["a", "[DONE]"]);
    }

    #[test]
    fn a_line_and_an_event_have_a_longest() {
        let line = vec![b'x'; EVENT_BYTES_MAX];
        assert!(events(&[&line]).is_ok());
        assert_eq!(events(&[&line, b"x"]), Err(TooLong));
        let lines = b"data: 0123456789\n".repeat(EVENT_BYTES_MAX / 11 + 1);
        assert_eq!(events(&[&lines]), Err(TooLong));
    }

    proptest! {
        /// The oracle: the stream in one piece, its lines split by hand.
        #[test]
        fn cuts_change_nothing(
            lines in proptest::collection::vec(
                prop_oneof![
                    Just(String::new()), "data: ?[a-z: ]{0,6}", ": [a-z]{0,3}", "[a-z]{1,5}:?[a-z]{0,3}"
                ],
                0..14,
            ),
            ends in proptest::collection::vec(0usize..3, 14),
            mut cuts in proptest::collection::vec(0usize..200, 0..6),
        ) {
            let mut stream = String::new();
            let (mut expected, mut data) = (Vec::new(), Vec::new());
            for (line, end) in lines.iter().zip(&ends) {
                stream += line;
                stream += ["\n", "\r\n", "\r"][*end];
            }
            // A return and a line feed after each other are one line end.
            let normal = stream.replace("\r\n", "\n").replace('\r', "\n");
            for line in normal.split('\n') {
                if let Some(value) = line.strip_prefix("data:") {
                    data.push(value.strip_prefix(' ').unwrap_or(value));
                } else if line == "data" {
                    data.push("");
                } else if line.is_empty() && !data.is_empty() {
                    expected.push(std::mem::take(&mut data).join("\n").into_bytes());
                }
            }
            if !data.is_empty() {
                expected.push(data.join("\n").into_bytes());
            }
            let bytes = stream.as_bytes();
            prop_assert_eq!(events(&[bytes]).expect("short"), expected.clone());
            cuts.iter_mut().for_each(|cut| *cut = (*cut).min(bytes.len()));
            cuts.sort_unstable();
            let mut parts = Vec::new();
            let mut from = 0;
            for cut in cuts {
                parts.push(&bytes[from..cut]);
                from = cut;
            }
            parts.push(&bytes[from..]);
            prop_assert_eq!(events(&parts).expect("short"), expected.clone());
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(events(&single).expect("short"), expected);
        }
    }
}
