//! Runs a tool and records its exit status and output. Also checks the contract of every tool.

use std::{ffi::OsStr, process::Command};

/// How a tool ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The exit status; `None` if a signal killed it.
    pub status: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs a tool, which must not panic, whatever its arguments are.
pub(crate) fn run<A: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = A>) -> Ended {
    let output = Command::new(program).args(arguments).output().unwrap();
    let ended = Ended {
        status: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    };
    assert!(ended.status.is_some_and(|status| status < 100), "{ended:?}");
    assert!(!ended.stderr.contains("panicked"), "{ended:?}");
    ended
}

/// Checks the answers of a tool to `--help`, `--version` and to senseless command lines.
pub(crate) fn check_contract(program: &str, senseless: &[&[&str]]) {
    let help = run(program, ["--help"]);
    assert_eq!(help.status, Some(0));
    assert!(
        help.stdout.contains("EXAMPLES:") && help.stdout.contains("EXIT STATUS:"),
        "{}",
        help.stdout
    );
    assert!(help.stderr.is_empty());
    let version = run(program, ["--version"]);
    assert_eq!(
        (
            version.status,
            version.stdout.contains(env!("CARGO_PKG_VERSION"))
        ),
        (Some(0), true)
    );
    for arguments in senseless {
        let ended = run(program, *arguments);
        assert_eq!(ended.status, Some(2), "{arguments:?}: {ended:?}");
        assert!(
            ended.stdout.is_empty() && !ended.stderr.is_empty(),
            "{arguments:?}: {ended:?}"
        );
    }
}

/// Parses JSON objects, one a line.
pub(crate) fn json_lines(text: &str) -> Vec<serde_json::Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}
