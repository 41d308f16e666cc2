// SPDX-License-Identifier: MIT OR Apache-2.0
//! `docs/cli.md`, made from the real flags. Its test fails when the file is stale; `MLFS_BLESS=1` rewrites it.

use clap::Command;

const INTRODUCTION: &str = include_str!("reference_head.md");

/// The whole reference as Markdown.
pub fn markdown(program: &Command) -> String {
    let mut program = program.clone().term_width(100);
    program.build();
    let mut text = INTRODUCTION.to_owned();
    section(&mut program, Globals::Shown, &mut text);
    text
}

/// The options of every command are told once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Globals {
    Shown,
    LeftOut,
}

fn section(command: &mut Command, globals: Globals, text: &mut String) {
    let name = command.get_bin_name().unwrap_or(command.get_name()).to_owned();
    let help = command.clone().term_width(100).render_long_help().to_string();
    let mut is_global = false;
    let mut lines: Vec<&str> = Vec::new();
    for line in help.lines().map(str::trim_end) {
        if !line.is_empty() && !line.starts_with(' ') {
            is_global = line == "Global options:" && globals == Globals::LeftOut;
        }
        if !is_global {
            lines.push(line);
        }
    }
    text.push_str(&format!("\n## {name}\n\n```text\n{}\n```\n", lines.join("\n").trim_end()));
    for sub in command.get_subcommands_mut() {
        section(sub, Globals::LeftOut, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_reference_is_fresh() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/cli.md");
        let wanted = markdown(&crate::cli::args::Cli::command());
        if std::env::var_os("MLFS_BLESS").is_some() {
            std::fs::write(path, &wanted).unwrap();
        }
        let found = std::fs::read_to_string(path).unwrap_or_default();
        assert!(found == wanted, "docs/cli.md is stale: run MLFS_BLESS=1 cargo test --lib cli::reference");
    }
}
