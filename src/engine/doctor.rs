// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mlfs doctor`: what this machine and a directory can do for mlfs, what each missing thing costs, how to get it.
//!
//! What can be tried is tried; nothing stays behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::fuse::IoChoice;
use crate::model::IoMode;
use crate::sys::abilities::{self, Abilities, Ability};
use crate::sys::namespace::{Privilege, try_mount};
use crate::sys::{mount, proc};

use super::{OrFail, Result, host};

/// The first kernel in which the server of a mount may give files to it.
const PASSTHROUGH_SINCE: (u32, u32) = (6, 9);

/// How a thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is there.
    Ok,
    /// mlfs works without it, but not as well.
    Limited,
    /// It is not there.
    Missing,
}

impl State {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Limited => "limited",
            State::Missing => "missing",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// How it stands.
    pub state: State,
    /// What was found.
    pub value: String,
    /// What its absence costs; empty when it is there.
    pub cost: &'static str,
    /// How to get it; empty when it is there.
    pub remedy: &'static str,
}

impl Check {
    fn new(name: &'static str, value: impl Into<String>) -> Self {
        Check { name, state: State::Ok, value: value.into(), cost: "", remedy: "" }
    }

    fn lacking(self, state: State, cost: &'static str, remedy: &'static str) -> Self {
        Check { state, cost, remedy, ..self }
    }

    /// What an attempt found: `value` if it went well.
    fn tried(
        name: &'static str,
        value: &str,
        attempt: Result<(), impl Into<std::io::Error>>,
        state: State,
        cost: &'static str,
        remedy: &'static str,
    ) -> Self {
        match attempt {
            Ok(()) => Check::new(name, value),
            Err(error) => Check::new(name, told(error)).lacking(state, cost, remedy),
        }
    }

    fn of(name: &'static str, ability: Ability, state: State, cost: &'static str, remedy: &'static str) -> Self {
        Check::tried(name, "yes", ability, state, cost, remedy)
    }
}

/// Everything that was found.
#[derive(Clone, Debug)]
pub struct Diagnosis {
    /// What was looked at, in order.
    pub checks: Vec<Check>,
    /// The ways in which this user can mount; none: he cannot.
    pub ways: Vec<&'static str>,
}

/// Looks at this machine, and at the filesystem of `dir` (where the store, an upper or a volume is or is to be). Call it
/// with one thread: it tries mounts in children.
pub fn examine(dir: &Path) -> Result<Diagnosis> {
    let mut checks = Vec::new();
    let mut ways = Vec::new();
    checks.push(kernel());
    let device = mount::open_fuse_device().map(drop);
    let has_device = device.is_ok();
    checks.push(fuse_device(device));
    // In namespaces of their own, where nobody minds what is mounted over.
    let target = Path::new("/");
    let direct = try_mount(target, Privilege::Ours);
    if direct.is_ok() {
        ways.push("mount(2)");
    }
    checks.push(Check::tried(
        "mount(2)",
        "allowed",
        direct,
        State::Limited,
        "mounts need fusermount3 or a user namespace",
        "nothing to do for an ordinary user: the next two are his ways",
    ));
    let helper = helper();
    if helper.state == State::Ok && has_device {
        ways.push("fusermount3");
    }
    checks.push(helper);
    let namespace = try_mount(target, Privilege::OfNamespace);
    if namespace.is_ok() {
        ways.push("mlfs mount ... -- CMD");
    }
    checks.push(Check::tried(
        "user namespaces",
        "a mount in one was tried and works",
        namespace,
        State::Limited,
        "`mlfs mount ... -- CMD` works only where another way to mount does",
        "let root set the sysctls user.max_user_namespaces (above 0), kernel.unprivileged_userns_clone=1, \
         kernel.apparmor_restrict_unprivileged_userns=0, as far as they exist",
    ));
    checks.extend([subordinate_ids(), allow_other(), passthrough(), open_files()]);
    let existing = existing_above(dir);
    let found = abilities::probe(&existing).or_fail(|| format!("cannot look at {}", existing.display()))?;
    checks.extend(of_directory(&existing, &found));
    Ok(Diagnosis { checks, ways })
}

/// The directory, or the deepest one above it that exists: a store is made when it is first used.
fn existing_above(dir: &Path) -> PathBuf {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    absolute.ancestors().find(|path| path.exists()).map_or_else(|| PathBuf::from("/"), Path::to_owned)
}

fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

fn kernel() -> Check {
    Check::new("kernel", format!("Linux {}", release()))
}

