// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table of `shared/docker-storage.md`, row by row.

use super::*;
use proptest::prelude::*;

fn volume(name: &str, target: &str) -> MountSpec {
    MountSpec {
        target: target.into(),
        source: Source::Volume { name: name.into(), labels: BTreeMap::new() },
        read_only: false,
        no_copy: false,
    }
}

fn bind(path: &str, target: &str, create: CreateSource) -> MountSpec {
    MountSpec {
        target: target.into(),
        source: Source::Bind { path: path.into(), create },
        read_only: false,
        no_copy: false,
    }
}

#[test]
fn volume_flags_that_work() {
    use CreateSource::Make;
    let anonymous = MountSpec { source: Source::Anonymous { labels: BTreeMap::new() }, ..volume("x", "/p") };
    let rows = [
        ("data:/p", volume("data", "/p")),
        ("d:/p", volume("d", "/p")),
        ("data:/p:rw", volume("data", "/p")),
        ("data:/p:ro", MountSpec { read_only: true, ..volume("data", "/p") }),
        ("data:/p:ro,nocopy", MountSpec { read_only: true, no_copy: true, ..volume("data", "/p") }),
        ("data:/p:z,cached", volume("data", "/p")),
        ("data:/m/../n", volume("data", "/n")),
        ("data:/m/", volume("data", "/m")),
        ("data:/../../m//x/.", volume("data", "/m/x")),
        ("/h:/p", bind("/h", "/p", Make)),
        ("./h:/p", bind("./h", "/p", Make)),
        ("../h:/p", bind("../h", "/p", Make)),
        (".:/p", bind(".", "/p", Make)),
        ("/h:/p:Z,delegated,rprivate", bind("/h", "/p", Make)),
        ("/p", anonymous),
    ];
    for (text, spec) in rows {
        assert_eq!(parse_volume(text), Ok(spec), "{text}");
    }
}

