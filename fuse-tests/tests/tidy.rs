// SPDX-License-Identifier: MIT OR Apache-2.0
//! The house rules that a machine can check: floors, who may name what, headers.

use std::path::{Path, PathBuf};

// `ARCHITECTURE.md` has the table with what each floor is for.
const FLOORS: [(&str, u32); 13] = [
    ("model", 1),
    ("sys", 2),
    ("oci", 2),
    ("layer", 3),
    ("store", 3),
    ("upper", 4),
    ("tree", 5),
    ("fs", 6),
    ("fuse", 7),
    ("engine", 8),
    ("compat", 9),
    ("cli", 10),
    ("main.rs", 11),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
        let path = entry.expect("entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
        if path.is_dir() && !path.is_symlink() {
            let is_generated = ["target", ".git", ".cache", "corpus", "artifacts", "fixtures"].contains(&name);
            if !is_generated {
                files(&path, found);
            }
        } else {
            found.push(path);
        }
    }
}

/// Every file of the repository below a folder, as (path from the root, text); other than UTF-8 is left out.
fn texts(dir: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    files(&root().join(dir), &mut found);
    found.sort();
    let read = |path: PathBuf| {
        let name = path.strip_prefix(root()).ok()?.to_str()?.to_owned();
        Some((name, std::fs::read_to_string(path).ok()?))
    };
    found.into_iter().filter_map(read).collect()
}

/// The lines of code of a Rust file: comments, and the contents of string literals, taken out.
fn code_lines(text: &str) -> Vec<(usize, String)> {
    let lines = text.lines().enumerate().map(|(number, line)| (number + 1, code_of(line)));
    lines.filter(|(_, line)| !line.is_empty()).collect()
}

fn code_of(line: &str) -> String {
    let mut code = String::new();
    let mut chars = line.trim().chars().peekable();
    let mut is_string = false;
    while let Some(char) = chars.next() {
        match (is_string, char) {
            (true, '\\') => {
                chars.next();
            }
            (true, '"') => is_string = false,
            (true, _) => {}
            (false, '"') => is_string = true,
            (false, '/') if chars.peek() == Some(&'/') => break,
            (false, _) => code.push(char),
        }
    }
    code.trim().to_owned()
}

fn has_word(line: &str, word: &str) -> bool {
    let is_part = |char: Option<char>| char.is_some_and(|char| char.is_alphanumeric() || char == '_');
    line.match_indices(word)
        .any(|(at, _)| !is_part(line[..at].chars().next_back()) && !is_part(line[at + word.len()..].chars().next()))
}

fn assert_none(offences: &[String], rule: &str) {
    assert!(offences.is_empty(), "{rule}:\n  {}", offences.join("\n  "));
}

fn floor_of(file: &str) -> Option<(&'static str, u32)> {
    let folder = file.strip_prefix("src/")?.split('/').next()?;
    FLOORS.iter().copied().find(|(name, _)| *name == folder)
}

/// The folders that a line of code names: `crate::x`, and the heads inside `crate::{a, b::c}`.
fn imports(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let lines = code_lines(text);
    let flat: String = lines.iter().map(|(_, line)| format!("{line}\n")).collect();
    for (at, head) in flat.match_indices("crate::") {
        let number = lines[flat[..at].matches('\n').count()].0;
        let rest = &flat[at + head.len()..];
        let is_word = |char: char| char.is_alphanumeric() || char == '_';
        if let Some(list) = rest.strip_prefix('{') {
            let mut depth = 1;
            let mut word = String::new();
            let mut is_head = true;
            for char in list.chars() {
                match char {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => {}
                }
                if depth == 1 && is_word(char) && is_head {
                    word.push(char);
                } else {
                    if !word.is_empty() {
                        found.push((number, std::mem::take(&mut word)));
                    }
                    is_head = depth == 1 && (char == ',' || (is_head && !is_word(char) && char != ':'));
                }
                if depth == 0 {
                    break;
                }
            }
        } else {
            found.push((number, rest.chars().take_while(|char| is_word(*char)).collect()));
        }
    }
    found
}

#[test]
fn imports_go_downward_only() {
    let mut offences = Vec::new();
    for (file, text) in texts("src").iter().filter(|(file, _)| file.ends_with(".rs") && file != "src/lib.rs") {
        let Some((own, floor)) = floor_of(file) else {
            offences.push(format!("{file} stands on no floor: add its folder to the table"));
            continue;
        };
        for (line, folder) in imports(text) {
            match FLOORS.iter().find(|(name, _)| *name == folder) {
                // Beside each other on one floor: the store keeps layers' indexes and hands out their objects, never back.
                Some((name, _)) if (own, *name) == ("store", "layer") => {}
                Some((name, other)) if *other >= floor && *name != own => {
                    offences.push(format!("{file}:{line} (floor {floor}) imports {name} (floor {other})"));
                }
                _ => {}
            }
        }
    }
    assert_none(&offences, "a file imports from its own folder and from lower floors, never upward");
}

#[test]
fn import_reader_reads() {
    let read = |text: &str| imports(text).into_iter().map(|(_, name)| name).collect::<Vec<_>>();
    assert_eq!(read("use crate::fuse::Session;"), ["fuse"]);
    assert_eq!(read("use crate::{model::Name, sys::{self, fd::Dir}, tree};"), ["model", "sys", "tree"]);
    assert_eq!(
        read("use crate::{\n    model::{Attr, Kind},\n    fs,\n};\nlet x = crate::cli::main();"),
        ["model", "fs", "cli"]
    );
    assert_eq!(read("// use crate::fuse::Session;\nlet text = \"crate::cli\";"), [""; 0]);
    assert!(has_word("unsafe { x }", "unsafe") && !has_word("allow(unsafe_code)", "unsafe"));
    assert!(has_word("fuser::Session", "fuser") && !has_word("fuser_x", "fuser"));
}