/// Is a kernel release this version or newer? One that cannot be read is taken for new.
fn is_at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= wanted,
        _ => true,
    }
}

fn fuse_device(opened: std::io::Result<()>) -> Check {
    Check::tried(
        "/dev/fuse",
        "can be opened",
        opened,
        State::Missing,
        "nothing can be mounted; ls, cat, which, layers, export and cp work",
        "let root load the module (modprobe fuse) and allow the device to all (chmod 666 /dev/fuse); in a \
         container, start it with --device /dev/fuse",
    )
}

/// A program of PATH.
fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0))
}

fn helper() -> Check {
    let Some(path) = in_path("fusermount3").or_else(|| in_path("fusermount")) else {
        return Check::new("fusermount3", "not in PATH").lacking(
            State::Missing,
            "ordinary users mount only by `mlfs mount ... -- CMD`",
            "let root install it (Debian: apt-get install fuse3)",
        );
    };
    let found = Check::new("fusermount3", path.display().to_string());
    let is_set_id = fs::metadata(&path).is_ok_and(|meta| meta.permissions().mode() & 0o4000 != 0);
    if is_set_id || proc::is_administrator() {
        return found;
    }
    Check { value: format!("{} is not set-uid root", found.value), ..found }.lacking(
        State::Missing,
        "ordinary users mount only by `mlfs mount ... -- CMD`",
        "let root repair it (chmod u+s); in a container that forbids new privileges there is no way to",
    )
}

/// How many ids of a user a file like `/etc/subuid` gives away.
fn given_ids(table: &str, user: &str, uid: u32) -> u64 {
    let uid = uid.to_string();
    let lines = table.lines().filter_map(|line| {
        let mut words = line.trim().splitn(3, ':');
        let (name, count) = (words.next()?, words.nth(1)?);
        (name == user || name == uid).then(|| count.parse::<u64>().ok()).flatten()
    });
    lines.fold(0, u64::saturating_add)
}

fn subordinate_ids() -> Check {
    let uid = proc::euid();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let user = passwd.lines().find_map(|line| {
        let words: Vec<&str> = line.split(':').collect();
        (words.get(2) == Some(&uid.to_string().as_str())).then(|| words.first().map(|w| (*w).to_owned())).flatten()
    });
    let user = user.unwrap_or_default();
    let given = |path| given_ids(&fs::read_to_string(path).unwrap_or_default(), &user, uid);
    let (users, groups) = (given("/etc/subuid"), given("/etc/subgid"));
    let value = format!("{users} user ids, {groups} group ids");
    if proc::is_real_root() || (users > 0 && groups > 0 && in_path("newuidmap").is_some()) {
        return Check::new("subordinate ids", value);
    }
    let value = if in_path("newuidmap").is_none() { format!("{value}, no newuidmap in PATH") } else { value };
    Check::new("subordinate ids", value).lacking(
        State::Limited,
        "in a user namespace only your own id is real; mlfs keeps other owners in attributes",
        "let root install uidmap and add a range (usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER)",
    )
}

fn allow_other() -> Check {
    if host::caller().0 == 0 || host::is_allow_other_allowed() {
        return Check::new("allow_other", "allowed");
    }
    Check::new("allow_other", format!("{} has no user_allow_other", host::FUSE_CONF)).lacking(
        State::Limited,
        "your mounts are yours alone: other users, root among them, cannot enter",
        "let root add the line user_allow_other to /etc/fuse.conf",
    )
}

fn passthrough() -> Check {
    let choice = IoChoice::for_this_process(IoMode::Auto);
    let is_known = is_at_least(&release(), PASSTHROUGH_SINCE);
    if choice.passes && is_known {
        return Check::new("passthrough", choice.why);
    }
    let why = if is_known { choice.why } else { "this kernel has no passthrough".to_owned() };
    Check::new("passthrough", why).lacking(
        State::Limited,
        "contents go through this process and are cached twice",
        "only root of the machine can have it (kernel 6.9 or newer)",
    )
}

fn open_files() -> Check {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let told = |limit: Option<u64>| limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
    let check = Check::new("open files", format!("{} (at most {})", told(limit.current), told(limit.maximum)));
    if limit.maximum.is_none_or(|most| most >= 4096) {
        return check;
    }
    check.lacking(
        State::Limited,
        "programs that keep many files open in a mount may see EMFILE",
        "raise the hard limit (ulimit -Hn, LimitNOFILE=, /etc/security/limits.conf)",
    )
}

