//! Which legs a volume uses, and which of them is authoritative.

/// One side of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// Where the data was at the start of the migration.
    Source,
    /// Where the migration moves the data.
    Target,
}

impl Side {
    /// The other side.
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

/// The route of a volume: which legs it uses, and which of them is authoritative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Route {
    /// One leg, no mirror, no map.
    Single(Side),
    /// Both legs and a region map.
    Mirrored {
        /// The leg that answers reads and decides whether a write succeeded.
        authoritative: Side,
    },
    /// The source alone, and a region map. The target is detached: a copy of the source at the
    /// instant of the split. What is written since is dirty.
    Split,
}

impl Route {
    /// The leg that answers reads.
    #[must_use]
    pub const fn authoritative(self) -> Side {
        match self {
            Self::Single(side) => side,
            Self::Mirrored { authoritative } => authoritative,
            Self::Split => Side::Source,
        }
    }

    /// Whether a region map says where the other leg differs.
    #[must_use]
    pub const fn has_map(self) -> bool {
        match self {
            Self::Single(_) => false,
            Self::Mirrored { .. } | Self::Split => true,
        }
    }

    /// The mirror leg, while both legs are in use.
    #[must_use]
    pub const fn mirror(self) -> Option<Side> {
        match self {
            Self::Single(_) | Self::Split => None,
            Self::Mirrored { authoritative } => Some(authoritative.other()),
        }
    }

    /// Whether `next` may follow `self`, as far as the route alone decides.
    ///
    /// A start leads from `Single` to `Mirrored{source}`: the leg in use becomes the source. Switch
    /// and undo exchange the roles. Commit and cancel drop the mirror leg. A split detaches the
    /// target; after a split, the target is mirrored again or dropped. Everything else is refused.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        match (self, next) {
            (Self::Single(_) | Self::Split, Self::Mirrored { authoritative }) => {
                authoritative == Side::Source
            }
            (
                Self::Mirrored { authoritative: now },
                Self::Mirrored {
                    authoritative: then,
                },
            ) => now != then,
            (Self::Mirrored { authoritative }, Self::Split) => authoritative == Side::Source,
            (Self::Mirrored { .. } | Self::Split, Self::Single(side)) => {
                self.authoritative() == side
            }
            (Self::Single(_), Self::Single(_) | Self::Split) | (Self::Split, Self::Split) => false,
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
            let is_source = side == Side::Source;
            assert_eq!(mirrored.may_become(Route::Split), is_source);
            assert_eq!(Route::Split.may_become(mirrored), is_source);
            assert_eq!(Route::Split.may_become(Route::Single(side)), is_source);
            assert!(!Route::Single(side).may_become(Route::Split));
        }
    }
}