fn naming(word: &str, is_allowed: impl Fn(&str) -> bool) -> (Vec<String>, Vec<String>) {
    let (mut allowed, mut offences) = (Vec::new(), Vec::new());
    let sources = ["src", "fuse-tests", "benches", "fuzz"].into_iter().filter(|dir| root().join(dir).is_dir());
    for (file, text) in sources.flat_map(texts).filter(|(file, _)| file.ends_with(".rs")) {
        for (line, code) in code_lines(&text) {
            if has_word(&code, word) {
                if is_allowed(&file) {
                    allowed.push(file.clone())
                } else {
                    offences.push(format!("{file}:{line}: {code}"))
                }
            }
        }
    }
    allowed.dedup();
    (allowed, offences)
}

#[test]
fn fuser_is_named_only_in_fuse() {
    // The tests have a filesystem of their own to lie on.
    let is_allowed = |file: &str| file.starts_with("src/fuse/") || file.starts_with("fuse-tests/src/nfs_like/");
    assert_none(&naming("fuser", is_allowed).1, "fuser is named only in src/fuse/");
}

#[test]
fn bincode_is_named_in_one_file() {
    let (files, _) = naming("bincode", |_| true);
    assert!(files.len() <= 1, "bincode is named in one file only: {files:?}");
}

#[test]
fn clap_is_named_only_in_cli() {
    for word in ["clap", "clap_complete", "clap_mangen"] {
        assert_none(&naming(word, |file| file.starts_with("src/cli/")).1, "clap is named only in src/cli/");
    }
}

#[test]
fn unsafe_is_only_in_sys() {
    assert_none(&naming("unsafe", |file| file.starts_with("src/sys/")).1, "unsafe stands only in src/sys/");
    let mut offences = Vec::new();
    for (file, text) in texts("src/sys") {
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let is_block = has_word(&code_of(line), "unsafe") && !code_of(line).starts_with("#!");
            let is_reasoned = lines[at.saturating_sub(6)..=at].iter().any(|near| near.contains("SAFETY"));
            if is_block && !is_reasoned {
                offences.push(format!("{file}:{}", at + 1));
            }
        }
    }
    assert_none(&offences, "every unsafe block has its SAFETY reason");
}

#[test]
fn every_file_names_its_licence() {
    let mut offences = Vec::new();
    let dirs = ["src", "fuse-tests", "scripts", ".ci", "benches", "fuzz"];
    for (file, text) in dirs.into_iter().filter(|dir| root().join(dir).is_dir()).flat_map(texts) {
        let is_source = [".rs", ".toml", ".sh", ".py"].iter().any(|end| file.ends_with(end)) || text.starts_with("#!");
        let head: Vec<&str> = text.lines().take(2).collect();
        if is_source && !head.iter().any(|line| line.contains("SPDX-License-Identifier: MIT OR Apache-2.0")) {
            offences.push(file);
        }
    }
    assert_none(&offences, "the first line (the second after #!) is the SPDX line");
}

#[test]
fn modules_say_what_they_are_for() {
    let mut offences = Vec::new();
    for (file, text) in texts("src").into_iter().chain(texts("fuse-tests")).filter(|(file, _)| file.ends_with(".rs")) {
        if !text.lines().nth(1).is_some_and(|line| line.starts_with("//! ")) {
            offences.push(file);
        }
    }
    assert_none(&offences, "the second line begins the module's header");
}

#[test]
fn results_are_not_thrown_away() {
    let mut offences = Vec::new();
    for (file, text) in texts("src").into_iter().chain(texts("fuse-tests")).filter(|(file, _)| file.ends_with(".rs")) {
        for (line, code) in code_lines(&text) {
            if code.starts_with("let _ =") || code.contains(" let _ =") {
                offences.push(format!("{file}:{line}: {code}"));
            }
        }
    }
    assert_none(&offences, "no `let _ =`: handle the result, or log it");
}

#[test]
fn shell_scripts_stop_at_the_first_error() {
    let mut offences = Vec::new();
    for (file, text) in ["scripts", ".ci"].into_iter().filter(|dir| root().join(dir).is_dir()).flat_map(texts) {
        let is_shell = text.lines().next().is_some_and(|line| line.starts_with("#!") && line.contains("sh"));
        let is_strict = text.lines().take(20).any(|line| line.starts_with("set -eu"));
        if is_shell && !is_strict {
            offences.push(file);
        }
    }
    assert_none(&offences, "a shell script has `set -eu` near its head");
}

#[test]
fn dependencies_are_used() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml");
    let section = manifest.split("\n[dependencies]\n").nth(1).expect("dependencies").split("\n[").next().unwrap_or("");
    let sources: String = texts("src").into_iter().map(|(_, text)| text).collect();
    let unused = section.lines().filter_map(|line| line.split(['=', ' ', '.']).next()).filter(|name| !name.is_empty());
    let unused: Vec<String> =
        unused.map(|name| name.replace('-', "_")).filter(|name| !has_word(&sources, name)).collect();
    assert_none(&unused, "dependencies that no source names");
}
