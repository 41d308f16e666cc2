// SPDX-License-Identifier: MIT OR Apache-2.0
//! The configuration files: TOML whose keys are the long flag names of `mlfs mount`, and `[[mount]]` tables.
//!
//! `/etc/mlfs/config.toml`, then `$XDG_CONFIG_HOME/mlfs/config.toml`, then the environment, then `--config`; flags come
//! on top (`cli/`). Later values win, lists add. A relative path in a file is relative to that file's folder. An
//! unknown key is an error that names file, line and key: a misspelt `read-olny` must not become a writable mount.

use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::settings::{self, Settings};
use super::spec::{self, MountSpec, Source};
use super::{EngineError, OrFail, Result};

/// The environment that matters to the configuration, gathered by the caller so that this file stays testable.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `/etc/mlfs/config.toml`, or another one in tests.
    pub system_file: Option<PathBuf>,
    /// `$XDG_CONFIG_HOME`, else `~/.config`.
    pub config_home: Option<PathBuf>,
    /// `$MLFS_ROOT`.
    pub root: Option<PathBuf>,
    /// `$MLFS_LOG`.
    pub log: Option<String>,
    /// `--config`, else `$MLFS_CONFIG`.
    pub config: Option<PathBuf>,
}

/// What one source of the configuration says.
#[derive(Clone, Debug)]
pub struct Said {
    /// Who: a file, or a variable of the environment.
    pub by: String,
    /// What.
    pub settings: Settings,
}

/// Loads everything below the flags: files and environment in their order.
pub fn load(environment: &Environment) -> Result<Settings> {
    let all = load_sources(environment)?;
    Ok(all.into_iter().fold(Settings::default(), |earlier, said| said.settings.over(earlier)))
}

/// Everything below the flags, by who says it, in order.
pub fn load_sources(environment: &Environment) -> Result<Vec<Said>> {
    let mut all = Vec::new();
    let user_file = environment.config_home.as_ref().map(|home| home.join("mlfs/config.toml"));
    for path in [environment.system_file.clone(), user_file].into_iter().flatten() {
        match std::fs::read_to_string(&path) {
            Ok(text) => all.push(Said { by: path.display().to_string(), settings: parse(&text, &path)? }),
            // Not there, or below something that is no directory or is closed to us (another user's home under sudo).
            Err(e) if is_absent(&e) => {}
            Err(e) => return Err(EngineError::failed(format!("cannot read {}", path.display())).because(e)),
        }
    }
    let log_level = environment.log.as_deref().map(settings::parse_log_level).transpose()?;
    let root = Settings { root: environment.root.clone(), ..Settings::default() };
    all.push(Said { by: "MLFS_ROOT".to_owned(), settings: root });
    all.push(Said { by: "MLFS_LOG".to_owned(), settings: Settings { log_level, ..Settings::default() } });
    if let Some(path) = &environment.config {
        let text = std::fs::read_to_string(path).or_fail(|| format!("cannot read {}", path.display()))?;
        all.push(Said { by: path.display().to_string(), settings: parse(&text, path)? });
    }
    Ok(all)
}

fn is_absent(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    matches!(error.kind(), NotFound | NotADirectory | PermissionDenied)
}

/// Understands one file.
pub fn parse(text: &str, path: &Path) -> Result<Settings> {
    let file = File { text, path };
    let document = DeTable::parse(text).map_err(|error| file.error(error.span(), error.message().to_owned()))?;
    let mut settings = Settings::default();
    let mut keys: Vec<_> = document.get_ref().iter().collect();
    // The parser sorts keys; the order of the file decides which error is told first.
    keys.sort_by_key(|(key, _)| key.span().start);
    for (key, value) in keys {
        file.set(&mut settings, key.get_ref(), key.span(), value)?;
    }
    Ok(settings)
}

type Value<'i> = Spanned<DeValue<'i>>;

struct File<'a> {
    text: &'a str,
    path: &'a Path,
}

