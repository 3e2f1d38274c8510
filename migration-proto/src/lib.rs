//! The messages between `shunt`, `shuntd` and `ublk-target`, and how they travel.
//!
//! Every message is one frame: a 32-bit little-endian length, then that many bytes of JSON
//! ([`frame`]). A connection starts with [`Hello`]; the answer is [`Welcome`], or a refusal that
//! says which protocol the server speaks. After that the client sends one request and reads one
//! response, in turn. Two protocols share this: [`target`] (shuntd and tools to `ublk-target`) and
//! [`manager`] (`shunt` to `shuntd`).
//!
//! Unknown fields and unknown variants are errors, never guesses. The events of the history are an
//! exception: an unknown code is read as [`manager::HistoryEvent::Unknown`].

pub mod chain;
mod convert;
pub mod disks;
pub mod frame;
pub mod luns;
pub mod manager;
pub mod places;
pub mod route;
pub mod target;

use serde::{Deserialize, Serialize};

/// The version of both protocols that this build speaks.
///
/// * 1: the first.
pub const PROTOCOL_VERSION: u32 = 1;

/// The first message of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// The protocol that the client speaks.
    pub protocol: u32,
}

/// The answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Welcome {
    /// The connection may be used.
    Ready {
        /// The version of the program that answers.
        program_version: String,
    },
    /// The server does not speak the client's protocol; it closes the connection.
    WrongProtocol {
        /// The protocol that the server speaks.
        speaks: u32,
    },
}

impl Hello {
    /// The greeting of this build.
    #[must_use]
    pub const fn current() -> Self {
        Self {
            protocol: PROTOCOL_VERSION,
        }
    }

    /// What a server of this build answers.
    #[must_use]
    pub fn answer(&self) -> Welcome {
        if self.protocol == PROTOCOL_VERSION {
            Welcome::Ready {
                program_version: env!("CARGO_PKG_VERSION").to_owned(),
            }
        } else {
            Welcome::WrongProtocol {
                speaks: PROTOCOL_VERSION,
            }
        }
    }
}
