// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mlfs umount`, `ps`, `inspect`, `rm`: containers and their state.

use clap::Args;
use serde_json::{Value, json};

use crate::engine::control::{Answer, Request};
use crate::engine::ending::{self, How, RemoveOptions, WithVolumes};
use crate::engine::filter::ContainerFilter;
use crate::engine::state::{self, State};
use crate::engine::{OrFail, Result, lifecycle, mount};
use crate::store::container::{ContainerRecord, LOG, MountSource};
use crate::store::{Access, DamagedRecord, Store, timestamp};

use super::Context;
use super::output::{self, Row};

/// `mlfs umount`
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  mlfs umount try\n  mlfs umount -l /mnt")]
pub struct UmountArgs {
    /// Detach now; open files are served until they are closed
    #[arg(short, long)]
    lazy: bool,
    /// Containers or mountpoints
    #[arg(required = true, value_name = "NAME|MOUNTPOINT")]
    names: Vec<String>,
}

/// Runs `mlfs umount`.
pub fn umount(context: &Context, args: &UmountArgs) -> Result<()> {
    let how = if args.lazy { How::Lazy } else { How::WhenIdle };
    super::for_each(&args.names, |name| {
        // A store that is not there has no containers, but there may be a mount of `mlfs overlay`.
        let store = context.store(Access::Write).or_else(|e| context.store(Access::Read).map_err(|_| e))?;
        ending::unmount(&store, name, how)
    })
}

/// `mlfs ps`
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  mlfs ps\n  mlfs ps -a --filter label=team=a --format json")]
pub struct PsArgs {
    /// Those that are not mounted too
    #[arg(short, long)]
    all: bool,
    /// Only those with label=KEY[=VALUE], label!=KEY[=VALUE], name=TEXT, status=created|mounted|stopped|dead
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
}

/// Runs `mlfs ps`.
pub fn ps(context: &Context, args: &PsArgs) -> Result<()> {
    let filter = ContainerFilter::parse(&args.filter)?;
    let store = context.store(Access::Read)?;
    let mut rows = Vec::new();
    let is_all = args.all || filter.has_states();
    let listing = store.list_containers().or_fail(|| "cannot list the containers")?;
    for damaged in &listing.damaged {
        let is_live = store.is_container_live(&damaged.id).or_fail(|| format!("cannot look at {}", damaged.id))?;
        // Nobody knows what it is called or labelled.
        if filter.is_empty() && (is_all || is_live) {
            rows.push(damaged_row(damaged));
        }
    }
    for record in listing.whole {
        if record.incomplete {
            continue;
        }
        let state = state::state(&store, &record)?;
        if !is_all && state != State::Mounted || !filter.is_met(&record.name, &record.labels, state) {
            continue;
        }
        let mountpoint = shown_mountpoint(&record, state);
        rows.push(Row {
            name: record.name.clone().into_bytes(),
            cells: vec![
                record.name.clone(),
                origin(&record),
                state.word().to_owned(),
                mountpoint.to_owned(),
                output::age(timestamp::seconds(&record.created)),
            ],
            json: json!({
                "Id": record.id,
                "Name": record.name,
                "Image": record.image_name.as_deref().unwrap_or(""),
                "State": state.word(),
                "Mountpoint": mountpoint,
                "Created": record.created,
                "Labels": record.labels,
            }),
        });
    }
    output::print_rows(context.format, context.is_quiet, &["NAME", "IMAGE", "STATE", "MOUNTPOINT", "CREATED"], rows)
}

/// A container whose record cannot be read: only its id is known.
fn damaged_row(damaged: &DamagedRecord) -> Row {
    let short: String = damaged.id.chars().take(12).collect();
    Row {
        name: damaged.id.clone().into_bytes(),
        cells: vec![short, String::new(), "damaged".to_owned(), String::new(), String::new()],
        json: json!({
            "Id": damaged.id,
            "Name": damaged.id,
            "Image": "",
            "State": "damaged",
            "Mountpoint": "",
            "Created": "",
            "Labels": {},
            "Error": damaged.error.to_string(),
        }),
    }
}

fn shown_mountpoint(record: &ContainerRecord, state: State) -> &str {
    match (&record.mounted, state) {
        (Some(mounted), State::Mounted | State::Dead) => &mounted.mountpoint,
        _ => "",
    }
}

fn origin(record: &ContainerRecord) -> String {
    match &record.image_name {
        Some(name) => name.clone(),
        None => format!("{} layers", record.layers.len()),
    }
}

