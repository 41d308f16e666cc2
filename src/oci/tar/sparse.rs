// SPDX-License-Identifier: MIT OR Apache-2.0
//! Maps of sparse files: GNU's old header fields and the text before the content of pax 1.0.

use super::BLOCK;
use super::header::number;
use super::pax::unsigned;

/// A piece of content that is stored; the rest is holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub offset: u64,
    pub len: u64,
}

impl Segment {
    /// Where it ends; sums are checked when segments are made.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// Segments must ascend, stay inside `size`, and hold `stored` bytes together.
pub(super) fn check(map: &[Segment], size: u64, stored: u64) -> Result<(), String> {
    let mut end = 0;
    let mut sum = 0u64;
    for segment in map {
        if segment.offset < end || segment.end() > size {
            return Err("the sparse map is out of order".to_owned());
        }
        end = segment.end();
        sum = sum.saturating_add(segment.len);
    }
    if sum != stored {
        return Err(format!("the sparse map tells of {sum} bytes, {stored} are stored"));
    }
    Ok(())
}

/// Takes the four segments of an old GNU header; answers whether blocks with more follow.
pub(super) fn gnu_first(header: &[u8; BLOCK], map: &mut Vec<Segment>) -> Option<bool> {
    gnu_segments(header.get(386..482)?, map)?;
    header.get(482).map(|b| *b != 0)
}

/// Takes the 21 segments of a block after an old GNU header; answers whether more follow.
pub(super) fn gnu_next(block: &[u8; BLOCK], map: &mut Vec<Segment>) -> Option<bool> {
    gnu_segments(block.get(..504)?, map)?;
    block.get(504).map(|b| *b != 0)
}

fn gnu_segments(bytes: &[u8], map: &mut Vec<Segment>) -> Option<()> {
    for pair in bytes.chunks_exact(24) {
        let (offset, len) = pair.split_at_checked(12)?;
        // An empty place ends the list.
        if offset.first() == Some(&0) || len.first() == Some(&0) {
            break;
        }
        let segment = Segment { offset: number(offset)?.try_into().ok()?, len: number(len)?.try_into().ok()? };
        segment.offset.checked_add(segment.len)?;
        map.push(segment);
    }
    Some(())
}

/// The text map of pax 1.0: a count, then offsets and lengths, one number per line, in whole blocks.
#[derive(Debug, Default)]
pub(super) struct MapText {
    numbers: Vec<u64>,
    partial: Vec<u8>,
    count: Option<u64>,
}

impl MapText {
    /// Takes a block; `None` when it holds something else than numbers.
    pub fn push(&mut self, block: &[u8]) -> Option<()> {
        for byte in block {
            if self.is_complete() {
                break;
            }
            match byte {
                b'\n' => {
                    let number = unsigned(&self.partial)?;
                    self.partial.clear();
                    match self.count {
                        None => self.count = Some(number),
                        Some(_) => self.numbers.push(number),
                    }
                }
                _ if self.partial.len() < 20 => self.partial.push(*byte),
                _ => return None,
            }
        }
        Some(())
    }

    /// How many segments there are so far.
    pub fn len(&self) -> usize {
        self.numbers.len() / 2
    }

    fn is_complete(&self) -> bool {
        self.count.is_some_and(|count| (self.numbers.len() / 2) as u64 >= count)
    }

    /// The map, once it is complete.
    pub fn finished(&self) -> Option<Vec<Segment>> {
        if !self.is_complete() {
            return None;
        }
        // A sum that overflows ends at the highest number, which no size allows.
        Some(
            self.numbers
                .chunks_exact(2)
                .filter_map(|pair| match pair {
                    [offset, len] => Some(Segment { offset: *offset, len: *len }),
                    _ => None,
                })
                .collect(),
        )
    }
}
