//! Runs the operations of the core: each effect is performed, and what it led to decides the next
//! one ([`migration_core::operation`]).

use migration_core::operation::{Effect, End, Event, Operation};
use migration_proto::manager::Failure;

/// Performs the effects of an operation.
pub(crate) trait Performer {
    /// Performs effects at the same time. Returns what they led to; none of them is
    /// [`Effect::End`].
    ///
    /// # Errors
    /// What could not be recorded: the operation is dropped.
    fn perform(
        &mut self,
        effects: Vec<Effect>,
    ) -> impl Future<Output = Result<Vec<Event>, Failure>> + Send;
}

/// Runs an operation until it ends.
///
/// # Errors
/// What could not be recorded: the operation was dropped.
pub(crate) async fn run(
    machine: &mut Operation,
    performer: &mut impl Performer,
) -> Result<End, Failure> {
    let mut effects = machine.begin();
    loop {
        let end = effects.iter().find_map(|effect| match effect {
            Effect::End(end) => Some(*end),
            _ => None,
        });
        // No effect and no end would be an error of the machine.
        if let Some(end) = end.or_else(|| effects.is_empty().then_some(End::Failed)) {
            return Ok(end);
        }
        let mut next = Vec::new();
        for event in performer.perform(effects).await? {
            next.extend(machine.apply(&event));
        }
        effects = next;
    }
}
