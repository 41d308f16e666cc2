// SPDX-License-Identifier: MIT OR Apache-2.0
//! Archives of all writings, cut, damaged and by chance.

use super::*;

/// A raw header block with a valid checksum.
fn raw(path: &[u8], kind: u8, size: u64) -> [u8; BLOCK] {
    let mut block = [0u8; BLOCK];
    block[..path.len()].copy_from_slice(path);
    block[100..107].copy_from_slice(b"0000644");
    block[108..115].copy_from_slice(b"0000000");
    block[116..123].copy_from_slice(b"0000000");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[136..147].copy_from_slice(b"00000000000");
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    sign(&mut block);
    block
}

fn sign(block: &mut [u8; BLOCK]) {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn padded(content: &[u8]) -> Vec<u8> {
    let mut bytes = content.to_vec();
    bytes.resize(content.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        let rest = 3 + key.len() + value.len();
        let mut len = rest + 1;
        while len.to_string().len() + rest != len {
            len = len.to_string().len() + rest;
        }
        body.extend_from_slice(format!("{len} {key}=").as_bytes());
        body.extend_from_slice(value);
        body.push(b'\n');
    }
    [raw(b"pax", b'x', body.len() as u64).to_vec(), padded(&body)].concat()
}

const LIMIT: u64 = 1 << 20;

fn read_all(bytes: &[u8]) -> Result<Vec<(Member, Vec<u8>)>, TarError> {
    let mut reader = TarReader::new(bytes, LIMIT);
    let mut all = Vec::new();
    while let Some(member) = reader.next_member()? {
        let mut content = Vec::new();
        let mut buf = [0; 100];
        loop {
            match reader.read_chunk(&mut buf)? {
                Chunk::Data(n) => content.extend_from_slice(&buf[..n]),
                Chunk::Hole(n) => content.resize(content.len() + n as usize, 0),
                Chunk::End => break,
            }
        }
        assert_eq!(content.len() as u64, member.size);
        all.push((member, content));
    }
    Ok(all)
}

#[test]
fn members_and_contents_come_in_order() {
    let bytes = [
        &raw(b"a", b'0', 3)[..],
        &padded(b"abc"),
        &raw(b"dir/", b'5', 0),
        &raw(b"old-dir/", b'\0', 0),
        &raw(b"b", b'\0', 600),
        &padded(&[7; 600]),
        &[0; 1024],
    ]
    .concat();
    let all = read_all(&bytes).unwrap();
    let names: Vec<_> = all.iter().map(|(m, c)| (m.path.as_slice(), m.kind, c.len())).collect();
    assert_eq!(
        names,
        [
            (&b"a"[..], MemberKind::File, 3),
            (b"dir/", MemberKind::Dir, 0),
            (b"old-dir/", MemberKind::Dir, 0),
            (b"b", MemberKind::File, 600)
        ]
    );
    let mut reader = TarReader::new(&bytes[..], LIMIT);
    while reader.next_member().unwrap().is_some() {}
    assert_eq!(reader.ending(), Some(Ending::Mark));
    let mut reader = TarReader::new(&bytes[..1024], LIMIT);
    while reader.next_member().unwrap().is_some() {}
    assert_eq!(reader.ending(), Some(Ending::Eof));
}

#[test]
fn every_cut_in_a_member_is_an_error() {
    let bytes = [&pax(&[("path", b"long")])[..], &raw(b"a", b'0', 3), &padded(b"abc"), &[0; 1024]].concat();
    for cut in 1..2048 {
        // Only the padding of the last member may be missing.
        assert_eq!(read_all(&bytes[..cut]).is_err(), cut < 1536 + 3, "{cut}");
    }
    let mut wrong = bytes.clone();
    wrong[1024 + 100] ^= 1;
    assert!(matches!(read_all(&wrong), Err(TarError::Damaged { offset: 1024, .. })));
    assert!(read_all(&[&[0; 512][..], &raw(b"a", b'0', 0)].concat()).is_err());
}

#[test]
fn pax_records_override_the_header() {
    let bytes = [
        &pax(&[
            ("path", b"\xff/name"),
            ("size", b"4"),
            ("mtime", b"-1.5"),
            ("uid", b"3000000000"),
            ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\n"),
        ])[..],
        &raw(b"short", b'0', 0),
        &padded(b"body"),
    ]
    .concat();
    let all = read_all(&bytes).unwrap();
    let (member, content) = &all[0];
    assert_eq!((member.path.as_slice(), content.as_slice()), (&b"\xff/name"[..], &b"body"[..]));
    assert_eq!((member.uid, member.mtime), (3_000_000_000, Time { secs: -2, nanos: 500_000_000 }));
    assert_eq!(member.xattrs, [(b"security.capability".to_vec(), b"\x01\0\0\x02\n".to_vec())]);
    assert!(read_all(&[&pax(&[("uid", b"4294967296")])[..], &raw(b"a", b'0', 0)].concat()).is_err());
}

#[test]
fn gnu_long_names_and_prefixes() {
    let long = [b'n'; 300];
    let mut with_prefix = raw(b"file", b'0', 0);
    with_prefix[345..348].copy_from_slice(b"pre");
    sign(&mut with_prefix);
    let mut gnu = with_prefix;
    gnu[257..265].copy_from_slice(b"ustar  \0");
    sign(&mut gnu);
    let bytes = [
        &raw(b"././@LongLink", b'L', 301)[..],
        &padded(&long),
        &raw(b"././@LongLink", b'K', 301),
        &padded(&long),
        &raw(b"cut", b'2', 0),
        &with_prefix,
        &gnu,
    ]
    .concat();
    let all = read_all(&bytes).unwrap();
    assert_eq!((all[0].0.path.as_slice(), all[0].0.link.as_slice()), (&long[..], &long[..]));
    assert_eq!((all[1].0.path.as_slice(), all[2].0.path.as_slice()), (&b"pre/file"[..], &b"file"[..]));
}

#[test]
fn gigantic_declared_sizes_take_no_memory() {
    let huge = raw(b"x", b'x', 0o77_777_777_777);
    assert!(matches!(read_all(&huge), Err(TarError::Damaged { .. })));
    let huge = raw(b"L", b'L', 0o77_777_777_777);
    assert!(matches!(read_all(&huge), Err(TarError::Damaged { .. })));
    let mut file = raw(b"f", b'0', 0);
    file[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    sign(&mut file);
    assert!(read_all(&file).is_err());
    let negative = {
        let mut file = raw(b"f", b'0', 0);
        file[124..136].copy_from_slice(&[0xff; 12]);
        sign(&mut file);
        file
    };
    assert!(read_all(&negative).is_err());
}

#[test]
fn sparse_files_of_all_writings() {
    let mut expected = vec![0; 3000];
    expected[1000..1004].copy_from_slice(b"data");
    // Old GNU.
    let mut old = raw(b"s", b'S', 4);
    old[257..265].copy_from_slice(b"ustar  \0");
    old[386..398].copy_from_slice(b"00000001750\0");
    old[398..410].copy_from_slice(b"00000000004\0");
    old[410..422].copy_from_slice(b"00000005670\0");
    old[422..434].copy_from_slice(b"00000000000\0");
    old[483..495].copy_from_slice(b"00000005670\0");
    sign(&mut old);
    let old = [&old[..], &padded(b"data")].concat();
    // pax 0.0, 0.1, 1.0.
    let zero = [
        &pax(&[
            ("GNU.sparse.size", b"3000"),
            ("GNU.sparse.numblocks", b"1"),
            ("GNU.sparse.offset", b"1000"),
            ("GNU.sparse.numbytes", b"4"),
        ])[..],
        &raw(b"s", b'0', 4),
        &padded(b"data"),
    ]
    .concat();
    let one = [
        &pax(&[("GNU.sparse.size", b"3000"), ("GNU.sparse.map", b"1000,4"), ("GNU.sparse.name", b"s")])[..],
        &raw(b"GNUSparseFile.1/s", b'0', 4),
        &padded(b"data"),
    ]
    .concat();
    let data = [padded(b"2\n1000\n4\n3000\n0\n"), b"data".to_vec()].concat();
    let two = [
        &pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"s"),
            ("GNU.sparse.realsize", b"3000"),
        ])[..],
        &raw(b"GNUSparseFile.1/s", b'0', data.len() as u64),
        &padded(&data),
    ]
    .concat();
    for (name, bytes) in [("old", old), ("0.0", zero), ("0.1", one), ("1.0", two)] {
        let bytes = [&bytes[..], &raw(b"next", b'0', 0), &[0; 1024]].concat();
        let all = read_all(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(all[0].0.path, b"s", "{name}");
        assert!(all[0].1 == expected, "{name}");
        assert_eq!(all[1].0.path, b"next", "{name}");
    }
    for map in ["1000,4,900,1", "2999,4", "1000,5", "18446744073709551615,4"] {
        let bytes = [
            &pax(&[("GNU.sparse.size", b"3000"), ("GNU.sparse.map", map.as_bytes())])[..],
            &raw(b"s", b'0', 4),
            &padded(b"data"),
        ]
        .concat();
        assert!(read_all(&bytes).is_err(), "{map}");
    }
}

