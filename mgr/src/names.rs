//! The rules for names of volumes and sessions.

/// The longest name, in characters.
pub const NAME_CHARACTERS_MAX: usize = 63;

/// The error for a name that breaks the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a name has 1 to {NAME_CHARACTERS_MAX} characters, letters, digits, '.', '_' and '-', and begins with a letter or a digit"
)]
pub struct BadName;

/// Checks the name of a volume or a session, because the name becomes a file name under
/// `/dev/shunt` and in the state directory.
///
/// # Errors
/// [`BadName`], whose text states the rules.
pub fn check(name: &str) -> Result<(), BadName> {
    let first_is_plain = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    let all_allowed = name
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    if first_is_plain && all_allowed && name.len() <= NAME_CHARACTERS_MAX {
        Ok(())
    } else {
        Err(BadName)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_letters_digits_and_three_signs() {
        let long = "a".repeat(NAME_CHARACTERS_MAX);
        for good in ["a", "0", "db", "db-1.old_2", "A.", long.as_str()] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        let too_long = "a".repeat(NAME_CHARACTERS_MAX + 1);
        for bad in [
            "",
            ".",
            "..",
            "-a",
            "_a",
            ".a",
            "a/b",
            "a b",
            "a\n",
            "a\0",
            "ä",
            "a:b",
            too_long.as_str(),
        ] {
            assert_eq!(check(bad), Err(BadName), "{bad:?}");
        }
    }
}
