//! In which order one member would like to have the slots.
//!
//! With independent random ranks the loads of `n` members scatter like those of a lottery: by `1/sqrt(4096/n)`, which
//! is 12 % at 64 members, so that a fifth of them hit the bound of 1.1 and every newcomer stirs those. Two rules take
//! most of that away without giving up that a rank depends on nothing but the member's name and the slot:
//!
//! 1. *A member's ranks are a permutation*: it ranks exactly one slot first, one second and so on. This halves the
//!    variance of the loads.
//! 2. *What two members like best overlaps evenly.* The slots are the points `(x, y)` of the plane over the field of
//!    64 elements. A member has a slope and ranks the 64 parallel lines of that slope one after the other, 64 slots
//!    each. Lines of different slopes meet in exactly one point, so a member's best line costs every member of
//!    another slope exactly one slot of its best line, where random sets would overlap in none, one, two or three.
//!
//! There are 65 slopes. Members whose names differ by a number (pods, addresses, ports) get different ones; between
//! unlike names chance decides, and two on one slope share evenly what they both like.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::RING_SLOTS;

/// Elements of the field: the side of the plane, the lines of a slope and the slots of a line.
pub(super) const SIDE: usize = 64;

/// Slopes of the plane: one for each element of the field, and the vertical one.
const SLOPES: u8 = 65;
const VERTICAL: u8 = 64;

/// One member's ranks of all slots. 140 bytes; a rank costs a few nanoseconds.
#[derive(Clone)]
pub(super) struct Preference {
    seed: u64,
    slope: u8,
    /// The lines of the slope, the best first, and the inverse.
    line_of_level: [u8; SIDE],
    level_of_line: [u8; SIDE],
}

/// The lines that are at one level for one member, prepared for walking along it.
pub(super) struct Line {
    slope: u8,
    line: u8,
    /// Inverse of the factor in [`Preference::along`].
    inverse: u8,
    shift: u8,
}

impl Preference {
    pub(super) fn of(name: &str) -> Self {
        let seed = xxh3_64(name.as_bytes());
        let mut line_of_level: [u8; SIDE] = std::array::from_fn(|line| line as u8);
        for last in (1..SIDE).rev() {
            let other = draw(seed, Draw::Line, last as u64) % (last as u64 + 1);
            line_of_level.swap(last, other as usize);
        }
        let mut level_of_line = [0; SIDE];
        for (level, &line) in line_of_level.iter().enumerate() {
            level_of_line[usize::from(line)] = level as u8;
        }
        Self { seed, slope: slope(name), line_of_level, level_of_line }
    }

    /// The rank of `slot`: 0 for the best, no two alike.
    pub(super) fn rank(&self, slot: u16) -> u16 {
        let (x, y) = ((slot / SIDE as u16) as u8, (slot % SIDE as u16) as u8);
        let (line, position) = if self.slope == VERTICAL { (x, y) } else { (y ^ product(self.slope, x), x) };
        let level = self.level_of_line[usize::from(line)];
        let (factor, shift) = self.along(level);
        u16::from(level) * SIDE as u16 + u16::from(product(factor, position) ^ shift)
    }

    /// The order within a line is `factor * position + shift`, another one at each level.
    fn along(&self, level: u8) -> (u8, u8) {
        let drawn = draw(self.seed, Draw::Along, u64::from(level));
        (1 + (drawn % 63) as u8, (drawn >> 32) as u8 % SIDE as u8)
    }

    /// The slots of ranks `64 level` to `64 level + 63`.
    pub(super) fn line(&self, level: u8) -> Line {
        let (factor, shift) = self.along(level);
        let line = self.line_of_level[usize::from(level)];
        Line { slope: self.slope, line, inverse: INVERSES[usize::from(factor)], shift }
    }

    /// Decides between members that give a slot the same rank: the lower one has it.
    pub(super) fn tie(&self, slot: u16) -> u64 {
        draw(self.seed, Draw::Tie, u64::from(slot))
    }
}

impl Line {
    /// The slot at place `index < 64` of this line's order.
    pub(super) fn slot(&self, index: u8) -> u16 {
        let position = product(self.inverse, index ^ self.shift);
        let (x, y) = if self.slope == VERTICAL {
            (self.line, position)
        } else {
            (position, self.line ^ product(self.slope, position))
        };
        u16::from(x) * SIDE as u16 + u16::from(y)
    }
}

