//! Writes flatbuffers from back to front, in the order in which the reference implementation does.
//!
//! The format leaves the layout to the writer. Ours equals the stock client's byte for byte, so that captures of one
//! serve as tests of the other.

/// Grows downwards: `bytes` holds the buffer reversed, so that pushing is prepending.
#[derive(Debug, Default)]
pub(super) struct Builder {
    reversed: Vec<u8>,
    align_max: usize,
    /// Slot and position (bytes from the end) of the fields of the table that is being written.
    fields: [(usize, usize); FIELDS_MAX],
    field_count: usize,
    table_start: usize,
}

/// The position of something written: its distance from the end of the buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position(usize);

/// The widest table has five fields.
const FIELDS_MAX: usize = 5;

impl Builder {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self { reversed: Vec::with_capacity(bytes), align_max: 1, ..Self::default() }
    }

    pub(super) fn string(&mut self, text: &[u8]) -> Position {
        self.align_before(text.len() + 1, 4);
        self.reversed.push(0);
        self.reversed.extend(text.iter().rev());
        self.u32(text.len() as u32);
        self.here()
    }

    /// The strings are written in the given order, hence end up in memory last first, below them the vector.
    pub(super) fn strings<K: AsRef<[u8]>>(&mut self, texts: &[K]) -> Position {
        let positions: Vec<Position> = texts.iter().map(|text| self.string(text.as_ref())).collect();
        self.align_before(positions.len() * 4, 4);
        for position in positions.iter().rev() {
            self.offset(*position);
        }
        self.u32(positions.len() as u32);
        self.here()
    }

    pub(super) fn u64s(
        &mut self,
        numbers: impl DoubleEndedIterator<Item = u64> + ExactSizeIterator,
    ) -> Position {
        let count = numbers.len();
        if count > 0 {
            self.align_before(count * 8, 8);
        }
        for number in numbers.rev() {
            self.push(&number.to_le_bytes());
        }
        self.u32(count as u32);
        self.here()
    }

    pub(super) fn start_table(&mut self) {
        self.table_start = self.reversed.len();
        self.field_count = 0;
    }

    pub(super) fn field_offset(&mut self, slot: usize, to: Position) {
        self.offset(to);
        self.note_field(slot);
    }

    /// A field of 1, 4 or 8 bytes; the default, zero, is left out as every writer does.
    pub(super) fn field<const N: usize>(&mut self, slot: usize, little_endian: [u8; N]) {
        if little_endian != [0; N] {
            self.align(N);
            self.push(&little_endian);
            self.note_field(slot);
        }
    }

    /// Ends the table, and with it the buffer: the table is its root.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.align(4);
        let table = self.reversed.len() + 4;
        let fields = &self.fields[..self.field_count];
        let slots = fields.iter().map(|(slot, _)| slot + 1).max().unwrap_or(0);
        let vtable_bytes = 4 + 2 * slots;
        let mut vtable = [0; 4 + 2 * FIELDS_MAX];
        vtable[0..2].copy_from_slice(&(vtable_bytes as u16).to_le_bytes());
        vtable[2..4].copy_from_slice(&((table - self.table_start) as u16).to_le_bytes());
        for (slot, position) in fields {
            vtable[4 + 2 * slot..6 + 2 * slot].copy_from_slice(&((table - position) as u16).to_le_bytes());
        }
        // The table's first word leads back to its vtable, which lies right before it.
        self.push(&(vtable_bytes as i32).to_le_bytes());
        self.push(&vtable[..vtable_bytes]);
        self.align_before(4, self.align_max.max(4));
        self.offset(Position(table));
        self.reversed.reverse();
        self.reversed
    }

    fn note_field(&mut self, slot: usize) {
        self.fields[self.field_count] = (slot, self.reversed.len());
        self.field_count += 1;
    }

    fn here(&self) -> Position {
        Position(self.reversed.len())
    }

    fn offset(&mut self, to: Position) {
        self.align(4);
        let distance = self.reversed.len() + 4 - to.0;
        self.push(&(distance as u32).to_le_bytes());
    }

    fn u32(&mut self, number: u32) {
        self.align(4);
        self.push(&number.to_le_bytes());
    }

    fn push(&mut self, bytes: &[u8]) {
        self.reversed.extend(bytes.iter().rev());
    }

    fn align(&mut self, to: usize) {
        self.align_before(0, to);
    }

    /// Pads so that after `bytes` more bytes the position is a multiple of `to`.
    fn align_before(&mut self, bytes: usize, to: usize) {
        self.align_max = self.align_max.max(to);
        let end = self.reversed.len() + bytes;
        let padding = end.next_multiple_of(to) - end;
        self.reversed.resize(self.reversed.len() + padding, 0);
    }
}
