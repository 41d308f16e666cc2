// SPDX-License-Identifier: MIT OR Apache-2.0
//! What everyday programs copy into, out of and inside of a mount arrives with all that it had.

use fuse_tests::{Scene, scenarios};

// A copy by each program, then all that can be told of it: it must be the same as on the host.
fn copies_keep_everything(s: &mut Scene) {
    s.layer(|l| {
        l.file("tree/lower", vec![b'l'; 100_000]).mode(0o640).xattr("user.of", "lower");
        l.file("tree/sub/small", "s").mode(0o4755).mtime(-5, 250_000_000);
        l.symlink("tree/link", "sub/small");
        l.hardlink("tree/hard", "tree/lower");
        l.dir("tree/sub").mode(0o2750).mtime(1_234_567_890, 987_654_321);
    });
    s.mount();
    let script = "
def acl(*lines):
    return struct.pack('<I', 2) + b''.join(struct.pack('<HHI', tag, perm, who) for tag, perm, who in lines)
NONE = 0xffffffff
os.setxattr('tree/sub/small', 'system.posix_acl_access', acl((1, 7, NONE), (2, 6, os.getuid()), (4, 5, NONE), (16, 7, NONE), (32, 0, NONE)))
os.setxattr('tree/sub', 'system.posix_acl_default', acl((1, 7, NONE), (4, 5, NONE), (32, 0, NONE)))
with open('tree/sparse', 'wb') as f:
    f.seek(1 << 20); f.write(b'data'); f.truncate(8 << 20)
os.setxattr('tree/sparse', 'user.empty', b''); os.setxattr('tree/sparse', 'user.long', b'v' * 1000)
os.mkfifo('tree/pipe', 0o600); os.utime('tree/pipe', ns=(1, 2_000_000_001))
os.utime('tree/sparse', ns=(7, 1_600_000_000_123_456_789))
os.chmod('tree', 0o1777)
def told(root):
    found = []
    for base, dirs, files in sorted(os.walk(root)):
        for name in ['.'] + sorted(files) + [d for d in sorted(dirs) if os.path.islink(base + '/' + d)]:
            path = os.path.join(base, name)
            st = os.lstat(path)
            kept = {a: os.getxattr(path, a, follow_symlinks=False) for a in os.listxattr(path, follow_symlinks=False) if a != 'security.selinux'}
            found.append((path[len(root):], oct(st.st_mode), st.st_uid, st.st_gid, 0 if stat.S_ISDIR(st.st_mode) else st.st_nlink,
                          st.st_mtime_ns if name != '.' or 'sub' in path else 0, st.st_size if stat.S_ISREG(st.st_mode) else 0, sorted(kept.items())))
            if stat.S_ISREG(st.st_mode): found.append(hash(content(path)) == hash(content(root.split('/')[0] and 'tree' + path[len(root):])))
    return found
t('itself', lambda: told('tree'))
for program, command in (('cp', 'cp -a tree by-cp'), ('cp sparse', 'cp -a --sparse=always --reflink=auto tree by-cp-sparse'),
                         ('tar', 'mkdir by-tar; tar --xattrs --acls -C tree -cf - . | tar --xattrs --acls -C by-tar -xpf -'),
                         ('tar file', 'tar --xattrs --acls -S -C tree -cf all.tar .; mkdir by-tar-s; tar --xattrs --acls -C by-tar-s -xpf all.tar; rm all.tar')):
    t(program, lambda: subprocess.run(['sh', '-euc', command], capture_output=True, text=True).returncode)
    t(program, lambda: told(command.split('by-')[1].split(';')[0].split(' ')[0].join(['by-', ''])))
t('holes', lambda: [os.stat(d + '/sparse').st_blocks < 200 for d in ('tree', 'by-cp', 'by-cp-sparse', 'by-tar-s')])
t('getfacl', lambda: subprocess.run(['getfacl', '-cn', 'tree/sub/small'], capture_output=True, text=True).stdout.splitlines()[1:])
t('diff', lambda: subprocess.run(['diff', '-r', '--no-dereference', 'tree/sub', 'by-cp/sub']).returncode)
t('mv', lambda: (subprocess.run(['mv', 'by-cp', 'moved']).returncode, told('moved') == told('by-tar') or 'other'))
t('install', lambda: (subprocess.run(['install', '-m', '2751', 'tree/lower', 'installed']).returncode, mode_of('installed')))
t('sed -i', lambda: (subprocess.run(['sed', '-i', 's/s/S/', 'tree/sub/small']).returncode, content('tree/sub/small')))
t('dd', lambda: (subprocess.run('dd if=tree/lower of=dd bs=4k conv=fsync,sparse 2>/dev/null', shell=True).returncode, os.stat('dd').st_size))
t('rm', lambda: subprocess.run(['rm', '-r', 'moved', 'by-tar', 'by-tar-s', 'by-cp-sparse']).returncode)
";
    s.as_on_host(script);
}

scenarios! { copies_keep_everything }
