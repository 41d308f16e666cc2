// SPDX-License-Identifier: MIT OR Apache-2.0
//! Manual pages, made from the real flags: one for the program, one for every command.

use std::path::Path;

use clap::Command;
use clap_mangen::Man;
use roff::{Roff, roman};

use crate::engine::{EngineError, OrFail, Result};

/// What the page of the program says beyond its flags: (section, (term, explanation)).
const MORE: [(&str, &[(&str, &str)]); 3] = [
    (
        "ENVIRONMENT",
        &[
            ("MLFS_ROOT", "the store"),
            ("MLFS_CONFIG", "a configuration file, read after the others"),
            ("MLFS_LOG", "the least important messages to log"),
            ("MLFS_IMAGE_STORES", "stores whose images may be used too, separated by colons; they are never written"),
            (
                "XDG_DATA_HOME, XDG_CONFIG_HOME, XDG_RUNTIME_DIR",
                "the places of the store, the configuration and control sockets",
            ),
            ("NO_COLOR", "no colours"),
        ],
    ),
    (
        "FILES",
        &[
            ("/var/lib/mlfs", "the store of root"),
            ("~/.local/share/mlfs", "the store of everybody else"),
            ("/etc/mlfs/config.toml, ~/.config/mlfs/config.toml", "configuration, read in this order"),
            ("/etc/fuse.conf", "`user_allow_other` in it lets ordinary users say --allow-other"),
        ],
    ),
    (
        "EXIT STATUS",
        &[
            ("0", "done"),
            ("1", "it failed; one sentence on standard error says what, why and what to do"),
            ("2", "wrong usage"),
            ("3", "a check that was asked for found something"),
            (
                "125, 126, 127",
                "of `mlfs mount ... -- CMD`: mlfs failed, CMD is not executable, there is no CMD; else CMD's own",
            ),
        ],
    ),
];

/// A page and the name of its file.
pub struct Page {
    /// `mlfs-volume-create.1`
    pub file: String,
    /// troff
    pub text: Vec<u8>,
}

/// Every page: the program's first, then each command's before those of its own commands.
pub fn pages(program: &Command) -> Result<Vec<Page>> {
    let mut program = program.clone();
    program.build();
    let mut all = Vec::new();
    add(&program, None, &mut all)?;
    Ok(all)
}

/// The page of a command, given by its words: none of them is the program itself.
pub fn page(program: &Command, words: &[String]) -> Result<Page> {
    let mut program = program.clone();
    program.build();
    let mut command = &program;
    let mut above = None;
    for word in words {
        let Some(found) = command.find_subcommand(word) else {
            let said = words.join(" ");
            return Err(EngineError::usage(format!("there is no command `mlfs {said}`")).advise("see `mlfs --help`"));
        };
        above = Some(command);
        command = found;
    }
    render(command, above)
}

/// Writes every page into a directory that exists.
pub fn write(program: &Command, dir: &Path) -> Result<()> {
    for page in pages(program)? {
        let path = dir.join(&page.file);
        std::fs::write(&path, &page.text).or_fail(|| format!("cannot write the manual page {}", path.display()))?;
    }
    Ok(())
}

fn add(command: &Command, above: Option<&Command>, all: &mut Vec<Page>) -> Result<()> {
    all.push(render(command, above)?);
    command.get_subcommands().try_for_each(|sub| add(sub, Some(command), all))
}

fn name_of(command: &Command) -> &str {
    command.get_display_name().unwrap_or(command.get_name())
}

