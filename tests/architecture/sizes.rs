//! No file and no function is longer than one can keep in mind.

use super::texts;

/// The most lines of a file. The unit tests at the end of a file do not count.
const FILE_LINES_MAX: usize = 600;

/// The most lines of a function, from its signature to its closing brace. Exempt are tables:
/// functions that are one match or one list of rows, and have "A table: " in the comment above
/// them.
const FUNCTION_LINES_MAX: usize = 100;

/// The files that are still longer, with their lines. The list may only become shorter.
const LONG_FILES: &[(&str, usize)] = &[("mgr/src/daemon/volumes/supervisor.rs", 620)];

/// The functions that are still longer, with their lines. The list may only become shorter.
const LONG_FUNCTIONS: &[(&str, usize)] = &[];

/// The lines of a file without the unit tests at its end. A file of tests counts as it is.
fn production_lines(file: &str, text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let of_tests = file.starts_with("tests/") || file.contains("/tests/");
    let tests = lines
        .windows(2)
        .position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod tests"));
    tests.filter(|_| !of_tests).unwrap_or(lines.len())
}

/// A function of a source.
#[derive(Debug, PartialEq, Eq)]
struct Function<'a> {
    name: &'a str,
    /// The number of the line with its name.
    line: usize,
    lines: usize,
    is_table: bool,
}

/// The functions with a body of several lines. cargo fmt puts the closing brace of a function under
/// the beginning of its signature.
fn functions(text: &str) -> Vec<Function<'_>> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else {
            continue;
        };
        let indent = &line[..line.len() - line.trim_start().len()];
        let is_end = |line: &&str| {
            let rest = line.strip_prefix(indent);
            rest.is_some_and(|rest| rest == "}" || rest.ends_with(';') && !rest.starts_with(' '))
        };
        let has_one_line = line.ends_with([';', '}']);
        let end = lines[index..].iter().position(is_end);
        if let (Some(end), false) = (end, has_one_line) {
            let above = lines[..index].iter().rev().map(|line| line.trim_start());
            let mut above =
                above.take_while(|line| line.starts_with("//") || line.starts_with('#'));
            found.push(Function {
                name,
                line: index + 1,
                lines: end + 1,
                is_table: above.any(|line| line.starts_with("//") && line.contains("A table: ")),
            });
        }
    }
    found
}

/// The name of the function whose signature begins in this line.
fn function_name(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("fn ")?;
    let is_qualifier = |word: &str| {
        matches!(word, "const" | "async" | "unsafe" | "extern" | "\"C\"") || word.starts_with("pub")
    };
    // `pub(in some::module)` has a space.
    let before = before.replace("(in ", "(");
    if !before.split_whitespace().all(is_qualifier) {
        return None;
    }
    let end = after.find(|letter: char| !letter.is_alphanumeric() && letter != '_')?;
    (end > 0).then(|| &after[..end])
}

/// Compares sizes with their limit and with the list of exceptions.
fn check_sizes(found: &[(String, usize, usize)], max: usize, known: &[(&str, usize)]) {
    let mut wrong = Vec::new();
    for (name, line, lines) in found.iter().filter(|(_, _, lines)| *lines > max) {
        let allowed = known.iter().find(|(known, _)| known == name);
        let allowed = allowed.map_or(max, |(_, lines)| *lines);
        if *lines > allowed {
            let (file, what) = name.split_once(": ").unwrap_or((name, "the file"));
            wrong.push(format!(
                "{file}:{line}: {what} has {lines} lines, at most {allowed} are allowed"
            ));
        }
    }
    for (name, _) in known {
        if !found
            .iter()
            .any(|(found, _, lines)| found == name && *lines > max)
        {
            wrong.push(format!(
                "{name} is not too long any more: take it off the list"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_have_one_responsibility_which_600_lines_can_hold() {
    let with_tests = "fn a() {}\n\n#[cfg(test)]\nmod tests {\n}\n";
    assert_eq!(production_lines("a/src/a.rs", with_tests), 2);
    assert_eq!(production_lines("a/tests/a.rs", with_tests), 5);
    let sizes: Vec<_> = texts()
        .into_iter()
        .map(|(file, text)| {
            let lines = production_lines(&file, &text);
            (file, lines, lines)
        })
        .collect();
    check_sizes(&sizes, FILE_LINES_MAX, LONG_FILES);
}

#[test]
fn functions_have_at_most_100_lines_but_for_tables() {
    let source = "// A table: rows.\n#[test]\nfn a() {\n}\nimpl B {\n    pub(in a::b) const fn c(\n    ) {\n    }\n}\n";
    let [table, method] = &functions(source)[..] else {
        panic!("not two functions");
    };
    assert_eq!((table.name, table.lines, table.is_table), ("a", 2, true));
    let expected = Function {
        name: "c",
        line: 6,
        lines: 3,
        is_table: false,
    };
    assert_eq!(*method, expected);
    let mut sizes = Vec::new();
    for (file, text) in texts() {
        let long = functions(&text).into_iter();
        let long = long.filter(|function| !function.is_table);
        sizes.extend(long.map(|function| {
            let name = format!("{file}: {}", function.name);
            (name, function.line, function.lines)
        }));
    }
    assert!(sizes.len() > 1000, "the functions were not found");
    check_sizes(&sizes, FUNCTION_LINES_MAX, LONG_FUNCTIONS);
}