proptest::proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..4096)) {
        // Errors are fine.
        drop(read_all(&bytes));
    }

    #[test]
    fn arbitrary_changes_never_panic(at in 0usize..3000, byte: u8, cut in 0usize..3000) {
        let mut bytes = [
            &pax(&[("GNU.sparse.size", b"30"), ("GNU.sparse.map", b"10,4"), ("path", b"x")])[..],
            &raw(b"s", b'0', 4),
            &padded(b"data"),
            &[0; 1024],
        ].concat();
        if let Some(b) = bytes.get_mut(at) { *b = byte; }
        if at > 1024 && at < 1536 {
            let mut header: [u8; BLOCK] = bytes[1024..1536].try_into().unwrap();
            sign(&mut header);
            bytes[1024..1536].copy_from_slice(&header);
        }
        bytes.truncate(cut.max(100));
        let mut reader = TarReader::new(&bytes[..], LIMIT);
        while let Ok(Some(_)) = reader.next_member() {
            let mut buf = [0; 100];
            while let Ok(Chunk::Data(_) | Chunk::Hole(_)) = reader.read_chunk(&mut buf) {}
        }
    }
}

#[test]
fn empty_pieces_of_a_sparse_map_cost_no_stack() {
    let empty = "0,0,".repeat(250_000);
    for (map, want) in [
        (format!("{empty}0,4"), [&b"data"[..], &[0; 26]].concat()),
        (format!("0,0,10,0,10,4,{}30,0", "20,0,".repeat(200_000)), [&[0; 10][..], b"data", &[0; 16]].concat()),
    ] {
        let bytes = [
            &pax(&[("GNU.sparse.size", b"30"), ("GNU.sparse.map", map.as_bytes())])[..],
            &raw(b"s", b'0', 4),
            &padded(b"data"),
            &[0; 1024],
        ]
        .concat();
        assert_eq!(read_all(&bytes).unwrap()[0].1, want);
    }
}
