//! Comments and texts are plain English.

use super::{root, sources};

/// Phrases that a reader has to decode, and what to write instead. Compared with comments and with
/// texts, in lower case.
const ODD_PHRASES: &[(&str, &str)] = &[
    ("anew", "again, from scratch"),
    ("another one", "name the thing"),
    ("by itself", "automatically"),
    ("by themselves", "automatically"),
    ("comes about", "succeeds"),
    ("goes on", "continues"),
    ("going on", "in progress"),
    ("go on", "continue"),
    ("went on", "continued"),
    ("is another", "has changed"),
    ("is told", "gets a report"),
    ("are told", "get a report"),
    ("was told", "got a report"),
    ("is not told", "gets no report"),
    ("tells", "reports"),
    ("left alone", "detached"),
    ("looked at", "checked"),
    ("so few", "name the number"),
    ("so long", "name the time"),
    ("so many", "name the number"),
    ("so much", "name the quantity"),
    ("speaks against", "is a reason to refuse"),
    ("speak against", "are reasons to refuse"),
    ("what is so", "the current state"),
    ("whoever asked", "the client"),
];

/// The part of a line that people read: a comment, or a line with a text in it.
fn prose(line: &str) -> Option<&str> {
    match line.find("//") {
        Some(at) => Some(&line[at..]),
        None => line.find('"').map(|at| &line[at..]),
    }
}

fn has_phrase(text: &str, phrase: &str) -> bool {
    let is_word = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    let bytes = text.as_bytes();
    text.match_indices(phrase).any(|(at, _)| {
        let before = at.checked_sub(1).and_then(|at| bytes.get(at));
        !is_word(before) && !is_word(bytes.get(at + phrase.len()))
    })
}

#[test]
fn comments_and_texts_are_plain_english_and_comments_are_not_wide() {
    assert!(has_phrase("it goes on.", "goes on") && !has_phrase("it goes once", "goes on"));
    let mut files = Vec::new();
    sources(&root(), &mut files);
    let mut found = Vec::new();
    for file in files {
        if file.ends_with("tests/architecture/words.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&file).expect("a source");
        for (number, line) in text.lines().enumerate() {
            let place = format!("{}:{}", file.display(), number + 1);
            let is_comment = line.trim_start().starts_with("//");
            if is_comment && line.chars().count() > 100 {
                found.push(format!("{place}: the comment is wider than 100 columns"));
            }
            let Some(read) = prose(line).map(str::to_lowercase) else {
                continue;
            };
            for (phrase, better) in ODD_PHRASES {
                if has_phrase(&read, phrase) {
                    found.push(format!("{place}: \"{phrase}\"; better: {better}"));
                }
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}
