//! Rules of operations that the model and the simulation (`tests`) break on purpose, to see that
//! they notice. As in [`volume::seeded`](crate::volume), no program can break them.

/// A rule of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(not(feature = "seeded-bugs"), expect(unreachable_pub))]
pub enum Rule {
    /// A start is recorded before a mirror leg is added.
    StartIsIntended,
    /// A switch or an undo is recorded before a role moves.
    MoveIsIntended,
    /// A commit or a cancel is recorded before a leg is dropped.
    EndIsIntended,
    /// A split is recorded before a target is detached.
    SplitIsIntended,
    /// A target that was detached becomes a mirror leg only when that is recorded.
    CopyIsGivenUpFirst,
    /// A recovery is recorded before the map file is made.
    RecoveryIsIntended,
    /// A role that may have moved is not recorded as not moved.
    UnknownMoveStaysUnknown,
    /// A pair of which nobody knows whether its leg was dropped has not ended.
    UnknownEndStaysUnknown,
    /// A pair has ended when its leg is dropped.
    EndedAfterDrop,
    /// A source is made inaccessible when the commit is recorded.
    RetiredAfterRecord,
    /// A target is marked as no copy before everything is copied to it.
    NewMirrorIsMarked,
    /// A target that another program may have written to is copied from scratch.
    DoubtfulTargetIsCopiedAgain,
    /// A copy counts if all volumes held requests at the same time.
    CopyIsOfOneInstant,
    /// The copiers have stopped before a leg is dropped.
    CopiersStopBeforeDrop,
    /// The map file says more about the role than the record, as far as it can be read.
    MapFileCounts,
    /// While a role is moving, the record does not say where it is.
    MovingRoleIsUnknown,
}

impl Rule {
    /// Every rule.
    #[cfg(feature = "seeded-bugs")]
    pub const ALL: [Self; 16] = [
        Self::StartIsIntended,
        Self::MoveIsIntended,
        Self::EndIsIntended,
        Self::SplitIsIntended,
        Self::CopyIsGivenUpFirst,
        Self::RecoveryIsIntended,
        Self::UnknownMoveStaysUnknown,
        Self::UnknownEndStaysUnknown,
        Self::EndedAfterDrop,
        Self::RetiredAfterRecord,
        Self::NewMirrorIsMarked,
        Self::DoubtfulTargetIsCopiedAgain,
        Self::CopyIsOfOneInstant,
        Self::CopiersStopBeforeDrop,
        Self::MapFileCounts,
        Self::MovingRoleIsUnknown,
    ];
}

/// The rule that an operation breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Broken {
    #[cfg(feature = "seeded-bugs")]
    rule: Option<Rule>,
}

impl Broken {
    /// No rule.
    pub(super) const NOTHING: Self = Self {
        #[cfg(feature = "seeded-bugs")]
        rule: None,
    };

    /// Whether the operation breaks this rule. Never in a program.
    #[cfg(not(feature = "seeded-bugs"))]
    #[expect(clippy::unused_self)]
    pub(super) const fn breaks(self, _: Rule) -> bool {
        false
    }

    /// Whether the operation breaks this rule.
    #[cfg(feature = "seeded-bugs")]
    pub(super) fn breaks(self, rule: Rule) -> bool {
        self.rule == Some(rule)
    }
}

#[cfg(feature = "seeded-bugs")]
impl super::Operation {
    /// Breaks `rule` from now on.
    pub fn break_rule(&mut self, rule: Option<Rule>) {
        let broken = match self {
            Self::Start(start) => &mut start.broken,
            Self::MoveRole(roles) => &mut roles.broken,
            Self::Finish(finish) => &mut finish.broken,
            Self::Split(split) => &mut split.broken,
            Self::Resume(resume) => &mut resume.broken,
            Self::Recover(recover) => &mut recover.broken,
            Self::Pause(_) => return,
        };
        *broken = Broken { rule };
    }
}
