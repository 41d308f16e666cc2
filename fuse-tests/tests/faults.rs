// SPDX-License-Identifier: MIT OR Apache-2.0
//! What happens when a change stops in the middle: every system call that an operation makes fails once, with the errors
//! of a full, limited or broken disk, and the daemon is killed before each of them (strace injects both).
//!
//! An operation that fails has changed nothing; one that does not has changed everything; after a kill it is one of the
//! two (a file that moves may have both names where the host cannot leave a whiteout). Neither the work directory nor the tree keeps rubbish, and the operation can be done afterwards.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use fuse_tests::cli::{bare, run};
use fuse_tests::driver::{lower, patiently};
use fuse_tests::identity::{has_ids, has_program};
use fuse_tests::layers::Convention;
use fuse_tests::sandbox::unmount;
use fuse_tests::world::{list, needs_root};
use fuse_tests::{Compare, LayerSpec, Sandbox, Tree, host, skip};

/// The calls that change something.
const CHANGES: &str = "ftruncate,copy_file_range,fsync,setxattr,lsetxattr,removexattr,lremovexattr,linkat,fchownat,\
    chmod,utimensat,mkdirat,mknodat,renameat,renameat2,unlinkat,symlinkat,pwrite64";
/// What the upper lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ground {
    /// What tests lie on.
    Plain,
    /// Kernel overlayfs: it has no whiteouts to give, neither as devices nor by renaming.
    Overlayfs,
}

/// An operation, and what may be seen of it.
#[derive(Clone, Copy, Debug)]
struct Operation {
    /// What was done before.
    before: &'static str,
    /// The operation.
    script: &'static str,
    /// What a kill may leave besides all and nothing.
    between: Option<&'static str>,
    ground: Ground,
}

/// An overlay whose daemon can be made to fail.
struct Fault {
    sandbox: Sandbox,
    ground: std::path::PathBuf,
}

impl Fault {
    fn new(ground: Ground) -> Fault {
        let sandbox = Sandbox::new();
        let ground = match ground {
            Ground::Plain => sandbox.root().to_owned(),
            Ground::Overlayfs => mount_ground(&sandbox),
        };
        let fault = Fault { sandbox, ground };
        let mut layer = LayerSpec::new();
        layer.dir("d").mode(0o2775);
        layer.dir("d/e").mode(0o700).xattr("user.note", "dir");
        let small = layer.file("d/e/small", "old content").mode(0o640).xattr("user.note", "file");
        if has_ids() {
            small.owner(7, 8);
        }
        layer.file("d/big", vec![b'b'; 300_000]).mode(0o755);
        layer.file("d/one", "linked");
        layer.hardlink("d/e/two", "d/one");
        layer.hardlink("three", "d/one");
        layer.symlink("d/link", "target");
        layer.dir("empty");
        layer.file("gone", "g");
        lower(&fault.sandbox, "1", &layer, Convention::Trusted);
        for dir in ["upper", "work"] {
            std::fs::create_dir(fault.ground.join(dir)).expect(dir);
        }
        fault.sandbox.dir("merged");
        fault
    }

    fn target(&self) -> std::path::PathBuf {
        self.sandbox.path("merged")
    }

    fn mount(&self) {
        let (lower, ground) = (self.sandbox.path("lower/1"), self.ground.display());
        let options = format!("lowerdir={},upperdir={ground}/upper,workdir={ground}/work", lower.display());
        patiently(|| {
            let outcome = run(&self.sandbox, bare(&self.sandbox).args(["overlay", "-o", &options]).arg(self.target()));
            if outcome.code != 0 && (outcome.stderr.contains("busy") || outcome.stderr.contains("already mounted")) {
                Err(outcome.stderr)
            } else {
                Ok(outcome)
            }
        })
        .expect("mount")
        .ok();
    }

    fn unmount(&self, is_dead: bool) {
        patiently(|| unmount(&self.target(), is_dead)).expect("umount");
        self.sandbox.wait_for_processes(Duration::from_secs(60)).expect("the daemon ends");
    }

    fn daemon(&self) -> u32 {
        let found: Vec<_> = self.sandbox.processes().into_iter().filter(|(_, line)| line.contains("overlay")).collect();
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].0
    }

    fn tree(&self) -> Tree {
        Tree::take(&self.target())
    }

    fn has_no_rubbish(&self, when: &str) {
        assert_eq!(list(self.ground.join("work/work")), Vec::<String>::new(), "{when}: staged things stay");
    }
}

