//! Sides, routes and legs as they are written on the wire and in the descriptor of a map file.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One side of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// Where the data was at the start of the migration.
    Source,
    /// Where the migration moves the data.
    Target,
}

/// Which legs a volume uses, and which of them is authoritative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Route {
    /// One leg, no mirror.
    Single {
        /// The leg.
        leg: Side,
    },
    /// Both legs.
    Mirrored {
        /// The leg that answers reads and decides whether a write succeeded.
        authoritative: Side,
    },
    /// The source alone. The target is detached, as a copy of the source at an instant.
    Split,
}

impl Route {
    /// The leg that answers reads.
    #[must_use]
    pub const fn authoritative(self) -> Side {
        match self {
            Self::Single { leg } => leg,
            Self::Mirrored { authoritative } => authoritative,
            Self::Split => Side::Source,
        }
    }

    /// Whether both legs are in use.
    #[must_use]
    pub const fn is_mirrored(self) -> bool {
        matches!(self, Self::Mirrored { .. })
    }
}

/// A contiguous part of a LUN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extent {
    /// A way to find the LUN; `identity` says whether it is the right one.
    pub path: PathBuf,
    /// What the LUN was when it was accepted.
    pub identity: lun::Identity,
    /// Where the extent begins on the LUN, in bytes.
    pub start_bytes: u64,
    /// The length of the extent, in bytes.
    pub length_bytes: u64,
}

/// One leg: the extents that make up its address space, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leg {
    /// The extents, in the order of the volume's addresses.
    pub extents: Vec<Extent>,
}

impl Leg {
    /// The sum of the lengths of the extents, in bytes; the largest `u64` if the sum is larger than
    /// that.
    #[must_use]
    pub fn length_bytes(&self) -> u64 {
        let lengths = self.extents.iter().map(|extent| extent.length_bytes);
        lengths.fold(0, u64::saturating_add)
    }
}

/// What a volume is: the contents of the descriptor in its map file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Descriptor {
    /// The name that the operator gave.
    pub volume: String,
    /// A UUID that no other volume has.
    pub volume_id: String,
    /// The size of the volume, in bytes.
    pub size_bytes: u64,
    /// The logical block size that the volume offers, in bytes.
    pub logical_block_bytes: u32,
    /// The physical block size that the volume reports, in bytes.
    pub physical_block_bytes: u32,
    /// The source leg.
    pub source: Leg,
    /// The target leg, once there is one.
    pub target: Option<Leg>,
}

/// What a map file says, as `ublk-target describe` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapSummary {
    /// The epoch of the role record that holds.
    pub epoch: u64,
    /// The route.
    pub route: Route,
    /// What the volume is.
    pub descriptor: Descriptor,
    /// What is damaged apart from the role and the descriptor, so that the volume is not served.
    pub damage: Option<String>,
}

impl Descriptor {
    /// The leg of a side.
    #[must_use]
    pub fn leg(&self, side: Side) -> Option<&Leg> {
        match side {
            Side::Source => Some(&self.source),
            Side::Target => self.target.as_ref(),
        }
    }
}

impl From<Side> for migration_core::route::Side {
    fn from(side: Side) -> Self {
        match side {
            Side::Source => Self::Source,
            Side::Target => Self::Target,
        }
    }
}

impl From<migration_core::route::Side> for Side {
    fn from(side: migration_core::route::Side) -> Self {
        match side {
            migration_core::route::Side::Source => Self::Source,
            migration_core::route::Side::Target => Self::Target,
        }
    }
}

impl From<Route> for migration_core::route::Route {
    fn from(route: Route) -> Self {
        match route {
            Route::Single { leg } => Self::Single(leg.into()),
            Route::Mirrored { authoritative } => Self::Mirrored {
                authoritative: authoritative.into(),
            },
            Route::Split => Self::Split,
        }
    }
}

impl From<migration_core::route::Route> for Route {
    fn from(route: migration_core::route::Route) -> Self {
        match route {
            migration_core::route::Route::Single(leg) => Self::Single { leg: leg.into() },
            migration_core::route::Route::Split => Self::Split,
            migration_core::route::Route::Mirrored { authoritative } => Self::Mirrored {
                authoritative: authoritative.into(),
            },
        }
    }
}
