//! The documents about the command line: help, man pages, completions, exit codes.

use super::*;

#[test]
fn every_help_has_a_paragraph_and_examples() {
    for name in subcommands() {
        let ended = run(shunt(&[&name, "--help"]));
        ended.expect(Exit::Done);
        assert_eq!(ended.stderr, "");
        let (about, rest) = ended.stdout.split_once("\n\nUsage: shunt ").unwrap();
        assert!(about.contains("\n\n"), "{name} has no paragraph: {about}");
        let examples = rest.split_once("EXAMPLES:\n").expect("no EXAMPLES").1;
        assert!(examples.contains(&format!("shunt {name}")), "{examples}");
    }
}

#[test]
fn the_help_and_every_man_page_have_the_whole_table_of_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    run(shunt(&["man", folder.path().to_str().unwrap()])).expect(Exit::Done);
    let mut texts = vec![run(shunt(&["--help"])).stdout];
    for page in std::fs::read_dir(&folder).unwrap() {
        texts.push(std::fs::read_to_string(page.unwrap().path()).unwrap());
    }
    for text in texts {
        for row in &TABLE {
            let line = format!("{}  {}", row.exit.code(), row.meaning).replace('-', "\\-");
            assert!(
                text.replace('-', "\\-")
                    .replace("\\\\-", "\\-")
                    .contains(&line),
                "{line}"
            );
        }
    }
}

#[test]
fn the_codes_are_those_that_scripts_rely_on() {
    let codes: Vec<(u8, &str)> = TABLE
        .iter()
        .map(|row| (row.exit.code(), row.kind))
        .collect();
    let expected = [
        (0, "done"),
        (1, "failed"),
        (2, "usage"),
        (3, "refused"),
        (4, "not-found"),
        (5, "unreachable"),
        (6, "time-ran-out"),
    ];
    assert_eq!(codes, expected);
}

#[test]
fn man_pages_are_written_for_every_subcommand() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("share/man1");
    run(shunt(&["man", directory.to_str().unwrap()])).expect(Exit::Done);
    let mut names = subcommands();
    let main_page = std::fs::read_to_string(directory.join("shunt.1")).unwrap();
    for name in &names {
        let page = std::fs::read_to_string(directory.join(format!("shunt-{name}.1"))).unwrap();
        for section in [
            "NAME",
            "SYNOPSIS",
            "DESCRIPTION",
            "OPTIONS",
            "EXAMPLES",
            "EXIT STATUS",
        ] {
            let heading = page.contains(&format!(".SH {section}\n"))
                || page.contains(&format!(".SH \"{section}\"\n"));
            assert!(heading, "{name} {section}: {page}");
        }
        assert!(main_page.contains(&format!("shunt\\-{}", name.replace('-', "\\-"))));
    }
    names.push("shunt".into());
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), names.len());
}

#[test]
fn completions_know_every_subcommand() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ended = run(shunt(&["completions", shell]));
        ended.expect(Exit::Done);
        for name in subcommands() {
            assert!(ended.stdout.contains(&name), "{shell}: {name}");
        }
    }
}