fn render(command: &Command, above: Option<&Command>) -> Result<Page> {
    let mut shown = command.clone();
    if above.is_some() {
        // The options of every command are told by the program's page.
        shown = shown.mut_args(|arg| {
            let is_global = arg.get_help_heading() == Some("Global options");
            arg.hide(is_global)
        });
    }
    let man = Man::new(shown.after_help("").after_long_help(""))
        .title(name_of(command).to_uppercase())
        .source(concat!("mlfs ", env!("CARGO_PKG_VERSION")))
        .manual("User Commands");
    let mut text = Vec::new();
    let cannot = || "cannot make a manual page";
    man.render_title(&mut text).or_fail(cannot)?;
    man.render_name_section(&mut text).or_fail(cannot)?;
    man.render_synopsis_section(&mut text).or_fail(cannot)?;
    man.render_description_section(&mut text).or_fail(cannot)?;
    man.render_options_section(&mut text).or_fail(cannot)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text).or_fail(cannot)?;
    }
    let mut rest = Roff::new();
    examples(command, &mut rest);
    if above.is_none() {
        more(&mut rest);
    }
    see_also(command, above, &mut rest);
    rest.to_writer(&mut text).or_fail(cannot)?;
    Ok(Page { file: man.get_filename(), text })
}

/// What stands after the help, line by line as it is.
fn examples(command: &Command, page: &mut Roff) {
    let Some(after) = command.get_after_long_help().or_else(|| command.get_after_help()) else { return };
    let text = after.to_string();
    let (heading, lines) = match text.split_once('\n') {
        Some((first, rest)) if first.starts_with("Example") => ("EXAMPLES", rest.to_owned()),
        _ => ("NOTES", text),
    };
    page.control("SH", [heading]).control("nf", []);
    for line in lines.lines() {
        page.text([roman(line)]);
    }
    page.control("fi", []);
}

fn more(page: &mut Roff) {
    for (section, terms) in MORE {
        page.control("SH", [section]);
        for (term, explanation) in terms {
            page.control("TP", []).text([roman(*term)]).text([roman(*explanation)]);
        }
    }
}

fn see_also(command: &Command, above: Option<&Command>, page: &mut Roff) {
    let mut names: Vec<&str> = above.map(name_of).into_iter().collect();
    names.extend(command.get_subcommands().map(name_of));
    if names.first() != Some(&"mlfs") && above.is_some() {
        names.insert(0, "mlfs");
    }
    let list: Vec<String> = names.iter().map(|name| format!("{name}(1)")).collect();
    page.control("SH", ["SEE ALSO"]).text([roman(list.join(", "))]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn count(command: &Command) -> usize {
        1 + command.get_subcommands().map(count).sum::<usize>()
    }

    #[test]
    fn every_command_has_its_page_with_its_options_and_examples() {
        let program = crate::cli::args::Cli::command();
        let all = pages(&program).unwrap();
        assert_eq!(all.len(), count(&program));
        assert_eq!(all[0].file, "mlfs.1");
        let text = |file: &str| {
            let page = all.iter().find(|page| page.file == file).unwrap_or_else(|| panic!("{file} is missing"));
            String::from_utf8(page.text.clone()).unwrap().replace('\\', "")
        };
        let mount = text("mlfs-mount.1");
        for part in ["--stop-timeout", "--layer", ".SH EXAMPLES", "mlfs(1)"] {
            assert!(mount.contains(part), "{part} is not in {mount}");
        }
        assert!(!mount.contains("--log-level"), "global options are told once");
        let top = text("mlfs.1");
        for part in ["--log-level", "mlfs-volume(1)", "MLFS_ROOT", "EXIT STATUS"] {
            assert!(top.contains(part), "{part} is not in {top}");
        }
        assert!(text("mlfs-volume-create.1").contains("mlfs-volume(1)"));
    }

    #[test]
    fn a_page_is_found_by_the_words_of_its_command() {
        let program = crate::cli::args::Cli::command();
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(page(&program, &[]).unwrap().file, "mlfs.1");
        assert_eq!(page(&program, &words("volume create")).unwrap().file, "mlfs-volume-create.1");
        let error = page(&program, &words("volume fly")).err().unwrap().sentence();
        assert_eq!(error, "there is no command `mlfs volume fly`; see `mlfs --help`");
    }
}
