// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the fuzz targets (`fuzz/`) call, and the tests that replay their seeds: one function per parser.
//!
//! The contract of every parser: errors are fine; panics, endless loops, escapes and unbounded memory are bugs.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::config;
use super::spec as mounts;
use crate::layer::index::{BodySink, Budget, Builder, Index, IndexError, Limits, NodeId, feed};
use crate::model::{Cookie, Digest, Kind};
use crate::oci::reference::{ImageName, Source};
use crate::oci::spec;
use crate::oci::tar::{Stream, TarReader};

/// Counts bodies instead of storing them.
#[derive(Default)]
struct Counting {
    nodes: Vec<NodeId>,
}

impl BodySink for Counting {
    fn begin(&mut self, node: NodeId, _size: u64) -> io::Result<()> {
        self.nodes.push(node);
        Ok(())
    }
    fn data(&mut self, _bytes: Vec<u8>) -> io::Result<()> {
        Ok(())
    }
    fn hole(&mut self, _len: u64) -> io::Result<()> {
        Ok(())
    }
    fn end(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A tar becomes an index, which is then valid, or is refused.
///
/// # Panics
/// When the index is not valid.
pub fn tar_to_index(data: &[u8]) {
    let dir = std::env::temp_dir().join(crate::store::atomic::fresh_name("mlfs-fuzz"));
    if std::fs::create_dir(&dir).is_err() {
        return;
    }
    let built = build(&dir, data);
    if let Err(e) = std::fs::remove_dir_all(&dir) {
        log::warn!("cannot remove {}: {e}", dir.display());
    }
    if let Some(file) = built {
        let walked = Index::open(&file).and_then(|index| walk(&index));
        assert!(walked.is_ok(), "an index that was just written is invalid: {walked:?}");
    }
}

fn build(dir: &std::path::Path, data: &[u8]) -> Option<std::fs::File> {
    let limits = Limits { max_entries: 10_000, max_unpacked: 1 << 24, ..Limits::default() };
    let budget = Budget::new(limits);
    let mut builder = Builder::new(dir, &budget).ok()?;
    let mut sink = Counting::default();
    feed(&mut TarReader::new(Stream(data), 1 << 20), &mut builder, &mut sink).ok()?;
    for (number, node) in sink.nodes.into_iter().enumerate() {
        builder.set_object(node, Digest::of(&number.to_le_bytes()));
    }
    builder.finish(Digest([1; 32]), data.len() as u64).ok().map(|written| written.file)
}

/// Attributes that strangers may have written: an access control list, a redirect, an override.
///
/// # Panics
/// When a list does not survive being written again.
pub fn marks(data: &[u8]) {
    use crate::layer::dir::override_stat;
    use crate::layer::whiteout::Redirect;
    use crate::model::acl::Acl;
    use crate::model::{Attr, Time};
    if let Some(list) = Acl::parse(data) {
        let bytes = list.with_perm(list.perm(0)).to_bytes();
        assert!(Acl::parse(&bytes).is_some_and(|again| again.to_bytes() == bytes), "a list changes by being written");
    }
    if let Some(redirect) = Redirect::parse(data) {
        assert_eq!(redirect.value(), data, "a redirect changes by being written");
    }
    let time = Time::default();
    let mut attr = Attr {
        ino: 1,
        kind: Kind::File,
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 1,
        blocks: 0,
        blksize: 0,
        atime: time,
        mtime: time,
        ctime: time,
    };
    override_stat::apply(data, &mut attr);
    assert!(attr.perm <= 0o7777, "a mode has other bits");
}

/// Bytes are a valid index, all of which can be read, or are refused. Checksums are made to fit first.
pub fn index_validate(data: &[u8]) {
    for bytes in [data.to_vec(), signed(data.to_vec())] {
        if let Ok(index) = Index::from_bytes(bytes) {
            // Bodies have checksums of their own, which need not fit.
            drop(walk(&index));
        }
    }
}

/// Makes the checksums of an index fit, so that what stands behind them is reached.
pub fn signed(mut bytes: Vec<u8>) -> Vec<u8> {
    use crate::layer::index::format::Header;
    use zerocopy::{FromBytes, IntoBytes};
    let Ok((mut header, _)) = Header::read_from_prefix(&bytes) else { return bytes };
    let mut crc = crc32fast::Hasher::new();
    for section in [&header.heap, &header.names, &header.records, &header.entries, &header.objects] {
        let range = usize::try_from(section.offset.get()).ok().zip(usize::try_from(section.len.get()).ok());
        let range = range.and_then(|(from, len)| Some(from..from.checked_add(len)?));
        crc.update(range.and_then(|r| bytes.get(r)).unwrap_or_default());
    }
    header.sections_crc = crc.finalize().into();
    header.header_crc = 0.into();
    header.header_crc = crc32fast::hash(header.as_bytes()).into();
    if let Some(head) = bytes.get_mut(..size_of::<Header>()) {
        head.copy_from_slice(header.as_bytes());
    }
    bytes
}

/// Reads all there is of an index.
fn walk(index: &Index) -> Result<(), IndexError> {
    let mut stack = vec![0];
    while let Some(number) = stack.pop() {
        let record = index.record(number)?;
        index.xattrs(record)?;
        match Index::kind(record)? {
            Kind::Dir => {
                for line in index.list(record, Cookie::START)? {
                    let (name, _, slot) = line?;
                    assert_eq!(index.find(record, name)?, Some(slot), "a listed name is found");
                    if let crate::layer::index::read::Slot::Record(child) = slot {
                        stack.push(child);
                    }
                }
            }
            Kind::File => drop(index.content(record)?),
            Kind::Symlink => drop(index.target(record)?),
            Kind::Fifo | Kind::Char | Kind::Block | Kind::Socket => {}
        }
    }
    Ok(())
}

/// Bytes are a manifest, configuration, index, or `manifest.json`, or are refused.
pub fn manifest(data: &[u8]) {
    drop(spec::parse_manifest(data));
    drop(spec::parse_config(data));
    drop(spec::parse_index(data));
    drop(spec::parse_docker_manifest(data));
}

/// A name or a source that is accepted says the same again when it is shown.
///
/// # Panics
/// When it does not.
pub fn reference(data: &[u8]) {
    drop(Source::parse(OsStr::from_bytes(data)));
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(name) = text.parse::<ImageName>() {
        assert_eq!(name.to_string(), text, "a name changed");
        assert_eq!(name.to_string().parse::<ImageName>().as_ref(), Ok(&name), "a name is not read again");
    }
}

/// A line is a storage flag (`-v`, `--mount`, `--tmpfs`) or is refused; an accepted one has a clean target and says the
/// same again out of a record.
///
/// # Panics
/// When it does not.
pub fn mount_spec(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for parse in [mounts::parse_volume, mounts::parse_mount, mounts::parse_tmpfs] {
        let Ok(spec) = parse(text) else { continue };
        assert_eq!(mounts::clean_target(&spec.target).as_ref(), Ok(&spec.target), "a target is not clean");
        let again = serde_json::to_string(&spec).ok().and_then(|json| serde_json::from_str(&json).ok());
        assert_eq!(again, Some(spec), "a record does not hold it");
    }
}

/// A text is a configuration file, or is refused with the place of what is wrong.
///
/// # Panics
/// When the place is missing.
pub fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(error) = config::parse(text, Path::new("/c.toml")) {
        assert!(error.to_string().starts_with("/c.toml:"), "an error without a place: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Replays what is committed, and writes the seeds that are missing.
    fn replay(target: &str, seeds: &[(&str, Vec<u8>)], run: fn(&[u8])) {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
        for (name, bytes) in seeds {
            let path = dir.join(name);
            if std::env::var_os("MLFS_WRITE_SEEDS").is_some() {
                std::fs::create_dir_all(&dir).unwrap();
                std::fs::write(&path, bytes).unwrap();
            }
            assert!(path.exists(), "MLFS_WRITE_SEEDS=1 writes {}", path.display());
        }
        let mut count = 0;
        for entry in std::fs::read_dir(&dir).unwrap() {
            run(&std::fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count >= seeds.len());
    }

    fn sample_tar() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions([("SCHILY.xattr.user.a", &b"v"[..]), ("mtime", b"-1.5")]).unwrap();
        for (path, kind, link, size) in [
            ("d/", tar::EntryType::Directory, "", 0),
            ("d/f", tar::EntryType::Regular, "", 10),
            ("big", tar::EntryType::Regular, "", 5000),
            ("l", tar::EntryType::Symlink, "d/f", 0),
            ("h", tar::EntryType::Link, "d/f", 0),
            ("c", tar::EntryType::Char, "", 0),
            (".wh.gone", tar::EntryType::Regular, "", 0),
            ("d/.wh..wh..opq", tar::EntryType::Regular, "", 0),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(size);
            if !link.is_empty() {
                header.set_link_name(link).unwrap();
            }
            builder.append_data(&mut header, path, &vec![b'x'; size as usize][..]).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn sample_index() -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        build(dir.path(), &sample_tar()).unwrap();
        std::fs::read(dir.path().join("index")).unwrap()
    }

    #[test]
    fn seeds_of_tars() {
        let mut sparse = tar::Builder::new(Vec::new());
        sparse.append_pax_extensions([("GNU.sparse.size", &b"3000"[..]), ("GNU.sparse.map", b"10,4")]).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(4);
        sparse.append_data(&mut header, "s", &b"data"[..]).unwrap();
        let whole = sample_tar();
        let cut = whole[..1700].to_vec();
        // So many empty pieces that one frame of the stack for each would be too much.
        let map = format!("{}0,4", "0,0,".repeat(20_000));
        let mut pieces = tar::Builder::new(Vec::new());
        pieces.append_pax_extensions([("GNU.sparse.size", &b"3000"[..]), ("GNU.sparse.map", map.as_bytes())]).unwrap();
        pieces.append_data(&mut header, "s", &b"data"[..]).unwrap();
        let seeds = [
            ("mixed", whole),
            ("cut", cut),
            ("sparse", sparse.into_inner().unwrap()),
            ("sparse_empty_pieces", pieces.into_inner().unwrap()),
            ("empty", vec![0; 1024]),
        ];
        replay("tar_to_index", &seeds, tar_to_index);
    }

    #[test]
    fn seeds_of_indexes() {
        replay("index_validate", &[("mixed", sample_index())], index_validate);
    }

    #[test]
    fn seeds_of_manifests() {
        let blob = |byte, media_type: &str| spec::BlobRef {
            digest: Digest([byte; 32]),
            size: 1,
            media_type: media_type.to_owned(),
        };
        let manifest_seed = spec::make_manifest(&blob(1, spec::OCI_CONFIG), &[blob(2, spec::OCI_LAYER)]);
        let config = format!(
            "{{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{{\"Volumes\":{{\"/v\":{{}}}}}},\
             \"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"{}\"]}}}}",
            Digest([2; 32])
        );
        let docker = "[{\"Config\":\"c.json\",\"RepoTags\":[\"a:1\"],\"Layers\":[\"l/layer.tar\"]}]";
        let index = "{\"schemaVersion\":2,\"manifests\":[{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\
                     \"digest\":\"sha256:0101010101010101010101010101010101010101010101010101010101010101\",\"size\":1,\
                     \"annotations\":{\"org.opencontainers.image.ref.name\":\"v1\"}}]}";
        let seeds = [
            ("manifest", manifest_seed),
            ("config", config.into_bytes()),
            ("docker", docker.as_bytes().to_vec()),
            ("index", index.as_bytes().to_vec()),
        ];
        replay("manifest", &seeds, manifest);
    }

    #[test]
    fn seeds_of_references() {
        let seeds = [
            ("name", b"host:5000/team/app:1.2".to_vec()),
            ("digest", format!("app@{}", Digest([3; 32])).into_bytes()),
            ("oci", b"oci:/a:b/c:tag".to_vec()),
            ("archive", b"docker-archive:-:t".to_vec()),
            ("raw", b"dir:/\xff".to_vec()),
        ];
        replay("reference", &seeds, reference);
    }

    #[test]
    fn seeds_of_mount_specs() {
        let seeds = [
            ("volume", &b"data:/m/../n:ro,nocopy"[..]),
            ("bind", b"./rel:/p:z,rprivate"),
            ("mount", b"type=volume,src=a,dst=/p,ro,volume-label=a=b,volume-nocopy"),
            ("quoted", b"type=bind,\"src=/a,\"\"b\",dst=/p"),
            ("tmpfs", b"/t:size=5%,mode=1777,uid=1"),
        ];
        replay("mount_spec", &seeds.map(|(name, bytes)| (name, bytes.to_vec())), mount_spec);
    }

    #[test]
    fn seeds_of_configurations() {
        let all = b"root = \"/s\"\nvolume = [\"a:/a\"]\nread-only = true\nstop-timeout = \"5s\"\n[[mount]]\ntype = \"tmpfs\"\ntarget = \"/t\"\ntmpfs-size = 4096\n";
        let seeds = [("all", &all[..]), ("unknown", b"[[mount]]\nfoo = 1\n"), ("broken", b"a = [\n")];
        replay("configuration", &seeds.map(|(name, bytes)| (name, bytes.to_vec())), configuration);
    }

    proptest::proptest! {
        #[test]
        fn changed_tars_never_panic(changes in proptest::collection::vec((0usize..10_000, proptest::num::u8::ANY), 1..6)) {
            let mut bytes = sample_tar();
            for (at, byte) in changes {
                let at = at % bytes.len();
                bytes[at] = byte;
                // Make the checksum of the header fit again, wherever there is one.
                let block = at / 512 * 512;
                let sum: u32 = bytes[block..block + 512].iter().enumerate()
                    .map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
                bytes[block + 148..block + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
            tar_to_index(&bytes);
        }

        #[test]
        fn changed_indexes_never_panic(changes in proptest::collection::vec((0usize..1 << 20, proptest::num::u8::ANY), 1..4)) {
            let mut bytes = sample_index();
            for (at, byte) in changes {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            index_validate(&bytes);
        }

        #[test]
        fn references_round_trip(text in "[a-zA-Z0-9:/@._-]{0,40}") {
            reference(text.as_bytes());
        }
    }

    #[test]
    fn seeds_of_marks_are_harmless() {
        replay("marks", &[("redirect", b"/a/b/c".to_vec()), ("override", b"0:0:0644:char-1-3".to_vec())], marks);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_marks_or_refused(data: Vec<u8>) {
            marks(&data);
            marks(&[&2u32.to_le_bytes()[..], &data].concat());
            marks(&[b"/", &data[..]].concat());
        }
    }
}
