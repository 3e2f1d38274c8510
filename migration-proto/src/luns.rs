//! How the LUNs of a leg are named.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The separator of two paths.
const SEPARATOR: char = ',';
/// The escape before a comma or a backslash that belongs to a path.
const ESCAPE: char = '\\';

/// The LUNs of a leg, end to end, as paths. Written with commas between them, as in
/// `/dev/sdb,/dev/sdc`; a comma in a path is written `\,`, a backslash `\\`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(with = "String"))]
#[serde(try_from = "String", into = "String")]
pub struct LunPaths(Vec<PathBuf>);

impl LunPaths {
    /// The paths of at least one LUN.
    ///
    /// # Errors
    /// A text that says what is wrong with the paths.
    pub fn new(paths: Vec<PathBuf>) -> Result<Self, String> {
        if paths.is_empty() {
            return Err("no LUN is named".to_owned());
        }
        for path in &paths {
            let text = path
                .to_str()
                .ok_or_else(|| format!("the path {} is not valid UTF-8", path.display()))?;
            if text.is_empty() {
                return Err(
                    "the path of a LUN is empty: a comma separates two LUNs of one leg (\\, is a comma in a path)".to_owned(),
                );
            }
        }
        Ok(Self(paths))
    }

    /// The paths, in the order of the volume's addresses.
    #[must_use]
    pub fn paths(&self) -> &[PathBuf] {
        &self.0
    }
}

impl fmt::Display for LunPaths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, path) in self.0.iter().enumerate() {
            if index > 0 {
                write!(f, "{SEPARATOR}")?;
            }
            for c in path.display().to_string().chars() {
                if c == SEPARATOR || c == ESCAPE {
                    write!(f, "{ESCAPE}")?;
                }
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for LunPaths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut paths = vec![String::new()];
        let mut characters = text.chars();
        while let Some(c) = characters.next() {
            if c == SEPARATOR {
                paths.push(String::new());
                continue;
            }
            let c = match c {
                ESCAPE => characters
                    .next()
                    .filter(|c| [SEPARATOR, ESCAPE].contains(c)),
                c => Some(c),
            };
            let c = c.ok_or_else(|| {
                format!(
                    "a backslash in {text:?} stands neither before a comma nor before a backslash"
                )
            })?;
            if let Some(path) = paths.last_mut() {
                path.push(c);
            }
        }
        Self::new(paths.into_iter().map(PathBuf::from).collect())
    }
}

impl TryFrom<String> for LunPaths {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<LunPaths> for String {
    fn from(paths: LunPaths) -> Self {
        paths.to_string()
    }
}

/// Equal if `self` is one LUN, with this path.
impl PartialEq<PathBuf> for LunPaths {
    fn eq(&self, other: &PathBuf) -> bool {
        matches!(self.0.as_slice(), [path] if path == other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leg_is_named_by_its_luns_with_commas_between() {
        for text in [
            "/dev/sdb",
            "/dev/sdb,/dev/disk/by-path/pci-0000:00:1f.2-ata-1",
        ] {
            let paths: LunPaths = text.parse().unwrap();
            assert_eq!(paths.to_string(), text);
            let json = serde_json::to_string(&paths).unwrap();
            assert_eq!(json, format!("{text:?}"));
            assert_eq!(serde_json::from_str::<LunPaths>(&json).unwrap(), paths);
        }
        let one: LunPaths = "/dev/sdb".parse().unwrap();
        assert!(one == PathBuf::from("/dev/sdb") && one != PathBuf::from("/dev/sdc"));
        for wrong in ["", ",", "/dev/sdb,", ",/dev/sdb", "/dev/sdb,,/dev/sdc"] {
            wrong.parse::<LunPaths>().unwrap_err();
        }
        LunPaths::new(Vec::new()).unwrap_err();
        "/dev/a\\b".parse::<LunPaths>().unwrap_err();
        "/dev/a\\".parse::<LunPaths>().unwrap_err();
    }

    #[test]
    fn a_path_may_have_a_comma_and_a_backslash() {
        let names = vec!["/dev/with,comma".into(), "/dev/back\\slash: ü".into()];
        let paths = LunPaths::new(names.clone()).unwrap();
        assert_eq!(paths.to_string(), r"/dev/with\,comma,/dev/back\\slash: ü");
        let read: LunPaths = paths.to_string().parse().unwrap();
        assert_eq!(read.paths(), names);
    }
}
