//! Sessions whose targets become copies at an instant (`--mode copy`): which options they have, and
//! which verbs they refuse. The split itself is `migration_core::operation::split`.

use migration_proto::manager::{EVERY_SECONDS_MAX, Failure, SessionMode, SessionOptions};

use crate::daemon::failure;

/// Checks the options of a session that concern splits. The error says why they are refused.
pub(crate) fn check(options: &SessionOptions) -> Result<(), String> {
    let copies = options.mode == SessionMode::Copy;
    if options.every_seconds > 0 && !copies {
        return Err("--every needs --mode copy: other sessions are not split automatically".into());
    }
    if options.every_seconds > EVERY_SECONDS_MAX {
        return Err(format!(
            "--every of {} s is more than a year",
            options.every_seconds
        ));
    }
    if copies && options.retire.is_some() {
        return Err("--retire needs a commit, and a session of --mode copy has none".into());
    }
    Ok(())
}

/// The refusal of a switch for a session whose targets are to be copies.
pub(crate) fn never_switched(name: &str) -> Failure {
    failure::refused(
        failure::session(name),
        "its targets are to be copies at an instant (--mode copy): it is not switched",
        format!("`shunt split {name}`, or `shunt set {name} --mode mirror` first"),
    )
}