/// `mlfs inspect`
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  mlfs inspect try")]
pub struct InspectArgs {
    /// Containers
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Runs `mlfs inspect`.
pub fn inspect(context: &Context, args: &InspectArgs) -> Result<()> {
    let store = context.store(Access::Read)?;
    let describe = |name: &String| describe(&store, &state::find(&store, name)?);
    output::print_json(args.names.iter().map(describe).collect::<Result<_>>()?)
}

fn describe(store: &Store, record: &ContainerRecord) -> Result<Value> {
    let state = state::state(store, record)?;
    let (upper, work) = mount::work_of(store, record);
    let mounted = record.mounted.as_ref();
    Ok(json!({
        "Id": record.id,
        "Name": record.name,
        "Created": record.created,
        "State": {
            "Status": state.word(),
            "Running": state == State::Mounted,
            "Dead": state == State::Dead,
            "Pid": mounted.filter(|_| state == State::Mounted).map_or(0, |m| m.pid),
            "StartedAt": mounted.map(|m| m.since.as_str()).unwrap_or(""),
            "FinishedAt": record.finished.as_deref().unwrap_or(""),
        },
        "Image": record.image.map(|d| d.to_string()).unwrap_or_default(),
        "ImageName": record.image_name.as_deref().unwrap_or(""),
        "Layers": record.layers.iter().cloned().map(String::from).collect::<Vec<_>>(),
        "Mountpoint": shown_mountpoint(record, state),
        "Upper": upper,
        "Work": work,
        "Ownership": record.ownership,
        "UidMap": record.uids,
        "GidMap": record.gids,
        "ReadOnly": record.read_only,
        "AutoRemove": record.rm,
        "AllowOther": record.allow_other,
        "Io": io_object(record, state),
        "StopTimeout": record.stop_timeout_ms as f64 / 1000.0,
        "Labels": record.labels,
        "Mounts": record.mounts.iter().map(|m| mount_object(store, m)).collect::<Result<Vec<_>>>()?,
        "LogPath": store.container_dir(&record.id).join(LOG),
        "Host": mounted.map(|m| m.host.as_str()).unwrap_or(""),
        "BootId": mounted.map(|m| m.boot_id.as_str()).unwrap_or(""),
    }))
}

/// Who reads and writes contents: what was asked for, and of a mounted container what was chosen, and why.
fn io_object(record: &ContainerRecord, state: State) -> Value {
    let asked = record.io.word();
    let answer = if state == State::Mounted { ending::ask(record, &Request::Status).ok() } else { None };
    match answer {
        Some(Answer::Status { io, io_why, backing_files, .. }) => {
            json!({"Asked": asked, "Chosen": io, "Why": io_why, "BackingFiles": backing_files})
        }
        _ => json!({"Asked": asked}),
    }
}

fn mount_object(store: &Store, mount: &crate::store::container::MountRecord) -> Result<Value> {
    let mut object = json!({
        "Destination": mount.target,
        "Mode": if mount.read_only { "ro" } else { "" },
        "RW": !mount.read_only,
        "Propagation": "",
    });
    let source = match &mount.source {
        MountSource::Volume { name, is_anonymous, .. } => {
            let volume = store.load_volume(name).or_fail(|| format!("cannot read the volume {name}"))?;
            let source = volume.map(|v| store.volume_data(&v)).unwrap_or_default();
            json!({"Type": "volume", "Name": name, "Driver": "local", "Source": source, "Anonymous": is_anonymous})
        }
        MountSource::Bind { path, .. } => json!({"Type": "bind", "Source": path, "Propagation": "rprivate"}),
        MountSource::Tmpfs { .. } => json!({"Type": "tmpfs", "Source": ""}),
    };
    if let (Some(object), Value::Object(source)) = (object.as_object_mut(), source) {
        object.extend(source);
    }
    Ok(object)
}

/// `mlfs rm`
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  mlfs rm try\n  mlfs rm -f -v try other")]
pub struct RmArgs {
    /// Unmount a mounted one first, whatever is open; do not mind one that does not exist
    #[arg(short, long)]
    force: bool,
    /// Its anonymous volumes too
    #[arg(short = 'v', long)]
    volumes: bool,
    /// Print what would be done
    #[arg(long)]
    dry_run: bool,
    /// Containers
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Runs `mlfs rm`.
pub fn rm(context: &Context, args: &RmArgs) -> Result<()> {
    let store = context.store(if args.dry_run { Access::Read } else { Access::Write })?;
    let volumes = if args.volumes { WithVolumes::Yes } else { WithVolumes::No };
    let options = RemoveOptions { is_forced: args.force, volumes };
    let mut steps = Vec::new();
    let result = super::for_each(&args.names, |name| {
        let is_unknown = store.find_container(name).is_err_and(|e| e.is_not_found());
        if args.force && is_unknown {
            return Ok(());
        }
        if args.dry_run {
            steps.extend(ending::describe_removal(&store, name, options)?);
            return Ok(());
        }
        ending::remove(&store, name, options)?;
        output::print_text(&format!("{name}\n"))
    });
    if args.dry_run {
        output::print_steps(context.format, steps)?;
    }
    result
}

/// `mlfs rename`
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  mlfs rename try app-test")]
pub struct RenameArgs {
    /// The container, mounted or not
    #[arg(value_name = "OLD")]
    old: String,
    /// Its new name
    #[arg(value_name = "NEW")]
    new: String,
}

/// Runs `mlfs rename`.
pub fn rename(context: &Context, args: &RenameArgs) -> Result<()> {
    mount::check_name(&args.new)?;
    lifecycle::rename(&context.store(Access::Write)?, &args.old, &args.new)
}