/// Mounts kernel overlayfs for an upper to lie on.
fn mount_ground(sandbox: &Sandbox) -> std::path::PathBuf {
    let ground = sandbox.dir("ground");
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| sandbox.dir(format!("below/{name}")));
    let options =
        format!("xino=auto,lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let status = Command::new("mount").args(["-t", "overlay", "none", "-o", &options]).arg(&ground).status();
    assert!(status.expect("mount").success(), "a ground is mounted");
    ground
}

/// strace on a daemon.
struct Injection {
    strace: Child,
    /// It speaks of every new thread, and must be heard.
    _said: BufReader<ChildStderr>,
    log: std::path::PathBuf,
}

impl Injection {
    /// `what` happens at `call`, and all calls of [`CHANGES`] are written down.
    fn new(fault: &Fault, call: Option<&Call>, what: &str) -> Injection {
        let log = fault.sandbox.path("strace.log");
        let pid = fault.daemon().to_string();
        let inject = call.map(|(name, which)| format!("inject={name}:{what}:when={which}"));
        let mut strace = Command::new("strace")
            .args(["-f", "-p", &pid, "-e", &format!("trace={CHANGES}")])
            .args(inject.iter().flat_map(|inject| ["-e", inject]))
            .arg("-o")
            .arg(&log)
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace");
        let mut said = BufReader::new(strace.stderr.take().expect("stderr"));
        let mut line = String::new();
        said.read_line(&mut line).expect("strace speaks");
        assert!(line.contains("attached"), "strace: {line}");
        Injection { strace, _said: said, log }
    }