/// What the host says, without its number.
fn told(error: impl Into<std::io::Error>) -> String {
    let text = error.into().to_string();
    text.split_once(" (os error").map_or(text.clone(), |(said, _)| said.to_owned())
}

fn of_directory(dir: &Path, found: &Abilities) -> Vec<Check> {
    use State::{Limited, Missing};
    let local = "keep the store on a local disk: --root DIR, or MLFS_ROOT";
    let has_marks = found.user_xattrs.or(found.trusted_xattrs);
    let mut checks = vec![
        Check::new("directory", format!("{} ({})", dir.display(), found.kind)),
        Check::of(
            "writing",
            found.write,
            Missing,
            "no store, upper or volume can be made here",
            "choose another directory",
        ),
    ];
    if found.write.is_err() {
        return checks;
    }
    let inodes = if found.free_inodes == 0 { String::new() } else { format!(", {} inodes", found.free_inodes) };
    checks.extend([
        Check::new("free space", format!("{} MiB{inodes}", found.free_bytes >> 20)),
        Check::of(
            "marks",
            has_marks,
            Missing,
            "no upper can lie here: whiteouts and owners need extended attributes (user. or trusted.)",
            "mount it with user_xattr, or put uppers elsewhere: --upper DIR, or the whole store with --root",
        ),
        Check::of(
            "locks",
            found.flock.or(found.fcntl_locks),
            Missing,
            "no store can lie here: its processes would not see each other",
            "keep the store on a local disk (--root DIR, MLFS_ROOT), or have this one mounted with locks",
        ),
        Check::of("flock", found.flock, Limited, "a store here is locked by fcntl", "nothing to do"),
        Check::of("hard links", found.links, Missing, "link(2) fails in mounts", local),
        Check::of(
            "owners",
            found.chown,
            Limited,
            "owners are kept in attributes instead of on the files",
            "only root can give files away",
        ),
        Check::of(
            "whiteout devices",
            found.whiteouts,
            Limited,
            "deleted names are marked by attributes: a little slower, and kernel overlayfs reads them since 6.7 only",
            "nothing to do",
        ),
        Check::of(
            "O_TMPFILE",
            found.unnamed_files,
            Limited,
            "new files are staged under names: a little slower",
            "nothing to do",
        ),
        Check::of(
            "rename exchange",
            found.rename_exchange,
            Limited,
            "a directory cannot take the place of a whiteout in one step",
            local,
        ),
        Check::of(
            "fcntl locks",
            found.fcntl_locks,
            Limited,
            "programs that lock files may fail in volumes here",
            local,
        ),
        Check::of("kinds in listings", found.kinds_in_listings, Limited, "each listed name costs one more call", local),
        Check::of(
            "reflinks",
            found.reflinks,
            Limited,
            "the first change of a large file copies it whole",
            "btrfs, or xfs with reflink=1, share instead",
        ),
    ]);
    checks
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn ranges_of_ids_are_those_of_the_user() {
        let table = "ann:100000:65536\n1000:200000:10\nbob:1:2\nann:broken\n";
        assert_eq!(given_ids(table, "ann", 1000), 65_546);
        assert_eq!(given_ids(table, "eve", 5), 0);
    }

    #[test]
    fn releases_are_compared_by_their_numbers() {
        for (release, is_new) in
            [("6.9.0", true), ("6.18.44-fc", true), ("6.8.12", false), ("5.15", false), ("x", true)]
        {
            assert_eq!(is_at_least(release, PASSTHROUGH_SINCE), is_new, "{release}");
        }
    }

    #[test]
    fn a_directory_that_is_not_there_yet_is_judged_by_what_is_above_it() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(existing_above(&dir.path().join("a/b")), dir.path());
    }

    #[test]
    fn what_a_directory_lacks_is_told_with_cost_and_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let mut found = abilities::probe(dir.path()).unwrap();
        found.user_xattrs = Err(Errno::OPNOTSUPP);
        found.trusted_xattrs = Err(Errno::OPNOTSUPP);
        let checks = of_directory(dir.path(), &found);
        let marks = checks.iter().find(|check| check.name == "marks").unwrap();
        assert_eq!(marks.state, State::Missing);
        assert!(checks.iter().all(|c| (c.state == State::Ok) == (c.cost.is_empty() && c.remedy.is_empty())));
        let nothing = Abilities { write: Err(Errno::ROFS), ..found };
        assert_eq!(of_directory(dir.path(), &nothing).len(), 2, "what cannot be tried is not judged");
    }
}
