//! Which legs a volume uses, and which of them is authoritative.

/// One side of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// Where the data was at the start of the migration.
    Source,
    /// Where the migration brings it.
    Target,
}

impl Side {
    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Source => Self::Target,
            Self::Target => Self::Source,
        }
    }
}

impl core::fmt::Display for Side {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Target => "target",
        })
    }
}

/// The route of a volume: at all times one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Route {
    /// One leg, no mirror, no map.
    Single(Side),
    /// Both legs and a region map.
    Mirrored {
        /// The leg that answers reads and decides whether a write succeeded.
        authoritative: Side,
    },
}

impl Route {
    /// The leg that answers reads.
    #[must_use]
    pub const fn authoritative(self) -> Side {
        match self {
            Self::Single(side) => side,
            Self::Mirrored { authoritative } => authoritative,
        }
    }

    /// The other leg, while both are in use.
    #[must_use]
    pub const fn mirror(self) -> Option<Side> {
        match self {
            Self::Single(_) => None,
            Self::Mirrored { authoritative } => Some(authoritative.other()),
        }
    }

    /// Whether `self` may be followed by `next`, as far as the route alone decides.
    ///
    /// start: `Single` -> `Mirrored{source}` (the leg in use becomes the source); switch and undo
    /// exchange the roles; commit and cancel drop the mirror leg. Everything else is refused.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        match (self, next) {
            (Self::Single(_), Self::Mirrored { authoritative }) => authoritative == Side::Source,
            (
                Self::Mirrored { authoritative: now },
                Self::Mirrored {
                    authoritative: then,
                },
            ) => now != then,
            (Self::Mirrored { authoritative }, Self::Single(side)) => authoritative == side,
            (Self::Single(_), Self::Single(_)) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authoritative_leg_is_never_dropped() {
        for side in [Side::Source, Side::Target] {
            let mirrored = Route::Mirrored {
                authoritative: side,
            };
            assert!(mirrored.may_become(Route::Single(side)));
            assert!(!mirrored.may_become(Route::Single(side.other())));
            assert!(mirrored.may_become(Route::Mirrored {
                authoritative: side.other()
            }));
            assert!(!mirrored.may_become(mirrored));
            assert!(!Route::Single(side).may_become(Route::Single(side.other())));
        }
    }
}