    /// Lets go; what it saw.
    fn end(mut self) -> String {
        let pid = rustix::process::Pid::from_child(&self.strace);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("our child");
        // It does not always notice the end of what it traced.
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.strace.try_wait().expect("our child").is_none() {
            if Instant::now() > deadline {
                self.strace.kill().expect("our child");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// One system call of an operation: its name, and which of that name.
type Call = (String, u32);

/// The calls in a log of strace, counted as it counts: for every thread.
fn calls(log: &str) -> Vec<Call> {
    let mut counts: HashMap<(&str, &str), u32> = HashMap::new();
    let mut calls: Vec<Call> = Vec::new();
    for line in log.lines().filter(|line| !line.contains("resumed>")) {
        let mut words = line.split_whitespace();
        let (Some(thread), Some(call)) = (words.next(), words.next()) else { continue };
        let Some((name, _)) = call.split_once('(') else { continue };
        let count = counts.entry((thread, name)).or_default();
        *count += 1;
        let call = (name.to_owned(), *count);
        if !calls.contains(&call) {
            calls.push(call);
        }
    }
    calls
}

/// Times of directories may be those of an attempt.
const COMPARE: Compare = Compare { recent: 1_600_000_000, is_dir_mtime: false, is_root: false, ..Compare::ALL };

/// After a kill: a file whose content was on its way has the time of that, and a count of links may still be that of
/// before (never one too low).
const KILLED: Compare = Compare { is_mtime: false, is_link_count: false, ..COMPARE };

fn is_like(old: &Tree, tree: &Tree) -> bool {
    std::panic::catch_unwind(|| old.assert_same(tree, KILLED, "")).is_ok()
}

/// An overlay on which everything before the operation was done.
fn prepared(operation: Operation) -> Fault {
    let fault = Fault::new(operation.ground);
    fault.mount();
    host::sh(&fault.sandbox, &fault.target(), operation.before).ok();
    fault
}

/// The trees before and after `script` without faults, and the calls that the daemon makes for it.
fn outcomes(operation: Operation, script: &str) -> (Tree, Tree, String) {
    let fault = prepared(operation);
    let old = fault.tree();
    let trace = has_program("strace").then(|| Injection::new(&fault, None, ""));
    host::sh(&fault.sandbox, &fault.target(), script).ok();
    let log = trace.map(Injection::end).unwrap_or_default();
    let new = fault.tree();
    fault.unmount(false);
    (old, new, log)
}

/// The trees before and after an operation, and those that a kill may leave besides.
struct Outcomes {
    old: Tree,
    new: Tree,
    between: Option<Tree>,
}

fn sweep(operation: Operation) {
    fuse_tests::check(|| {
        needs_root("strace on the daemon");
        if !has_program("strace") {
            skip("no strace on this machine");
        }
        let (old, new, log) = outcomes(operation, operation.script);
        let between = operation.between.map(|script| outcomes(operation, script).1);
        let calls = calls(&log);
        assert!(!calls.is_empty(), "{operation:?} changes nothing: {log}");
        let outcomes = Outcomes { old, new, between };
        every_call_fails(operation, &calls, &outcomes);
        killed_before_every_call(operation, &calls, &outcomes);
    });
}

/// How often an operation may miss a call: which of the workers makes it is not always the same.
const ATTEMPTS: u32 = 4;

/// Something was done to calls of every name, if not to each of them.
fn is_every_name_hit(operation: Operation, calls: &[Call], hit: &[&Call]) {
    for (name, _) in calls {
        assert!(hit.iter().any(|call| call.0 == *name), "{operation:?}: no {name} of {calls:?} was met");
    }
}

fn every_call_fails(operation: Operation, calls: &[Call], outcomes: &Outcomes) {
    let Outcomes { old, new, .. } = outcomes;
    let script = operation.script;
    let mut fault = prepared(operation);
    let mut hit = Vec::new();
    for (number, call) in calls.iter().enumerate() {
        let error = ["ENOSPC", "EIO", "EDQUOT"][number % 3];
        let mut is_hit = false;
        for _ in 0..ATTEMPTS {
            let injection = Injection::new(&fault, Some(call), &format!("error={error}"));
            let outcome = host::sh(&fault.sandbox, &fault.target(), script);
            let log = injection.end();
            let what = format!("{operation:?} with {error} at {call:?}, ended with {}:\n{log}", outcome.code);
            is_hit = log.contains("INJECTED");
            let wanted = if outcome.code == 0 { new } else { old };
            // The operation has happened when links are counted: what fails then is told in the log.
            let is_count = log.lines().any(|line| line.contains("overlay.nlink") && line.contains("INJECTED"));
            let compare = Compare { is_link_count: !is_count, ..COMPARE };
            wanted.assert_same(&fault.tree(), compare, &what);
            // What cannot be removed goes with the next mount.
            if call.0 != "unlinkat" {
                fault.has_no_rubbish(&what);
            }
            if outcome.code == 0 || call.0 == "unlinkat" {
                fault.unmount(false);
                fault.mount();
                fault.has_no_rubbish(&what);
                wanted.assert_same(&fault.tree(), compare, &format!("{what}\nmounted again"));
                fault.unmount(false);
                fault = prepared(operation);
            }
            if is_hit {
                break;
            }
        }
        hit.extend(is_hit.then_some(call));
    }
    is_every_name_hit(operation, calls, &hit);
    host::sh(&fault.sandbox, &fault.target(), script).ok();
    new.assert_same(&fault.tree(), COMPARE, &format!("{script:?} after all that failed"));
    fault.unmount(false);
}

fn killed_before_every_call(operation: Operation, calls: &[Call], outcomes: &Outcomes) {
    let Outcomes { old, new, between } = outcomes;
    let script = operation.script;
    let mut fault = prepared(operation);
    let mut hit = Vec::new();
    for call in calls {
        let mut is_hit = false;
        for _ in 0..ATTEMPTS {
            let injection = Injection::new(&fault, Some(call), "signal=KILL");
            let outcome = host::sh(&fault.sandbox, &fault.target(), script);
            let log = injection.end();
            let what = format!("{operation:?} killed before {call:?}, ended with {}:\n{log}", outcome.code);
            is_hit = log.contains("killed by SIGKILL");
            fault.unmount(is_hit);
            fault.mount();
            fault.has_no_rubbish(&what);
            let tree = fault.tree();
            if outcome.code == 0 || !is_like(old, &tree) {
                if !between.as_ref().is_some_and(|between| is_like(between, &tree)) {
                    new.assert_same(&tree, KILLED, &what);
                }
                fault.unmount(false);
                fault = prepared(operation);
            }
            if is_hit {
                break;
            }
        }
        hit.extend(is_hit.then_some(call));
    }
    is_every_name_hit(operation, calls, &hit);
    host::sh(&fault.sandbox, &fault.target(), script).ok();
    new.assert_same(&fault.tree(), COMPARE, &format!("{script:?} after it was killed"));
    fault.unmount(false);
}

macro_rules! sweeps {
    ($ground:expr; $($name:ident: $before:expr, $script:expr $(, or $between:expr)?;)*) => {
        $(
            #[test]
            fn $name() {
                let between = None$(.or(Some($between)))?;
                sweep(Operation { before: $before, script: $script, between, ground: $ground });
            }
        )*
    };
}

sweeps! {
    Ground::Plain;
    a_small_file_is_changed_in_place: "true", "echo new 1<>d/e/small";
    a_small_file_is_truncated: "true", ": > d/e/small";
    a_large_file_changes_its_mode: "true", "chmod 700 d/big";
    a_large_file_gets_its_content: "chmod 700 d/big", "echo new 1<>d/big";
    a_large_copy_is_truncated: "chmod 700 d/big", ": > d/big";
    a_symlink_is_given_away: "true", "chown -h 5:6 d/link";
    a_linked_file_is_changed: "true", "chmod 600 d/one";
    a_name_of_a_group_goes: "true", "rm d/one";
    a_name_of_a_copied_group_goes: "chmod 600 d/one", "rm three";
    a_file_is_made_over_a_whiteout: "rm gone", "ln -s x gone";
    a_file_goes: "true", "rm gone";
    a_directory_is_made_over_a_whiteout: "rmdir empty", "mkdir empty";
    a_directory_goes: "true", "rmdir empty";
    a_directory_moves: "true", "mv d moved";
    a_file_replaces_one: "true", "mv d/e/small gone";
    a_large_file_gets_a_name: "true", "ln d/big d/e/other";
}

// Without `RENAME_WHITEOUT` a move is several steps: nothing may be in staging alone meanwhile.
sweeps! {
    Ground::Overlayfs;
    on_overlayfs_a_file_moves: "echo mine > d/e/small", "mv d/e/small moved", or "ln d/e/small moved";
    on_overlayfs_a_file_moves_onto_one_of_a_layer: "echo mine > d/e/small", "mv d/e/small gone", or "ln -f d/e/small gone";
    on_overlayfs_a_file_replaces_one: "echo mine > d/e/small; echo g > gone", "mv d/e/small gone",
        or "ln -f d/e/small gone";
    on_overlayfs_a_file_moves_onto_a_whiteout: "echo mine > d/e/small; rm gone", "mv d/e/small gone";
    on_overlayfs_a_linked_file_moves: "echo mine > d/one", "mv d/one moved", or "ln d/one moved";
    on_overlayfs_a_directory_moves: "echo mine > d/e/small", "mv d moved";
    on_overlayfs_a_directory_moves_onto_a_whiteout: "echo mine > d/e/small; rm gone", "mv d gone";
    on_overlayfs_a_directory_moves_onto_one_of_a_layer: "echo mine > d/e/small", "mv -T d empty", or "rmdir empty";
    on_overlayfs_a_directory_goes: "true", "rmdir empty";
    on_overlayfs_a_file_goes: "true", "rm gone";
    on_overlayfs_a_changed_file_goes: "echo mine > gone", "rm gone";
}

#[test]
fn a_new_file_with_lists_is_whole_or_not_there() {
    if !has_program("setfacl") {
        return fuse_tests::check(|| skip("no setfacl on this machine"));
    }
    let before = "setfacl -d -m u:7:rwx d";
    sweep(Operation { before, script: "mkdir d/new", between: None, ground: Ground::Plain });
}

/// The daemon may open so many files from now on.
fn limit_files(pid: u32, count: u64) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).expect("a pid"));
    let maximum = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let limit = rustix::process::Rlimit { current: Some(count), maximum };
    rustix::process::prlimit(pid, rustix::process::Resource::Nofile, limit).expect("prlimit");
}

// Descriptors: whatever fails for want of them leaves the old file.
#[test]
fn an_operation_without_descriptors_changes_nothing() {
    fuse_tests::check(|| {
        for script in
            [": > d/e/small", "echo new >> d/e/small", ": > d/big", "chmod 700 d/big", "rm d/one", "mv d moved"]
        {
            let operation = Operation { before: "true", script, between: None, ground: Ground::Plain };
            let (old, new, _) = outcomes(operation, script);
            for spare in 0.. {
                let fault = Fault::new(operation.ground);
                fault.mount();
                let pid = fault.daemon();
                let used = list(Path::new(&format!("/proc/{pid}/fd")));
                let highest = used.iter().filter_map(|name| name.parse::<u64>().ok()).max().expect("descriptors");
                limit_files(pid, highest + 1 + spare);
                let outcome = host::sh(&fault.sandbox, &fault.target(), script);
                limit_files(pid, highest + 1000);
                let what = format!("{script:?} with {spare} spare descriptors, ended with {}", outcome.code);
                let wanted = if outcome.code == 0 { &new } else { &old };
                wanted.assert_same(&fault.tree(), COMPARE, &what);
                fault.has_no_rubbish(&what);
                fault.unmount(false);
                if outcome.code == 0 {
                    break;
                }
            }
        }
    });
}
