// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mlfs diff`, `which`, `layers`, `ls`, `cat`: looking inside, without mounting.

use std::ffi::OsString;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use crate::engine::layer_sums;
use crate::engine::look::{self, Part, View, kind_word};
use crate::engine::{EngineError, OrFail, Result};
use crate::fs::inspect::Source;
use crate::fs::{ChangeKind, EntryOut, Follow, OpenFlags, Provenance};
use crate::model::{Cookie, FsError, Kind};
use crate::store::{Access, timestamp};

use super::Context;
use super::output::{self, Format, Row};

/// `mlfs diff`
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  mlfs diff try")]
pub struct DiffArgs {
    /// The container
    name: String,
}

/// Runs `mlfs diff`.
pub fn diff(context: &Context, args: &DiffArgs) -> Result<()> {
    let changes = look::diff(&context.store(Access::Read)?, &args.name)?;
    let letter = |kind| match kind {
        ChangeKind::Added => "A",
        ChangeKind::Changed => "C",
        ChangeKind::Deleted => "D",
    };
    if context.format == Format::Json {
        let object = |c: &crate::fs::Change| json!({"Kind": letter(c.kind), "Path": lossy(&c.path)});
        return output::print_json(changes.iter().map(object).collect());
    }
    output::print_lines(changes.into_iter().map(|change| {
        let mut line = if context.is_quiet { Vec::new() } else { format!("{} ", letter(change.kind)).into_bytes() };
        line.extend(change.path);
        line
    }))
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A path inside a target is relative to its root, with a slash before it or without.
fn absolute(path: &OsString) -> Vec<u8> {
    let mut out = b"/".to_vec();
    out.extend(path.as_bytes().iter().skip_while(|b| **b == b'/'));
    out
}

/// `mlfs which`
#[derive(Args, Debug)]
#[command(
    after_help = "Prints `layer N` (1 is the bottom), `upper`, `volume NAME`, `bind PATH` or `tmpfs`, and what is hidden. \
                  Exit code 3: the path is deleted; 1: no layer has it.\n\nExample:\n  mlfs which debian:12 /etc/passwd"
)]
pub struct WhichArgs {
    /// An image, a container, or a mountpoint
    target: String,
    /// A path in it
    path: OsString,
}

/// Runs `mlfs which`.
pub fn which(context: &Context, args: &WhichArgs) -> Result<ExitCode> {
    let store = context.store(Access::Read)?;
    let view = look::open(&store, &look::find(&store, &args.target)?, Part::Whole)?;
    let path = absolute(&args.path);
    if view.tmpfs.iter().any(|target| is_below(&path, target.as_bytes())) {
        let json = json!({"Path": lossy(&path), "Provider": "tmpfs", "Hidden": []});
        return print_which(context, vec!["tmpfs".to_owned()], json).map(|()| ExitCode::SUCCESS);
    }
    let found = match view.fs.which(&path) {
        Err(FsError::NotFound | FsError::NotDir) => {
            return Err(EngineError::failed(format!("no layer of {} has {}", args.target, lossy(&path))));
        }
        other => other.or_fail(|| format!("cannot look for {}", lossy(&path)))?,
    };
    let (lines, json, is_deleted) = describe(&view, &path, &found);
    print_which(context, lines, json)?;
    Ok(if is_deleted { ExitCode::from(3) } else { ExitCode::SUCCESS })
}

fn is_below(path: &[u8], dir: &[u8]) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

fn print_which(context: &Context, lines: Vec<String>, json: Value) -> Result<()> {
    if context.format == Format::Json {
        return output::print_json(vec![json]);
    }
    let count = if context.is_quiet { 1 } else { lines.len() };
    output::print_lines(lines.into_iter().take(count).map(String::into_bytes))
}

/// The answer of `which` as lines and as JSON, and whether the path is deleted.
fn describe(view: &View, path: &[u8], found: &Provenance) -> (Vec<String>, Value, bool) {
    let word = |source: Source| match source {
        Source::Upper if found.branch == 0 => "upper".to_owned(),
        Source::Upper => found.label.clone(),
        Source::Layer(number) => format!("layer {number}"),
    };
    let info = |source: Source| match source {
        Source::Layer(number) if found.branch == 0 => (number as usize).checked_sub(1).and_then(|n| view.layers.get(n)),
        _ => None,
    };
    let mut lines = Vec::new();
    let mut json = json!({"Path": lossy(path)});
    match (found.provider, found.deleted_by) {
        (Some((source, kind)), _) => {
            lines.push(word(source));
            lines.push(format!("  {}", kind_word(kind)));
            if let Some(info) = info(source) {
                lines.push(format!("  {}", info.name));
                lines.extend(info.created_by.iter().map(|by| format!("  made by {by}")));
            }
            merge(&mut json, json!({"Provider": word(source), "Type": kind_word(kind)}));
            if let Source::Layer(number) = source {
                let digest = info(source).map(|i| i.name.clone());
                merge(&mut json, json!({"Layer": number, "Digest": digest}));
            }
        }
        (None, deleted_by) => {
            let by = deleted_by.map(word).unwrap_or_default();
            lines.push(format!("deleted by {by}"));
            merge(&mut json, json!({"Provider": Value::Null, "DeletedBy": by}));
        }
    }
    let merged: Vec<String> = found.merged.iter().map(|source| word(*source)).collect();
    let hidden: Vec<String> =
        found.hidden.iter().map(|(source, kind)| format!("{} ({})", word(*source), kind_word(*kind))).collect();
    lines.extend(merged.iter().map(|by| format!("  merged with {by}")));
    lines.extend(hidden.iter().map(|what| format!("  hides {what}")));
    let hidden: Vec<Value> = found
        .hidden
        .iter()
        .map(|(source, kind)| json!({"Provider": word(*source), "Type": kind_word(*kind)}))
        .collect();
    merge(&mut json, json!({"Merged": merged, "Hidden": hidden}));
    (lines, json, found.provider.is_none())
}

