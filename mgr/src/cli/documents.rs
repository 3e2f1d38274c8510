//! Man pages and completions, generated from the definition in [`super::args`].

use std::fs;
use std::io;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::args::Arguments;
use super::exit;

/// The completion script for a shell.
#[must_use]
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    let mut command = Arguments::command();
    clap_complete::generate(shell, &mut command, "shunt", &mut script);
    script
}

/// Writes `shunt.1` and a page for each command into `directory`; returns the number of pages.
///
/// # Errors
/// Errors of the file system.
pub fn write_man_pages(directory: &Path) -> io::Result<usize> {
    fs::create_dir_all(directory)?;
    let mut command = Arguments::command().disable_help_subcommand(true);
    command.build();
    let mut pages = vec![command.clone()];
    pages.extend(command.get_subcommands().cloned());
    for page in &pages {
        let (name, text) = man_page(page)?;
        fs::write(directory.join(name), text)?;
    }
    Ok(pages.len())
}

/// The file name and the text of one page.
fn man_page(command: &Command) -> io::Result<(String, Vec<u8>)> {
    let man = Man::new(command.clone())
        .source(concat!("shunt ", env!("CARGO_PKG_VERSION")))
        .manual("Shunt");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    let after = command
        .get_after_help()
        .map(ToString::to_string)
        .unwrap_or_default();
    text.extend(sections(&after).into_bytes());
    if !after.contains(&exit::help_section()) {
        text.extend(sections(&exit::help_section()).into_bytes());
    }
    Ok((man.get_filename(), text))
}

/// The text below the options of a help, as sections in roff: a line without indentation is a
/// heading.
fn sections(text: &str) -> String {
    let mut roff = String::new();
    let mut open = false;
    for line in text.lines().filter(|line| !line.is_empty()) {
        if line.starts_with(' ') {
            roff.push_str(&format!("{}\n", escaped(line.trim_start())));
            continue;
        }
        if open {
            roff.push_str(".fi\n.RE\n");
        }
        open = true;
        roff.push_str(&format!(
            ".SH \"{}\"\n.RS 4\n.nf\n",
            line.trim_end_matches(':')
        ));
    }
    if open {
        roff.push_str(".fi\n.RE\n");
    }
    roff
}

/// Escapes a line of text so that roff prints it unchanged.
fn escaped(line: &str) -> String {
    let text = line
        .replace('\\', "\\e")
        .replace('-', "\\-")
        .replace('\'', "\\(aq");
    if text.starts_with('.') {
        return format!("\\&{text}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_escaped_for_roff() {
        let expected =
            ".SH \"EXAMPLES\"\n.RS 4\n.nf\nshunt a \\-\\-b \\(aqc\\(aq\n\\&.d\\e\n.fi\n.RE\n";
        assert_eq!(sections("EXAMPLES:\n  shunt a --b 'c'\n  .d\\"), expected);
    }
}
