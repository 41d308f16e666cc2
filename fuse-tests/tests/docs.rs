// SPDX-License-Identifier: MIT OR Apache-2.0
//! Documents that cannot lie: the commands of README.md and docs/semantics.md are executed, `#>` lines compared.

use std::process::Command;

use fuse_tests::LayerSpec;
use fuse_tests::cli::{bare, mlfs_binary, run};
use fuse_tests::image::write_docker;
use fuse_tests::tar::layer_tar;
use fuse_tests::world::{World, world};

/// A command of a document with the lines that it must print, when the document says so.
struct Example {
    line: usize,
    command: String,
    prints: Vec<String>,
}

fn examples(text: &str) -> Vec<Example> {
    let mut found: Vec<Example> = Vec::new();
    let mut is_inside = false;
    for (number, line) in text.lines().enumerate() {
        match line {
            "```sh" => is_inside = true,
            "```" => is_inside = false,
            _ if !is_inside || line.is_empty() => {}
            _ => match line.strip_prefix("#> ") {
                Some(printed) => found.last_mut().expect("a command before #>").prints.push(printed.to_owned()),
                None => found.push(Example { line: number + 1, command: line.to_owned(), prints: Vec::new() }),
            },
        }
    }
    found
}

fn app(w: &World) {
    let mut one = LayerSpec::new();
    one.file("etc/motd", "from layer 1\n");
    one.file("etc/conf", "conf\n");
    one.file("data/seed", "seed\n");
    let mut two = LayerSpec::new();
    two.file("etc/motd", "from layer 2\n");
    for item in one.items.iter_mut().chain(&mut two.items) {
        item.owner(0, 0);
    }
    write_docker(&w.sandbox.path("app.tar"), &[layer_tar(&one), layer_tar(&two)], "app:latest");
}

fn execute(document: &str, text: &str) {
    world(|w| {
        app(w);
        let all = examples(text);
        assert!(all.len() >= 6, "{document}: only {} examples were found", all.len());
        let bin = w.sandbox.dir("bin");
        // Every command names the sandbox's store, so that its processes are seen as this test's.
        let wrapper = format!(
            "#!/bin/sh\nset -eu\nexec '{}' --root '{}' \"$@\"\n",
            mlfs_binary().display(),
            w.sandbox.path("store").display()
        );
        let program = w.sandbox.file("bin/mlfs", wrapper);
        let mut command = Command::new("chmod");
        run(&w.sandbox, command.arg("755").arg(&program)).ok();
        let search = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
        for Example { line, command, prints } in all {
            // A busy unmount is another test's fork: try again for a while.
            let attempt = || {
                let mut shell = Command::new("sh");
                shell.args(["-euc", &command]).env_clear().current_dir(w.sandbox.root()).env("PATH", &search);
                let settings = bare(&w.sandbox);
                let settings: Vec<_> = settings.get_envs().filter(|(key, _)| *key != "PATH").collect();
                shell.envs(settings.iter().filter_map(|(key, value)| Some((key, (*value)?))));
                match run(&w.sandbox, &mut shell) {
                    outcome if outcome.is_busy() => Err(outcome.stderr),
                    outcome => Ok(outcome),
                }
            };
            let outcome = fuse_tests::driver::patiently(attempt).unwrap_or_else(|error| panic!("{command}: {error}"));
            assert_eq!(outcome.code, 0, "{document}:{line}: {command}\n{}{}", outcome.stdout, outcome.stderr);
            if !prints.is_empty() {
                let printed: Vec<&str> = outcome.stdout.lines().collect();
                assert_eq!(printed, prints, "{document}:{line}: {command}");
            }
        }
        assert_eq!(w.sandbox.mounts(), Vec::<std::path::PathBuf>::new(), "{document} leaves a mount");
    });
}

#[test]
fn the_readmes_tour() {
    execute("README.md", include_str!("../../README.md"));
}

#[test]
fn the_semantics() {
    execute("docs/semantics.md", include_str!("../../docs/semantics.md"));
}

#[test]
fn hpc() {
    execute("docs/hpc.md", include_str!("../../docs/hpc.md"));
}

#[test]
fn ci() {
    execute("docs/ci.md", include_str!("../../docs/ci.md"));
}

// Every promise of the page names its tests, and each of them exists.
#[test]
fn promises_name_their_tests() {
    let text = include_str!("../../docs/semantics.md");
    let mut wrong = Vec::new();
    for section in text.split("\n## ").skip(1) {
        let title = section.lines().next().unwrap_or_default();
        let prose = section.split("```").step_by(2).collect::<Vec<_>>().join("\n");
        for promise in prose.split("\n- ").skip(1).filter(|_| title != "Not promised") {
            let names: Vec<&str> = promise
                .split('[')
                .skip(1)
                .filter_map(|rest| rest.split(']').next())
                .flat_map(|list| list.split(','))
                .map(str::trim)
                .filter(|name| name.contains("::"))
                .collect();
            let first = promise.lines().next().unwrap_or_default();
            if names.is_empty() {
                wrong.push(format!("{title}: no test is named: {first}"));
            }
            wrong.extend(names.into_iter().filter(|name| !exists(name)).map(|name| format!("{title}: no test {name}")));
        }
    }
    assert!(wrong.is_empty(), "docs/semantics.md:\n{}", wrong.join("\n"));
}

fn exists(name: &str) -> bool {
    let tests = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let Some((file, test)) = name.split_once("::") else { return false };
    let defined = format!("fn {test}(");
    let files = [tests.join(format!("{file}.rs")), tests.join("scenarios").join(format!("{file}.rs"))];
    files.iter().filter_map(|path| std::fs::read_to_string(path).ok()).any(|text| text.contains(&defined))
}