fn merge(object: &mut Value, more: Value) {
    if let (Some(object), Value::Object(more)) = (object.as_object_mut(), more) {
        object.extend(more);
    }
}

/// `mlfs layers`
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  mlfs layers debian:12")]
pub struct LayersArgs {
    /// An image, a container, or a mountpoint
    target: String,
}

/// Runs `mlfs layers`.
pub fn layers(context: &Context, args: &LayersArgs) -> Result<()> {
    let store = context.store(Access::Read)?;
    let layers = look::layers(&store, &look::find(&store, &args.target)?)?;
    let infos = &layers.infos;
    let opened: Vec<_> = infos.iter().map(|info| std::sync::Arc::clone(&info.layer)).collect();
    let sums = layer_sums::sum(&opened).or_fail(|| "cannot read the layers")?;
    let rows = infos.iter().zip(sums).enumerate().map(|(index, (info, sums))| {
        let created_by = info.created_by.as_deref().unwrap_or("");
        Row {
            name: info.name.clone().into_bytes(),
            cells: vec![
                (index + 1).to_string(),
                info.name.strip_prefix("sha256:").map_or_else(|| info.name.clone(), output::short),
                info.stored.map(output::size).unwrap_or_default(),
                output::size(sums.bytes),
                sums.files.to_string(),
                sums.whiteouts.to_string(),
                output::size(sums.hidden),
                shortened(created_by, 60),
            ],
            json: json!({
                "Number": index + 1,
                "Digest": info.name,
                "DiffId": info.diff_id.map(|d| d.to_string()),
                "CreatedBy": created_by,
                "StoredSize": info.stored,
                "UnpackedSize": sums.bytes,
                "Files": sums.files,
                "Whiteouts": sums.whiteouts,
                "HiddenBytes": sums.hidden,
            }),
        }
    });
    let head = ["LAYER", "DIGEST", "STORED", "UNPACKED", "FILES", "WHITEOUTS", "HIDDEN", "CREATED BY"];
    output::print_rows(context.format, context.is_quiet, &head, rows.collect())
}

/// A text in one line of at most `length` characters.
pub fn shortened(text: &str, length: usize) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= length {
        return line;
    }
    line.chars().take(length.saturating_sub(3)).collect::<String>() + "..."
}

/// `mlfs ls`
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  mlfs ls debian:12 /etc\n  mlfs ls try --layer 2")]
pub struct LsArgs {
    /// An image, a container, or a mountpoint
    target: String,
    /// A path in it [default: its root]
    path: Option<OsString>,
    /// Only this layer: its number (1 is the bottom) or digest
    #[arg(long, value_name = "N|DIGEST")]
    layer: Option<String>,
}

/// Runs `mlfs ls`.
pub fn ls(context: &Context, args: &LsArgs) -> Result<()> {
    let path = absolute(args.path.as_ref().unwrap_or(&OsString::new()));
    let view = open(context, &args.target, args.layer.as_deref())?;
    let entry = resolve(&view, &args.target, &path, Follow::Yes)?;
    let mut rows = Vec::new();
    if entry.attr.kind == Kind::Dir {
        let mut names = Vec::new();
        view.fs
            .read_dir(entry.id, Cookie::START, &mut |line| {
                names.push(line.name);
                ControlFlow::Continue(())
            })
            .or_fail(|| format!("cannot list {}", lossy(&path)))?;
        names.sort();
        for name in names {
            let child = view.fs.lookup(entry.id, name.as_name()).or_fail(|| format!("cannot look at {name:?}"))?;
            rows.push(row(&view, name.as_name().bytes(), &child)?);
            view.fs.forget(child.id, 1);
        }
    } else {
        let entry = resolve(&view, &args.target, &path, Follow::No)?;
        rows.push(row(&view, &path, &entry)?);
    }
    output::print_rows(context.format, context.is_quiet, &["MODE", "UID", "GID", "SIZE", "MODIFIED", "NAME"], rows)
}

