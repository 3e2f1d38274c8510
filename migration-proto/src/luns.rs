//! How the LUNs of a leg are named.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What stands between two paths.
const SEPARATOR: char = ',';

/// The LUNs of a leg, end to end, as paths. Written with commas between them, as in `/dev/sdb,/dev/sdc`: so no path has one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LunPaths(Vec<PathBuf>);

impl LunPaths {
    /// The paths of at least one LUN.
    ///
    /// # Errors
    /// What is wrong with them, in words.
    pub fn new(paths: Vec<PathBuf>) -> Result<Self, String> {
        if paths.is_empty() {
            return Err("no LUN is named".to_owned());
        }
        for path in &paths {
            let text = path
                .to_str()
                .ok_or_else(|| format!("the path {} is not valid UTF-8", path.display()))?;
            if text.is_empty() || text.contains(SEPARATOR) {
                return Err(format!(
                    "{text:?} is no path of a LUN: a comma stands between two LUNs of one leg"
                ));
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
            write!(f, "{}", path.display())?;
        }
        Ok(())
    }
}

impl FromStr for LunPaths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::new(text.split(SEPARATOR).map(PathBuf::from).collect())
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

/// One LUN with this path and no other one.
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
        LunPaths::new(vec!["/a,b".into()]).unwrap_err();
    }
}
