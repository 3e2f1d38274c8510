//! An error with its causes, as people read it.

use std::error::Error;

/// The error and its causes, with ": " between them. A cause whose text is already in the text
/// before it is left out: many errors name their own cause.
#[must_use]
pub fn text(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open a: {source}")]
    struct Open {
        source: io::Error,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("start the copy")]
    struct Start(#[source] Open);

    #[test]
    fn every_cause_is_said_once() {
        let source = io::Error::other("no such file");
        let error = Start(Open { source });
        assert_eq!(text(&error), "start the copy: cannot open a: no such file");
    }
}
