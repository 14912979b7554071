// SPDX-License-Identifier: GPL-2.0-or-later

//! `blksnap man` and `blksnap completions`: manual pages, and completions for shells, of the same
//! definitions as the command line itself.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use clap::{Arg, ArgAction, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};

use crate::args::Args;
use crate::output;

/// The date of the pages: fixed, so that the same source makes the same pages.
const DATE: &str = "2026-11-24";

/// Prints the completions for a shell.
pub fn completions(shell: Shell) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "blksnap", &mut text);
    output::print(String::from_utf8(text).context("the completions are no text")?)
}

/// Writes a page for `blksnap`, and one for each of its commands.
pub fn manual(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let mut all = Args::command().disable_help_subcommand(true);
    // What has no subcommands of its own needs no arguments of the whole.
    all.build();
    let names: Vec<String> = all
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .map(page_name)
        .collect();
    write_page(directory, &all, &names)?;
    for command in all
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
    {
        let title = page_name(command);
        let command = command.clone().display_name(title);
        write_page(directory, &command, &["blksnap".to_owned()])?;
    }
    Ok(())
}

/// The name of the page of a subcommand.
fn page_name(command: &Command) -> String {
    format!("blksnap-{}", command.get_name())
}

/// Writes one page, which points to others.
fn write_page(directory: &Path, command: &Command, others: &[String]) -> Result<()> {
    let man = Man::new(command.clone())
        .section("8")
        .date(DATE)
        .source(concat!("blksnap ", env!("CARGO_PKG_VERSION")))
        .manual("System Administration");
    let path = directory.join(man.get_filename());
    let mut text = Vec::new();
    page(&man, command, others, &mut text)
        .and_then(|()| fs::write(&path, one_break(&text)))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Leaves out what clap_mangen breaks a line with more than once, before the possible values of an
/// option.
fn one_break(page: &[u8]) -> String {
    String::from_utf8_lossy(page).replace("\n.br\n\n.br\n", "\n.br\n")
}

/// A page.
fn page(man: &Man, command: &Command, others: &[String], out: &mut Vec<u8>) -> std::io::Result<()> {
    man.render_title(out)?;
    man.render_name_section(out)?;
    synopsis(command, out)?;
    man.render_description_section(out)?;
    man.render_options_section(out)?;
    if command.has_subcommands() {
        man.render_subcommands_section(out)?;
    }
    notes(command, out)?;
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    let mut parts = Vec::new();
    for name in others {
        if !parts.is_empty() {
            parts.push(roman(", "));
        }
        parts.extend([bold(name), roman("(8)")]);
    }
    roff.text(parts);
    roff.to_writer(out)
}

/// How the command is called. Not clap_mangen's own section, which leaves out the options' values.
fn synopsis(command: &Command, out: &mut dyn Write) -> std::io::Result<()> {
    let name = command.get_bin_name().unwrap_or(command.get_name());
    let mut parts = vec![bold(name)];
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
    let (positional, options): (Vec<&Arg>, Vec<&Arg>) = shown.partition(|arg| arg.is_positional());
    for arg in options.into_iter().chain(positional) {
        let optional = !arg.is_required_set();
        parts.push(roman(if optional { " [" } else { " " }));
        if arg.is_last_set() {
            parts.extend([bold("--"), roman(" ")]);
        }
        let long = arg.get_long().map(|name| format!("--{name}"));
        let name = long.or_else(|| arg.get_short().map(|name| format!("-{name}")));
        let values = if arg.get_action().takes_values() {
            arg.get_value_names().unwrap_or_default()
        } else {
            &[]
        };
        if let Some(name) = &name {
            parts.push(bold(name));
        }
        for (i, value) in values.iter().enumerate() {
            let space = if name.is_some() || i > 0 { " " } else { "" };
            parts.extend([roman(space), italic(value.as_str())]);
        }
        let many = arg
            .get_num_args()
            .is_some_and(|number| number.max_values() > values.len());
        if many || matches!(arg.get_action(), ArgAction::Append) {
            parts.push(roman("..."));
        }
        parts.push(roman(if optional { "]" } else { "" }));
    }
    if command.has_subcommands() {
        parts.extend([roman(" "), italic("COMMAND")]);
    }
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]).text(parts);
    roff.to_writer(out)
}

/// What `--help` says after the options: examples, as they are, and paragraphs.
fn notes(command: &Command, out: &mut dyn Write) -> std::io::Result<()> {
    let Some(text) = command.get_after_help().map(ToString::to_string) else {
        return Ok(());
    };
    let mut roff = Roff::new();
    let mut examples = false;
    let mut heading = "NOTES";
    for line in text.lines() {
        if line == "Example:" || line == "Examples:" {
            roff.control("SH", ["EXAMPLES"]).control("nf", []);
            examples = true;
        } else if let (true, Some(example)) = (examples, line.strip_prefix("  ")) {
            roff.text([roman(example)]);
        } else {
            if std::mem::replace(&mut examples, false) {
                roff.control("fi", []);
            }
            if line.is_empty() {
                continue;
            }
            if !std::mem::take(&mut heading).is_empty() {
                roff.control("SH", ["NOTES"]);
            } else {
                roff.control("PP", []);
            }
            roff.text([roman(line)]);
        }
    }
    if examples {
        roff.control("fi", []);
    }
    roff.to_writer(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_a_page() {
        let directory = tempfile::tempdir().unwrap();
        manual(directory.path()).unwrap();
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        let page = read("blksnap-snapshot.8");
        for text in [
            ".SH EXAMPLES",
            ".SH NOTES",
            ".TH blksnap-snapshot 8 2026-",
            "\\fBblksnap snapshot\\fR [",
            "[\\fB\\-\\-limit\\fR \\fISIZE\\fR] [\\fB\\-\\-reserve\\fR] ",
            " \\fIDEV\\fR... [\\fB\\-\\-\\fR \\fICOMMAND\\fR...]\n",
            "BLKSNAP_IMAGE",
        ] {
            assert!(page.contains(text), "{text}: {page}");
        }
        assert!(read("blksnap.8").contains("blksnap\\-status"));
        read("blksnap-stretch_snapshot.8");
        assert!(!directory.path().join("blksnap-man.8").exists());
    }
}
