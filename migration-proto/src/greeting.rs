//! The greeting of a connection, in which client and server agree on a version of the protocol.
//!
//! `ublk-target` outlives updates of the other programs: a volume keeps the process with which it
//! was attached. So the programs of two releases talk to each other, and each of them may be the
//! older one. The client names the versions that it speaks, and the server chooses the newest one
//! that it speaks too. Both messages keep these fields in all versions, and fields that a later
//! version adds to them are ignored.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The versions of the protocol that this build speaks, on the sockets of `ublk-target` and of
/// `shuntd`. A change of a message needs a new version, and code for the older versions that are
/// still spoken.
///
/// * 1: the first.
pub const PROTOCOLS: Protocols = Protocols {
    oldest: 1,
    newest: 1,
};

/// The versions of the protocol that a program speaks: all from the oldest to the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protocols {
    /// The oldest version.
    pub oldest: u32,
    /// The newest version.
    pub newest: u32,
}

impl Protocols {
    /// The newest version that both speak; `None` if they have no version in common.
    #[must_use]
    pub fn newest_common(self, other: Self) -> Option<u32> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }

    /// Whether the version is spoken.
    #[must_use]
    pub fn contains(self, version: u32) -> bool {
        (self.oldest..=self.newest).contains(&version)
    }
}

impl fmt::Display for Protocols {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { oldest, newest } = self;
        if oldest == newest {
            write!(f, "protocol {newest}")
        } else {
            write!(f, "protocols {oldest} to {newest}")
        }
    }
}

/// The first message of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The versions that the client speaks.
    pub protocols: Protocols,
}

/// The answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Welcome {
    /// The connection may be used.
    Ready {
        /// The version of the protocol on this connection.
        protocol: u32,
        /// The version of the program that answers.
        program_version: String,
    },
    /// The server speaks none of the client's versions; it closes the connection.
    WrongProtocol {
        /// The versions that the server speaks.
        speaks: Protocols,
    },
}

/// The server speaks none of the client's versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it speaks {theirs}, this program speaks {PROTOCOLS}")]
pub struct NoCommonProtocol {
    /// The versions that the server speaks.
    pub theirs: Protocols,
}

impl Hello {
    /// The greeting of this build.
    #[must_use]
    pub const fn current() -> Self {
        Self {
            protocols: PROTOCOLS,
        }
    }

    /// What a server of this build answers.
    #[must_use]
    pub fn answer(&self) -> Welcome {
        match PROTOCOLS.newest_common(self.protocols) {
            Some(protocol) => Welcome::Ready {
                protocol,
                program_version: env!("CARGO_PKG_VERSION").to_owned(),
            },
            None => Welcome::WrongProtocol { speaks: PROTOCOLS },
        }
    }
}

impl Welcome {
    /// The version of the program that answers, if the connection may be used.
    ///
    /// # Errors
    /// [`NoCommonProtocol`], also if the server chose a version that was not offered.
    pub fn accept(self) -> Result<String, NoCommonProtocol> {
        match self {
            Self::Ready {
                protocol,
                program_version,
            } if PROTOCOLS.contains(protocol) => Ok(program_version),
            Self::Ready { protocol, .. } => Err(NoCommonProtocol {
                theirs: Protocols {
                    oldest: protocol,
                    newest: protocol,
                },
            }),
            Self::WrongProtocol { speaks } => Err(NoCommonProtocol { theirs: speaks }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::decode;

    const fn versions(oldest: u32, newest: u32) -> Protocols {
        Protocols { oldest, newest }
    }

    #[test]
    fn the_newest_version_that_both_speak_is_chosen() {
        for (one, other, chosen) in [
            (versions(1, 1), versions(1, 1), Some(1)),
            (versions(1, 3), versions(2, 5), Some(3)),
            (versions(2, 2), versions(1, 9), Some(2)),
            (versions(1, 2), versions(3, 4), None),
            (versions(1, 1), versions(5, 2), None),
        ] {
            assert_eq!(one.newest_common(other), chosen, "{one} and {other}");
            assert_eq!(other.newest_common(one), chosen, "{other} and {one}");
        }
    }

    #[test]
    fn a_client_of_a_later_release_is_answered_in_a_version_of_this_one() {
        let hello: Hello =
            decode(br#"{"protocols":{"oldest":1,"newest":9,"more":0},"more":{"a":1}}"#).unwrap();
        let answer = hello.answer();
        assert!(
            matches!(&answer, Welcome::Ready { protocol, .. } if *protocol == PROTOCOLS.newest)
        );
        answer.accept().unwrap();
    }

    #[test]
    fn a_server_of_a_later_release_is_understood() {
        let ready = br#"{"answer":"ready","protocol":1,"program_version":"9.0.0","more":true}"#;
        let ready: Welcome = decode(ready).unwrap();
        assert_eq!(ready.accept().unwrap(), "9.0.0");
        let wrong = br#"{"answer":"wrong-protocol","speaks":{"oldest":7,"newest":9},"more":true}"#;
        let wrong: Welcome = decode(wrong).unwrap();
        let error = wrong.accept().unwrap_err();
        assert!(error.to_string().contains("protocols 7 to 9"), "{error}");
    }

    #[test]
    fn a_version_that_was_not_offered_is_an_error() {
        let ready = Welcome::Ready {
            protocol: PROTOCOLS.newest + 1,
            program_version: String::new(),
        };
        ready.accept().unwrap_err();
    }
}
