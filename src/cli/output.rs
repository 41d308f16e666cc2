// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tables, JSON arrays, names only: how commands answer. Answers go to standard output, everything else to error.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table};
use serde_json::Value;

use crate::engine::{EngineError, OrFail, Result};

/// How to answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table for people.
    #[default]
    Table,
    /// One JSON array.
    Json,
}

/// One line of a listing, in all its forms.
pub struct Row {
    /// What `-q` prints.
    pub name: Vec<u8>,
    /// The cells of the table.
    pub cells: Vec<String>,
    /// The JSON object.
    pub json: Value,
}

/// Prints a listing: names with `-q`, one JSON array (`[]` when empty), or a table with its head.
pub fn print_rows(format: Format, is_quiet: bool, head: &[&str], rows: Vec<Row>) -> Result<()> {
    if format == Format::Json {
        return print_json(rows.into_iter().map(|row| row.json).collect());
    }
    if is_quiet {
        return print_lines(rows.into_iter().map(|row| row.name));
    }
    print_text(&table(head, rows.into_iter().map(|row| row.cells)))
}

/// A table without lines, as Docker's: columns three blanks apart.
pub fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    let lines: Vec<String> = table.to_string().lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n") + "\n"
}

/// Prints one JSON array.
pub fn print_json(objects: Vec<Value>) -> Result<()> {
    let text = serde_json::to_string_pretty(&Value::Array(objects)).or_fail(|| "cannot write JSON")?;
    print_text(&(text + "\n"))
}

/// Prints a text as it is.
pub fn print_text(text: &str) -> Result<()> {
    print_bytes(text.as_bytes())
}

/// Prints lines of bytes: paths need not be UTF-8.
pub fn print_lines(lines: impl Iterator<Item = Vec<u8>>) -> Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    for line in lines {
        told(out.write_all(&line).and_then(|()| out.write_all(b"\n")))?;
    }
    told(out.flush())
}

/// Prints the steps of a plan.
pub fn print_steps(format: Format, steps: Vec<String>) -> Result<()> {
    if format == Format::Json {
        return print_json(steps.into_iter().map(|step| serde_json::json!({"Step": step})).collect());
    }
    print_lines(steps.into_iter().map(String::into_bytes))
}

/// Prints bytes as they are.
pub fn print_bytes(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    told(out.write_all(bytes).and_then(|()| out.flush()))
}

/// A reader that has gone away (`| head`) is no failure of ours.
fn told(result: io::Result<()>) -> Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.or_fail(|| "cannot write the answer"),
    }
}

/// Tells something beside the answer, unless `-q`.
pub fn notice(is_quiet: bool, text: &str) {
    if !is_quiet {
        tell_error(&format!("mlfs: {text}"));
    }
}

/// Writes a line to standard error; where that is closed, nobody wants to know.
pub fn tell_error(line: &str) {
    if let Err(e) = writeln!(io::stderr(), "{line}") {
        log::debug!("standard error is closed: {e}");
    }
}

/// Is standard error a terminal?
pub fn is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Asks a question on the terminal; without one it is wrong usage (exit 2) that `force` avoids.
pub fn confirm(question: &str, force: &str) -> Result<bool> {
    if !io::stdin().is_terminal() {
        return Err(EngineError::usage(format!("without a terminal this needs {force}")));
    }
    tell_error(&format!("{question} [y/N]"));
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).or_fail(|| "cannot read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// A size for people: `1.5 GB` (powers of 1000, as Docker).
pub fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB", "TB"] {
        if value < 999.5 {
            return if unit == "B" || value >= 99.95 {
                format!("{value:.0} {unit}")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1000.0;
    }
    format!("{value:.1} PB")
}

/// How long ago, for people: `5 minutes ago`.
pub fn age(then: Option<u64>) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let Some(seconds) = then.map(|then| now.saturating_sub(then)) else { return String::new() };
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

/// The first twelve digits of an id.
pub fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_no_lines_and_no_blanks_at_the_end() {
        let text = table(&["NAME", "SIZE"], [vec!["a".to_owned(), "1".to_owned()]].into_iter());
        assert_eq!(text, "NAME   SIZE\na      1\n");
        assert_eq!(table(&["NAME"], std::iter::empty()), "NAME\n");
    }

    #[test]
    fn sizes_for_people() {
        for (bytes, text) in [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (99_960, "100 kB"), (1 << 30, "1.1 GB")] {
            assert_eq!(size(bytes), text);
        }
    }
}