/// The slope of a member's lines.
///
/// Names that differ by a number must not differ by chance: the text around the numbers is hashed, the numbers are
/// added, each with a weight of its own (powers of 8 are coprime to 65, so equal steps of one number visit all slopes).
fn slope(name: &str) -> u8 {
    let slopes = u32::from(SLOPES);
    let (mut text, mut numbers) = (Vec::with_capacity(name.len()), 0u32);
    let mut number: Option<u32> = None;
    for byte in name.bytes() {
        if byte.is_ascii_digit() {
            number = Some((number.unwrap_or(0) * 10 + u32::from(byte - b'0')) % slopes);
            continue;
        }
        if let Some(value) = number.take() {
            numbers = (numbers * 8 + value) % slopes;
            text.push(b'0');
        }
        text.push(byte);
    }
    if let Some(value) = number {
        numbers = (numbers * 8 + value) % slopes;
        text.push(b'0');
    }
    ((xxh3_64(&text) % u64::from(slopes)) as u32 + numbers).rem_euclid(slopes) as u8
}

/// What a number is drawn for.
#[derive(Clone, Copy)]
enum Draw {
    Line = 1,
    Along = 2,
    Tie = 3,
}

fn draw(seed: u64, purpose: Draw, index: u64) -> u64 {
    xxh3_64_with_seed(&((purpose as u64) << 32 | index).to_le_bytes(), seed)
}

fn product(a: u8, b: u8) -> u8 {
    PRODUCTS[usize::from(a % SIDE as u8)][usize::from(b % SIDE as u8)]
}

/// Multiplication in the field of 64 elements: polynomials over the bits, modulo `x^6 + x + 1`.
static PRODUCTS: [[u8; SIDE]; SIDE] = {
    let mut table = [[0; SIDE]; SIDE];
    let mut a = 0;
    while a < SIDE {
        let mut b = 0;
        while b < SIDE {
            let (mut shifted, mut rest, mut sum) = (a, b, 0);
            while rest > 0 {
                if rest & 1 == 1 {
                    sum ^= shifted;
                }
                shifted <<= 1;
                if shifted >= SIDE {
                    shifted ^= 0b100_0011;
                }
                rest >>= 1;
            }
            table[a][b] = sum as u8;
            b += 1;
        }
        a += 1;
    }
    table
};

/// `INVERSES[a] * a = 1`, except for 0.
static INVERSES: [u8; SIDE] = {
    let mut table = [0; SIDE];
    let mut a = 1;
    while a < SIDE {
        let mut b = 1;
        while b < SIDE {
            if PRODUCTS[a][b] == 1 {
                table[a] = b as u8;
            }
            b += 1;
        }
        a += 1;
    }
    table
};

const _: () = assert!(SIDE * SIDE == RING_SLOTS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_is_a_field() {
        for a in 1..64 {
            assert_eq!(product(a, INVERSES[usize::from(a)]), 1, "{a}");
            let mut products: Vec<u8> = (0..64).map(|b| product(a, b)).collect();
            products.sort_unstable();
            assert!(products.iter().copied().eq(0..64), "{a}");
            for b in 0..64 {
                assert_eq!(product(a, b), product(b, a));
                assert_eq!(product(a, b ^ 17), product(a, b) ^ product(a, 17));
            }
        }
    }

    /// Both directions of the order agree, and it is a permutation, for every slope.
    #[test]
    fn ranks_are_a_permutation() {
        let mut slopes = [false; SLOPES as usize];
        for member in 0..65 {
            let preference = Preference::of(&format!("kv-{member}"));
            slopes[usize::from(preference.slope)] = true;
            let mut seen = [false; RING_SLOTS];
            for rank in 0..RING_SLOTS as u16 {
                let slot = preference.line((rank / 64) as u8).slot((rank % 64) as u8);
                assert_eq!(preference.rank(slot), rank);
                assert!(!std::mem::replace(&mut seen[usize::from(slot)], true));
            }
        }
        assert_eq!(slopes, [true; SLOPES as usize], "65 numbered names have all slopes");
    }

    #[test]
    fn lines_of_different_slopes_meet_once() {
        let (a, b) = (Preference::of("cache-3"), Preference::of("cache-4"));
        assert_ne!(a.slope, b.slope);
        for level_a in 0..64 {
            for level_b in 0..64 {
                let of_a: Vec<u16> = (0..64).map(|index| a.line(level_a).slot(index)).collect();
                assert_eq!((0..64).filter(|&index| of_a.contains(&b.line(level_b).slot(index))).count(), 1);
            }
        }
    }

    #[test]
    fn numbered_names_have_different_slopes() {
        let families: [&dyn Fn(u32) -> String; 5] = [
            &|n| format!("kvcache-{n}.kvcache.default.svc.cluster.local:12345"),
            &|n| format!("10.0.7.{n}:12345"),
            &|n| format!("127.0.0.1:{}", 12_345 + n),
            &|n| format!("node-{:02}-gpu-{}", n / 8, n % 8),
            &|n| format!("rack{n}"),
        ];
        for family in families {
            let mut slopes: Vec<u8> = (0..64).map(|n| slope(&family(n))).collect();
            slopes.sort_unstable();
            slopes.dedup();
            assert_eq!(slopes.len(), 64, "{}", family(0));
        }
    }
}
