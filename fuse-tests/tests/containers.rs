// SPDX-License-Identifier: MIT OR Apache-2.0
//! Containers by name and label: `rename`, `ps --filter`, and the plans that `--dry-run` prints.

use fuse_tests::world::{World, read, world, write};
use fuse_tests::{Compare, LayerSpec, Tree};

fn app(w: &World) {
    let mut layer = LayerSpec::new();
    layer.file("etc/conf", "conf");
    w.load("app", &[layer]);
}

#[test]
fn a_container_gets_another_name_mounted_or_not() {
    world(|w| {
        app(w);
        let root = w.mount("old", &["--owner", "me", "app"]);
        write(root.join("mine"), "mine");
        w.mlfs().ok(["rename", "old", "new"]);
        assert_eq!((w.state("old"), w.state("new").as_deref()), (None, Some("mounted")));
        assert_eq!(read(root.join("mine")), "mine", "the mount goes on");
        w.retry_busy(&["umount", "new"]).ok();
        assert_eq!(w.state("new").as_deref(), Some("stopped"), "its end is noted under the new name");
        w.mlfs().ok(["rename", "new", "newer"]);
        w.mlfs().ok(["start", "newer"]);
        assert_eq!(read(root.join("mine")), "mine");
        w.retry_busy(&["umount", "newer"]).ok();
        let other = w.mount("other", &["app"]);
        w.mlfs().fails(["rename", "newer", "other"], 1, "other");
        w.mlfs().fails(["rename", "newer", "newer"], 1, "already");
        w.mlfs().fails(["rename", "unknown", "x"], 1, "no container unknown");
        w.mlfs().fails(["rename", "newer", "../x"], 2, "not a container name");
        // The old name is free.
        w.umount("other");
        w.mlfs().ok(["mount", "--name", "old", "app", &other.display().to_string()]);
        w.umount("old");
    });
}

#[test]
fn ps_shows_what_its_filters_say() {
    world(|w| {
        app(w);
        w.mount("one", &["--label", "team=a", "--label", "gpu", "app"]);
        w.mount("two", &["--label", "team=b", "app"]);
        w.mount("three", &["app"]);
        w.umount("three");
        let names = |filters: &[&str]| {
            let mut args = vec!["ps", "-a", "-q"];
            args.extend(filters.iter().flat_map(|f| ["--filter", *f]));
            w.mlfs().ok(args).replace('\n', " ")
        };
        for (filters, wanted) in [
            (&[][..], "one three two"),
            (&["label=team"], "one two"),
            (&["label=team=b"], "two"),
            (&["label=team", "label=gpu"], "one"),
            (&["label!=team"], "three"),
            (&["name=t", "label!=gpu"], "three two"),
            (&["status=stopped"], "three"),
            (&["label=none"], ""),
        ] {
            assert_eq!(names(filters), wanted, "{filters:?}");
        }
        assert_eq!(w.mlfs().ok(["ps", "-q", "--filter", "status=stopped"]), "three", "a state needs no -a");
        assert_eq!(w.mlfs().json(["ps", "--filter", "label=gpu"])[0]["Labels"]["team"], "a");
        w.mlfs().fails(["ps", "--filter", "team"], 2, "invalid filter 'team'");
        w.mlfs().fails(["ps", "--filter", "status=odd"], 2, "invalid filter");
        w.umount("one");
        w.umount("two");
    });
}

#[test]
fn a_dry_run_tells_every_step_and_does_none() {
    world(|w| {
        app(w);
        let target = w.target("box").display().to_string();
        let bind = w.sandbox.path("not-there").display().to_string();
        let volume = format!("{bind}:/bind");
        let args =
            ["mount", "--dry-run", "--name", "box", "--rm", "-v", "vol:/data", "-v", &volume, "--tmpfs", "/t", "app"];
        let before = Tree::take(w.mlfs().root());
        let plan = w.mlfs().ok(args.iter().copied().chain([target.as_str()]));
        let steps: Vec<&str> = plan.lines().collect();
        let position = |part: &str| {
            steps.iter().position(|step| step.contains(part)).unwrap_or_else(|| panic!("no step with {part}: {plan}"))
        };
        let order = [
            "image app",
            "layer sha256:",
            "upper in the store",
            "make the directory",
            "make the volume vol",
            "mount box at",
        ];
        for part in order {
            position(part);
        }
        assert!(position("mount box at") == steps.len() - 1 && steps[steps.len() - 1].contains("discarded"), "{plan}");
        let json = w.mlfs().json(args.iter().copied().chain([target.as_str()]));
        assert_eq!(json.len(), steps.len());
        assert!(json[0]["Step"].is_string());
        assert!(!w.sandbox.path("not-there").exists());
        before.assert_same(&Tree::take(w.mlfs().root()), Compare::ALL, "the store");
        w.mlfs().fails(["mount", "--dry-run", "unknown", &target], 1, "no image unknown");
    });
}

#[test]
fn rm_tells_what_it_would_remove() {
    world(|w| {
        app(w);
        let upper = w.sandbox.dir("kept-upper").display().to_string();
        w.mount("box", &["-v", "/anonymous", "-v", "vol:/vol", "app"]);
        w.mlfs().fails(["rm", "--dry-run", "box"], 1, "box is mounted");
        let plan = w.mlfs().ok(["rm", "--dry-run", "-f", "-v", "box"]);
        for part in ["unmount ", "remove the container box with its upper", "remove the anonymous volume"] {
            assert!(plan.contains(part), "{part}: {plan}");
        }
        assert_eq!(w.state("box").as_deref(), Some("mounted"));
        w.umount("box");
        assert!(w.mlfs().ok(["rm", "--dry-run", "box"]).contains("keep the anonymous volume"));
        w.mount("named", &["--upper", &upper, "app"]);
        w.umount("named");
        let plan = w.mlfs().json(["rm", "--dry-run", "named", "box"]);
        assert!(plan.iter().any(|step| step["Step"] == format!("keep the upper {upper}")), "{plan:?}");
        assert_eq!((w.state("box").as_deref(), w.state("named").as_deref()), (Some("stopped"), Some("stopped")));
        w.mlfs().fails(["rm", "--dry-run", "unknown"], 1, "no container unknown");
        assert_eq!(w.mlfs().ok(["rm", "--dry-run", "-f", "unknown"]), "");
    });
}