impl File<'_> {
    fn error(&self, span: Option<Range<usize>>, what: String) -> EngineError {
        let start = span.map_or(0, |s| s.start);
        let line = 1 + self.text.bytes().take(start).filter(|b| *b == b'\n').count();
        EngineError::failed(format!("{}:{line}: {what}", self.path.display()))
    }

    /// The error of a value, at its place in the file.
    fn at<T, E: std::fmt::Display>(&self, value: &Value<'_>, result: std::result::Result<T, E>) -> Result<T> {
        result.map_err(|error| self.error(Some(value.span()), error.to_string()))
    }

    fn set(&self, settings: &mut Settings, key: &str, key_span: Range<usize>, value: &Value<'_>) -> Result<()> {
        match key {
            "root" => settings.root = Some(self.path_of(key, value)?),
            "log-level" => {
                settings.log_level = Some(self.at(value, settings::parse_log_level(self.text_of(key, value)?))?);
            }
            "name" => settings.name = Some(self.text_of(key, value)?.to_owned()),
            "upper" => settings.upper = Some(self.path_of(key, value)?),
            "volume" | "bind" => {
                for (item, text) in self.list_of(key, value)? {
                    settings.mounts.push(self.mount_at(item, spec::parse_volume(text))?);
                }
            }
            "tmpfs" => {
                for (item, text) in self.list_of(key, value)? {
                    settings.mounts.push(self.mount_at(item, spec::parse_tmpfs(text))?);
                }
            }
            "mount" => self.set_mounts(settings, value)?,
            "read-only" => settings.read_only = Some(self.flag_of(key, value)?),
            "rm" => settings.rm = Some(self.flag_of(key, value)?),
            "label" => {
                for (item, text) in self.list_of(key, value)? {
                    let (name, text) = self.at(item, settings::parse_label(text))?;
                    settings.labels.insert(name, text);
                }
            }
            "owner" => settings.owner = Some(self.at(value, settings::parse_owner(self.text_of(key, value)?))?),
            "uidmap" | "gidmap" => {
                for (item, text) in self.list_of(key, value)? {
                    let range = self.at(item, settings::parse_id_range(text))?;
                    let map = if key == "uidmap" { &mut settings.uidmap } else { &mut settings.gidmap };
                    map.push(range);
                }
            }
            "stop-timeout" => {
                settings.stop_timeout = Some(self.at(value, settings::parse_duration(self.text_of(key, value)?))?);
            }
            "allow-other" => settings.allow_other = Some(self.flag_of(key, value)?),
            "io" => settings.io = Some(self.at(value, settings::parse_io(self.text_of(key, value)?))?),
            "option" => {
                for (item, text) in self.list_of(key, value)? {
                    self.at(item, settings::add_options(settings, text))?;
                }
            }
            "foreground" => settings.foreground = Some(self.flag_of(key, value)?),
            "redirect" => {
                return Err(self.error(Some(key_span), "[[redirect]] is not built yet in mlfs".to_owned()));
            }
            _ => return Err(self.error(Some(key_span), format!("unknown key '{key}'"))),
        }
        Ok(())
    }

    /// `mount` holds texts as `--mount` takes them, or tables (`[[mount]]`).
    fn set_mounts(&self, settings: &mut Settings, value: &Value<'_>) -> Result<()> {
        let items: Vec<&Value<'_>> = match value.get_ref() {
            DeValue::Array(items) => items.iter().collect(),
            _ => vec![value],
        };
        for item in items {
            let parsed = match item.get_ref() {
                DeValue::String(text) => spec::parse_mount(text),
                DeValue::Table(table) => {
                    let mut keys: Vec<_> = table.iter().collect();
                    keys.sort_by_key(|(key, _)| key.span().start);
                    let mut fields = Vec::new();
                    for (key, value) in keys {
                        let field = format!("{}={}", key.get_ref(), self.field_of(key.get_ref(), value)?);
                        // Judged alone first, so that the error names the line of this key.
                        if let Err(error @ (spec::SpecError::Key(..) | spec::SpecError::NotBuilt(_))) =
                            spec::from_fields(std::slice::from_ref(&field))
                        {
                            let text = match error {
                                spec::SpecError::Key(key, _) => format!("unknown key '{key}' in [[mount]]"),
                                other => other.to_string(),
                            };
                            return Err(self.error(Some(key.span()), text));
                        }
                        fields.push(field);
                    }
                    spec::from_fields(&fields)
                }
                _ => return Err(self.error(Some(item.span()), "'mount' must be a list of texts or tables".to_owned())),
            };
            settings.mounts.push(self.mount_at(item, parsed)?);
        }
        Ok(())
    }

    /// A value of a `[[mount]]` table, as `--mount` would spell it.
    fn field_of(&self, key: &str, value: &Value<'_>) -> Result<String> {
        match value.get_ref() {
            DeValue::String(text) => Ok(text.clone().into_owned()),
            DeValue::Boolean(flag) => Ok(flag.to_string()),
            // A mode must be a text: TOML's 1777 would be read as decimal here and as octal there.
            DeValue::Integer(number) if key != "tmpfs-mode" && number.radix() == 10 => Ok(number.as_str().to_owned()),
            _ => Err(self.error(Some(value.span()), format!("the value of '{key}' must be a text"))),
        }
    }

    /// A mount whose relative source is taken from the folder of this file.
    fn mount_at(
        &self,
        value: &Value<'_>,
        parsed: std::result::Result<MountSpec, spec::SpecError>,
    ) -> Result<MountSpec> {
        let mut mount = self.at(value, parsed)?;
        if let Source::Bind { path, .. } = &mut mount.source
            && !path.starts_with('/')
        {
            let joined = self.folder().join(&*path);
            *path = self.at(value, joined.into_os_string().into_string().map_err(|_| "the path is not UTF-8"))?;
        }
        Ok(mount)
    }

    fn folder(&self) -> PathBuf {
        let absolute = std::path::absolute(self.path).unwrap_or_else(|_| self.path.to_owned());
        absolute.parent().map(Path::to_owned).unwrap_or_default()
    }

    fn text_of<'v>(&self, key: &str, value: &'v Value<'_>) -> Result<&'v str> {
        match value.get_ref() {
            DeValue::String(text) => Ok(text),
            _ => Err(self.error(Some(value.span()), format!("the value of '{key}' must be a text"))),
        }
    }

    fn path_of(&self, key: &str, value: &Value<'_>) -> Result<PathBuf> {
        match self.text_of(key, value)? {
            "" => Err(self.error(Some(value.span()), format!("the value of '{key}' is empty"))),
            text => Ok(self.folder().join(text)),
        }
    }

    fn flag_of(&self, key: &str, value: &Value<'_>) -> Result<bool> {
        match value.get_ref() {
            DeValue::Boolean(flag) => Ok(*flag),
            _ => Err(self.error(Some(value.span()), format!("the value of '{key}' must be true or false"))),
        }
    }

    /// A text, or a list of texts.
    fn list_of<'v, 'i>(&self, key: &str, value: &'v Value<'i>) -> Result<Vec<(&'v Value<'i>, &'v str)>> {
        match value.get_ref() {
            DeValue::Array(items) => items.iter().map(|item| Ok((item, self.text_of(key, item)?))).collect(),
            _ => Ok(vec![(value, self.text_of(key, value)?)]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn parse_text(text: &str) -> Result<Settings> {
        parse(text, Path::new("/c/config.toml"))
    }

    #[test]
    fn every_key_is_understood() {
        let settings = parse_text(
            r#"
            root = "/s"
            log-level = "debug"
            name = "n"
            upper = "up"
            volume = ["data:/data", "./rel:/rel:ro"]
            bind = "/h:/h"
            tmpfs = "/tmp:size=1m"
            read-only = true
            rm = false
            label = ["a=b"]
            owner = "me"
            stop-timeout = "3s"
            allow-other = true
            io = "cached"
            option = "suid,dev"
            foreground = true
            [[mount]]
            type = "bind"
            source = "./x"
            target = "/x"
            readonly = true
            [[mount]]
            type = "tmpfs"
            target = "/y"
            tmpfs-size = 4096
            tmpfs-mode = "1770"
            "#,
        )
        .unwrap();
        assert_eq!(settings.root.as_deref(), Some(Path::new("/s")));
        assert_eq!(settings.upper.as_deref(), Some(Path::new("/c/up")));
        assert_eq!(settings.mounts.len(), 6);
        assert_eq!(settings.stop_timeout, Some(Duration::from_secs(3)));
        assert_eq!(settings.io, Some(crate::model::IoMode::Cached));
        let sources: Vec<String> = settings
            .mounts
            .iter()
            .filter_map(|m| match &m.source {
                Source::Bind { path, .. } => Some(path.clone()),
                _ => None,
            })
            .collect();
        assert_eq!(sources, ["/c/./rel", "/h", "/c/./x"]);
        assert!(settings.mounts.iter().any(|m| m.target == "/x" && m.read_only));
        assert_eq!((settings.suid, settings.dev), (Some(true), Some(true)));
        let texts = parse_text("mount = [\"type=bind,src=/a,dst=/b\"]").unwrap();
        assert_eq!(texts.mounts.len(), 1);
    }

    #[test]
    fn errors_name_file_line_and_key() {
        let rows = [
            ("\nread-olny = true", "/c/config.toml:2: unknown key 'read-olny'"),
            ("name = 3", "/c/config.toml:1: the value of 'name' must be a text"),
            ("rm = \"yes\"", "/c/config.toml:1: the value of 'rm' must be true or false"),
            ("volume = [\n\"a:/a\",\n\"b:b\"]", "/c/config.toml:3: invalid mount path 'b'"),
            ("[[mount]]\ntype = \"bind\"\nfoo = 1", "/c/config.toml:3: unknown key 'foo' in [[mount]]"),
            ("[[mount]]\ntarget = \"/x\"\nvolume-subpath = \"y\"", "config.toml:3: the --mount key 'volume-subpath'"),
            ("[[mount]]\ntype = \"tmpfs\"\ntarget = \"/x\"\ntmpfs-mode = 1777", "config.toml:4: the value of"),
            ("[[mount]]\ntype = \"bind\"", "/c/config.toml:1: target is required"),
            ("[[redirect]]\npattern = \"x\"", "/c/config.toml:1: [[redirect]] is not built yet"),
            ("owner = \"you\"", "/c/config.toml:1: invalid owner 'you'"),
            ("name = ", "/c/config.toml:1: "),
            ("a = 1\na = 2", "/c/config.toml:2: "),
        ];
        for (text, part) in rows {
            let error = parse_text(text).expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn files_come_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        std::fs::create_dir_all(home.join("mlfs")).unwrap();
        std::fs::write(dir.path().join("system.toml"), "name = \"system\"\nrm = true\nvolume = \"a:/a\"").unwrap();
        std::fs::write(home.join("mlfs/config.toml"), "name = \"user\"\nroot = \"/user\"\nvolume = \"b:/b\"").unwrap();
        std::fs::write(dir.path().join("own.toml"), "volume = \"c:/c\"").unwrap();
        let mut environment = Environment {
            system_file: Some(dir.path().join("system.toml")),
            config_home: Some(home),
            root: Some("/env".into()),
            log: Some("debug".into()),
            config: Some(dir.path().join("own.toml")),
        };
        let settings = load(&environment).unwrap();
        assert_eq!(settings.name.as_deref(), Some("user"));
        assert_eq!(settings.root.as_deref(), Some(Path::new("/env")));
        assert_eq!((settings.rm, settings.mounts.len()), (Some(true), 3));
        environment.config = Some(dir.path().join("missing.toml"));
        assert!(load(&environment).is_err());
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "([a-z\\-\\[\\]]{0,8}|[=\"\n{},\\[\\].é ]|mount|volume|[0-9]){0,30}") {
            if let Err(error) = parse_text(&text) {
                prop_assert!(error.to_string().starts_with("/c/config.toml:"));
            }
        }
    }
}