#[test]
fn volume_flags_that_do_not() {
    let rows = [
        ("data:p", "mount path must be absolute"),
        ("p", "mount path must be absolute"),
        ("data:/", "destination can't be '/'"),
        ("/", "destination can't be '/'"),
        ("data:/m/..", "destination can't be '/'"),
        ("data:/p:wat", "invalid mode: wat"),
        ("data:/p:ro,rw", "invalid mode: rw"),
        ("data:/p:z,Z", "invalid mode: Z"),
        ("data:/p:ro,ro", "invalid mode: ro"),
        ("data:/p:ro,", "invalid mode: "),
        ("/h:/p:nocopy", "invalid mode: nocopy"),
        ("/h:/p:shared", "invalid mode: shared"),
        ("/h:/p:rslave", "invalid mode: rslave"),
        ("/h:/p:U", "invalid mode: U"),
        ("/h:/p:idmap", "invalid mode: idmap"),
        ("data:/p:rprivate", "invalid mode: rprivate"),
        ("", "invalid volume specification"),
        (":", "invalid volume specification"),
        (":/p", "invalid volume specification"),
        ("data:", "invalid volume specification"),
        ("data:/p:", "invalid volume specification"),
        ("a:b:c:d", "invalid volume specification"),
        ("/p:ro", "invalid volume specification"),
        ("sub/dir:/p", "names match [a-zA-Z0-9][a-zA-Z0-9_.-]*; for a path of the host write ./sub/dir"),
        ("~/x:/p", "for a path of the host write ./x"),
        (".hidden:/p", "write ./.hidden"),
        ("-x:/p", "is not a volume name"),
        ("dätä:/p", "is not a volume name"),
    ];
    for (text, part) in rows {
        let error = parse_volume(text).expect_err(text).to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn mount_flags_that_work() {
    use CreateSource::Refuse;
    let labels: BTreeMap<String, String> = [("a".to_owned(), "b=c".to_owned()), ("d".to_owned(), String::new())].into();
    let tmpfs = |options| MountSpec { source: Source::Tmpfs(options), ..volume("x", "/p") };
    let size = |bytes| TmpfsOptions { size: Some(TmpfsSize::Bytes(bytes)), ..TmpfsOptions::default() };
    let rows = [
        ("type=volume,source=data,target=/p", volume("data", "/p")),
        ("src=data,dst=/p", volume("data", "/p")),
        ("TYPE=volume,src=data,destination=/p/../q/", volume("data", "/q")),
        ("src=data,dst=/p,readonly", MountSpec { read_only: true, ..volume("data", "/p") }),
        ("src=data,dst=/p,ro=true", MountSpec { read_only: true, ..volume("data", "/p") }),
        ("src=data,dst=/p,readonly=0", volume("data", "/p")),
        ("src=data,dst=/p,volume-nocopy", MountSpec { no_copy: true, ..volume("data", "/p") }),
        ("src=data,dst=/p,volume-nocopy=false,volume-driver=local", volume("data", "/p")),
        (
            "src=data,dst=/p,volume-label=a=b=c,volume-label=d",
            MountSpec { source: Source::Volume { name: "data".into(), labels }, ..volume("data", "/p") },
        ),
        ("dst=/p", MountSpec { source: Source::Anonymous { labels: BTreeMap::new() }, ..volume("x", "/p") }),
        ("type=bind,src=/h,dst=/p", bind("/h", "/p", Refuse)),
        ("type=bind,src=./h,dst=/p,bind-propagation=rprivate", bind("./h", "/p", Refuse)),
        ("type=bind,\"src=/h,i\"\"j\",dst=/p", bind("/h,i\"j", "/p", Refuse)),
        ("type=bind,src=/h,dst=/p,bind-nonrecursive=false", bind("/h", "/p", Refuse)),
        ("type=tmpfs,dst=/p", tmpfs(TmpfsOptions::default())),
        ("type=tmpfs,dst=/p,tmpfs-size=10m", tmpfs(size(10 << 20))),
        ("type=tmpfs,dst=/p,tmpfs-size=1GiB", tmpfs(size(1 << 30))),
        ("type=tmpfs,dst=/p,tmpfs-mode=1770", tmpfs(TmpfsOptions { mode: Some(0o1770), ..TmpfsOptions::default() })),
    ];
    for (text, spec) in rows {
        assert_eq!(parse_mount(text), Ok(spec), "{text}");
    }
}

#[test]
fn mount_flags_that_do_not() {
    let rows = [
        ("type=volume,src=a,dst=/p,foo=1", "unexpected key 'foo' in 'foo=1'"),
        ("type=bind,src=/a,dst=/p,volume-nocopy", "cannot mix 'volume-*' options with mount type 'bind'"),
        ("type=volume,src=a,dst=/p,bind-propagation=private", "cannot mix 'bind-*' options with mount type 'volume'"),
        ("type=bind,src=/a,dst=/p,tmpfs-size=1", "cannot mix 'tmpfs-*' options with mount type 'bind'"),
        ("type=volume,src=a", "target is required"),
        ("type=volume,src=a,dst=", "target is required"),
        ("src=a,dst=/p,readonly=maybe", "invalid value for readonly: maybe"),
        ("src=a,dst=/p,ro=maybe", "invalid value for ro: maybe"),
        ("src=a,dst=/p,volume-nocopy=maybe", "invalid value for volume-nocopy: maybe"),
        ("type=tmpfs,src=a,dst=/p", "a tmpfs has no source"),
        ("type=tmpfs,dst=/p,tmpfs-size=lots", "invalid value for tmpfs-size: lots"),
        ("type=tmpfs,dst=/p,tmpfs-mode=999", "invalid value for tmpfs-mode: 999"),
        ("type=tmpfs,dst=/p,tmpfs-mode=77777", "invalid value for tmpfs-mode: 77777"),
        ("type=npipe,src=a,dst=/p", "invalid mount type: npipe"),
        ("type=image,src=a,dst=/p", "mount type 'image' is not built yet"),
        ("src=a,dst=/p,volume-subpath=x", "the --mount key 'volume-subpath' is not built yet"),
        ("src=a,dst=/p,volume-opt=type=nfs", "the --mount key 'volume-opt' is not built yet"),
        ("src=a,dst=/p,volume-driver=nfs", "volume-driver=nfs is not built yet"),
        ("type=bind,src=/a,dst=/p,bind-nonrecursive", "bind-nonrecursive is not built yet"),
        ("type=bind,src=/a,dst=/p,bind-propagation=rshared", "bind-propagation=rshared is not built yet"),
        ("type=bind,dst=/p", "source is required"),
        ("type=bind,src=a,dst=/p", "mount path must be absolute"),
        ("src=a,dst=p", "mount path must be absolute"),
        ("src=a,dst=/", "destination can't be '/'"),
        ("src=a/b,dst=/p", "write ./a/b"),
        ("src", "invalid field 'src' must be a key=value pair"),
        ("", "invalid field '' must be a key=value pair"),
        ("src=a,,dst=/p", "invalid field '' must be a key=value pair"),
        ("\"src=a,dst=/p", "invalid quotes"),
        ("src=\"a\",dst=/p", "invalid quotes"),
    ];
    for (text, part) in rows {
        let error = parse_mount(text).expect_err(text).to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn tmpfs_flags() {
    let options = |text: &str| match parse_tmpfs(text).unwrap().source {
        Source::Tmpfs(options) => options,
        other => panic!("{other:?}"),
    };
    assert_eq!(options("/p"), TmpfsOptions::default());
    let full = options("/p:size=64k,mode=0700,uid=3,gid=4,noexec,nosuid,nodev");
    assert_eq!(
        full,
        TmpfsOptions { size: Some(TmpfsSize::Bytes(65536)), mode: Some(0o700), uid: Some(3), gid: Some(4) }
    );
    assert_eq!(options("/p:size=25%").size, Some(TmpfsSize::Percent(25)));
    assert!(parse_tmpfs("/p:ro").unwrap().read_only);
    for (text, part) in [
        ("p", "mount path must be absolute"),
        ("/", "destination can't be '/'"),
        ("/p:wat", "invalid mode: wat"),
        ("/p:ro,rw", "invalid mode: rw"),
        ("/p:size=1x", "invalid mode: size=1x"),
        ("/p:size=101%", "invalid mode: size=101%"),
        ("/p:mode=8", "invalid mode: mode=8"),
        ("/p:exec", "invalid mode: exec"),
    ] {
        let error = parse_tmpfs(text).expect_err(text).to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn order_is_by_depth_and_duplicates_are_refused() {
    let specs = vec![volume("c", "/a/b/c"), volume("z", "/z"), volume("b", "/a/b"), volume("a", "/a")];
    let targets: Vec<String> = order(specs.clone()).unwrap().into_iter().map(|s| s.target).collect();
    assert_eq!(targets, ["/a", "/z", "/a/b", "/a/b/c"]);
    let mut twice = specs;
    twice.push(parse_tmpfs("/a/b/").unwrap());
    assert_eq!(order(twice).unwrap_err().to_string(), "Duplicate mount point: /a/b");
}

#[test]
fn records_round_trip() {
    for text in ["type=tmpfs,dst=/p,tmpfs-size=1m", "src=data,dst=/p,ro,volume-label=a=b", "dst=/p"] {
        let spec = parse_mount(text).unwrap();
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<MountSpec>(&json).unwrap(), spec, "{json}");
    }
}

proptest! {
    #[test]
    fn parsing_never_panics(text in "[a-z0-9:/.,=\"~%\\-é\0]{0,40}") {
        for spec in [parse_volume(&text), parse_mount(&text), parse_tmpfs(&text)].into_iter().flatten() {
            prop_assert!(spec.target.starts_with('/') && spec.target.len() > 1);
            prop_assert!(!spec.target.split('/').any(|part| part == "." || part == ".."));
        }
    }

    #[test]
    fn mount_keys_never_panic(
        fields in proptest::collection::vec(
            ("type|src|dst|ro|tmpfs-size|tmpfs-mode|volume-nocopy|volume-label|x", "[a-z0-9/\"=]{0,9}"), 0..6)
    ) {
        let text = fields.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",");
        let parsed = parse_mount(&text);
        prop_assert!(parsed.is_ok() || !parsed.unwrap_err().to_string().is_empty());
    }
}