fn open(context: &Context, target: &str, layer: Option<&str>) -> Result<View> {
    let store = context.store(Access::Read)?;
    look::open(&store, &look::find(&store, target)?, layer.map_or(Part::Whole, Part::Layer))
}

fn resolve(view: &View, target: &str, path: &[u8], follow: Follow) -> Result<EntryOut> {
    view.fs.resolve(path, follow).map_err(|error| match error {
        FsError::NotFound | FsError::NotDir => EngineError::failed(format!("{target} has no {}", lossy(path))),
        other => EngineError::failed(format!("cannot look at {}", lossy(path))).because(other),
    })
}

fn row(view: &View, name: &[u8], entry: &EntryOut) -> Result<Row> {
    let attr = &entry.attr;
    let target = match attr.kind {
        Kind::Symlink => Some(lossy(&view.fs.read_link(entry.id).or_fail(|| format!("cannot read {}", lossy(name)))?)),
        _ => None,
    };
    let seconds = std::time::Duration::from_secs(u64::try_from(attr.mtime.secs).unwrap_or(0));
    let modified =
        timestamp::format(std::time::UNIX_EPOCH + seconds + std::time::Duration::from_nanos(attr.mtime.nanos.into()));
    let shown = name.escape_ascii().to_string();
    let shown = std::str::from_utf8(name).map_or(shown, str::to_owned);
    let arrow = target.as_ref().map(|t| format!(" -> {t}")).unwrap_or_default();
    let size = if attr.kind.is_device() {
        let (major, minor) = crate::model::attr::split_rdev(attr.rdev);
        format!("{major},{minor}")
    } else {
        attr.size.to_string()
    };
    Ok(Row {
        name: name.to_vec(),
        cells: vec![
            mode_text(attr.kind, attr.perm),
            attr.uid.to_string(),
            attr.gid.to_string(),
            size,
            modified.get(..19).unwrap_or_default().replace('T', " "),
            shown + &arrow,
        ],
        json: json!({
            "Name": lossy(name),
            "Type": kind_word(attr.kind),
            "Mode": format!("{:04o}", attr.perm),
            "Uid": attr.uid,
            "Gid": attr.gid,
            "Size": attr.size,
            "Links": attr.nlink,
            "ModTime": modified,
            "Target": target,
        }),
    })
}

/// A mode as `ls -l` shows it.
fn mode_text(kind: Kind, perm: u32) -> String {
    let first = match kind {
        Kind::File => '-',
        Kind::Dir => 'd',
        Kind::Symlink => 'l',
        Kind::Fifo => 'p',
        Kind::Char => 'c',
        Kind::Block => 'b',
        Kind::Socket => 's',
    };
    let mut text = String::from(first);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = perm >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (perm & special != 0, bits & 1 != 0) {
            (false, false) => '-',
            (false, true) => 'x',
            (true, false) => letter.to_ascii_uppercase(),
            (true, true) => letter,
        });
    }
    text
}

/// `mlfs cat`
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  mlfs cat debian:12 /etc/debian_version")]
pub struct CatArgs {
    /// An image, a container, or a mountpoint
    target: String,
    /// A path in it
    path: OsString,
    /// Only this layer: its number (1 is the bottom) or digest
    #[arg(long, value_name = "N|DIGEST")]
    layer: Option<String>,
}

/// Runs `mlfs cat`.
pub fn cat(context: &Context, args: &CatArgs) -> Result<()> {
    let path = absolute(&args.path);
    let view = open(context, &args.target, args.layer.as_deref())?;
    let entry = resolve(&view, &args.target, &path, Follow::Yes)?;
    let what = || format!("cannot read {}", lossy(&path));
    let opened = view.fs.open(entry.id, OpenFlags::default()).or_fail(what)?;
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    loop {
        let length = view.fs.read(opened.handle, offset, &mut buffer).or_fail(what)?;
        if length == 0 {
            return Ok(());
        }
        output::print_bytes(buffer.get(..length).unwrap_or_default())?;
        offset += length as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_shown_as_ls_does() {
        for (kind, perm, text) in [
            (Kind::File, 0o644, "-rw-r--r--"),
            (Kind::Dir, 0o1777, "drwxrwxrwt"),
            (Kind::File, 0o4755, "-rwsr-xr-x"),
            (Kind::File, 0o2644, "-rw-r-Sr--"),
        ] {
            assert_eq!(mode_text(kind, perm), text);
        }
    }

    #[test]
    fn paths_are_below_their_directories_only() {
        assert!(is_below(b"/tmp/x", b"/tmp") && is_below(b"/tmp", b"/tmp"));
        assert!(!is_below(b"/tmpx", b"/tmp"));
        assert_eq!(absolute(&"etc/x".into()), b"/etc/x");
    }
}
