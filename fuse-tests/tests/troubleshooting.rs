// SPDX-License-Identifier: MIT OR Apache-2.0
//! `docs/troubleshooting.md` is complete: every sentence that the sources can say as an error stands there, as it is
//! written, with `…` for what is filled in.

use std::path::Path;

const PAGE: &str = include_str!("../../docs/troubleshooting.md");
/// Where a sentence begins: the typed errors, and the two constructors of the engine's.
const STARTS: [&str; 3] = ["#[error(", "failed(", "usage("];

fn sources(dir: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).expect("the sources") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "tests" {
                sources(&path, found);
            }
        } else if name.ends_with(".rs") && !["tests.rs", "spec_tests.rs", "fuzz.rs"].contains(&name.as_str()) {
            let text = std::fs::read_to_string(&path).expect("a source");
            found.push(text.split("#[cfg(test)]").next().unwrap_or_default().to_owned());
        }
    }
}

/// The literal that begins here, without its quotes and escapes.
fn literal(text: &str) -> Option<String> {
    let text = text.trim_start();
    let text = text.strip_prefix("format!(").map_or(text, str::trim_start);
    let mut rest = text.strip_prefix('"')?.chars().peekable();
    let mut said = String::new();
    loop {
        match rest.next()? {
            '"' => return Some(said),
            '\\' => match rest.next()? {
                '\n' => while rest.next_if(|c| c.is_whitespace()).is_some() {},
                escaped => said.push(escaped),
            },
            plain => said.push(plain),
        }
    }
}

/// What is filled in becomes `…`.
fn template(said: &str) -> String {
    let mut shown = String::new();
    let mut depth = 0;
    for c in said.chars() {
        match c {
            '{' => {
                depth += 1;
                shown.push('…');
            }
            '}' => depth -= 1,
            _ if depth > 0 => {}
            c => shown.push(c),
        }
    }
    shown
}

fn sentences(text: &str) -> Vec<String> {
    let starts = STARTS.iter().flat_map(|start| text.match_indices(start));
    let is_word = |at: usize| text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
    let literals = starts.filter(|(at, _)| !is_word(*at)).filter_map(|(at, start)| literal(&text[at + start.len()..]));
    literals.map(|said| template(&said)).collect()
}

#[test]
fn every_sentence_is_explained() {
    let mut texts = Vec::new();
    sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../src")), &mut texts);
    let mut all: Vec<String> = texts.iter().flat_map(|text| sentences(text)).collect();
    all.sort();
    all.dedup();
    // A template of blanks alone says nothing by itself.
    all.retain(|said| said.chars().filter(|c| c.is_ascii_alphabetic()).count() >= 3);
    assert!(all.len() > 200, "only {} sentences were found", all.len());
    let missing: Vec<&String> = all.iter().filter(|said| !PAGE.contains(&said.replace('|', "\\|"))).collect();
    assert!(missing.is_empty(), "docs/troubleshooting.md does not explain:\n{missing:#?}");
}

#[test]
fn sentences_are_found_in_all_their_forms() {
    let text = "#[error(\"a {x} b\")] EngineError::failed(format!(\n  \"c \\\"{}\\\" \\\n   d\", 1)); unfailed(\"no\"); usage(what)";
    assert_eq!(sentences(text), ["a … b", "c \"…\" d"]);
}
