// SPDX-License-Identifier: MIT OR Apache-2.0
//! POSIX access control lists in the form of `system.posix_acl_*` attributes (`linux/posix_acl_xattr.h`): how a new
//! file inherits its directory's default list, and how list and mode follow one another (acl(5)).

/// The attribute that holds the list checked at access.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute of a directory that holds the list its new files get.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Clone, Copy)]
struct Line {
    tag: u16,
    perm: u16,
    id: u32,
}

/// An access control list.
#[derive(Clone)]
pub struct Acl(Vec<Line>);

impl Acl {
    /// Reads an attribute's value; `None` for one that is no list.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (version, rest) = value.split_first_chunk::<4>()?;
        if u32::from_le_bytes(*version) != VERSION || rest.len() % 8 != 0 {
            return None;
        }
        let lines = rest.chunks_exact(8).filter_map(|chunk| match *chunk {
            [a, b, c, d, e, f, g, h] => Some(Line {
                tag: u16::from_le_bytes([a, b]),
                perm: u16::from_le_bytes([c, d]) & 7,
                id: u32::from_le_bytes([e, f, g, h]),
            }),
            _ => None,
        });
        Some(Acl(lines.collect()))
    }

    /// The attribute's value.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for line in &self.0 {
            bytes.extend(line.tag.to_le_bytes());
            bytes.extend(line.perm.to_le_bytes());
            bytes.extend(line.id.to_le_bytes());
        }
        bytes
    }

    /// The list with the ids of its users and groups mapped; `None` when one has no place in the map.
    pub fn map_ids(&self, user: impl Fn(u32) -> Option<u32>, group: impl Fn(u32) -> Option<u32>) -> Option<Self> {
        let lines = self.0.iter().map(|line| {
            let id = match line.tag {
                USER => user(line.id)?,
                GROUP => group(line.id)?,
                _ => line.id,
            };
            Some(Line { id, ..*line })
        });
        lines.collect::<Option<Vec<Line>>>().map(Acl)
    }

    /// Does it say no more than a mode can?
    pub fn is_trivial(&self) -> bool {
        self.0.iter().all(|line| matches!(line.tag, USER_OBJ | GROUP_OBJ | OTHER))
    }

    fn group_class(&self) -> u16 {
        if self.0.iter().any(|line| line.tag == MASK) { MASK } else { GROUP_OBJ }
    }

    /// The mode that shows this list, the bits above 0777 kept from `perm`.
    pub fn perm(&self, perm: u32) -> u32 {
        let group = self.group_class();
        self.0.iter().fold(perm & !0o777, |perm, line| {
            let bits = u32::from(line.perm);
            match line.tag {
                USER_OBJ => perm | bits << 6,
                OTHER => perm | bits,
                tag if tag == group => perm | bits << 3,
                _ => perm,
            }
        })
    }

    /// The list after chmod(2).
    pub fn with_perm(&self, perm: u32) -> Self {
        let group = self.group_class();
        let mut acl = self.clone();
        for line in &mut acl.0 {
            match line.tag {
                USER_OBJ => line.perm = (perm >> 6 & 7) as u16,
                OTHER => line.perm = (perm & 7) as u16,
                tag if tag == group => line.perm = (perm >> 3 & 7) as u16,
                _ => {}
            }
        }
        acl
    }

    /// The list and mode of a new file made with `perm` (no umask) under this default list.
    pub fn inherited(&self, perm: u32) -> (Self, u32) {
        let own = self.perm(0);
        let perm = perm & (own | !0o777);
        (self.with_perm(perm), perm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(lines: &[(u16, u16)]) -> Acl {
        Acl(lines.iter().map(|(tag, perm)| Line { tag: *tag, perm: *perm, id: u32::MAX }).collect())
    }

    #[test]
    fn lists_round_trip_and_others_are_refused() {
        let list = acl(&[(USER_OBJ, 7), (2, 6), (GROUP_OBJ, 5), (MASK, 7), (OTHER, 0)]);
        let bytes = list.to_bytes();
        assert_eq!(Acl::parse(&bytes).unwrap().to_bytes(), bytes);
        assert!(Acl::parse(&bytes[..7]).is_none() && Acl::parse(b"\x01\0\0\0").is_none());
    }

    #[test]
    fn new_files_inherit() {
        let list = acl(&[(USER_OBJ, 7), (GROUP_OBJ, 5), (OTHER, 0)]);
        assert!(list.is_trivial());
        assert_eq!(list.inherited(0o666).1, 0o640);
        let masked = acl(&[(USER_OBJ, 7), (2, 7), (GROUP_OBJ, 5), (MASK, 7), (OTHER, 5)]);
        let (access, perm) = masked.inherited(0o4644);
        assert_eq!((perm, access.perm(0), access.is_trivial()), (0o4644, 0o644, false));
    }
}
