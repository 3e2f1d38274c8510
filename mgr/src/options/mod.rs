//! The table of the options of a session.
//!
//! A row names an option, its place in [`SessionOptions`], its form in a session file, and how
//! `set` changes it. Who walks the table:
//!
//! | who | for what |
//! |---|---|
//! | `cli::session_file` | reads the keys of a file, and prints them |
//! | `cli::args` | refuses every option beside `-f`; applies those of `create` to the defaults |
//! | `daemon::sessions::set` | applies limits, and names what they changed |
//!
//! A new option needs its field in [`SessionOptions`], a row here, and its argument in
//! `cli::args::session`. If `set` can change it, it also needs its field in [`SessionLimits`], and
//! its [`LimitChange`] with a sentence in [`history`](crate::history). The compiler and
//! `cli/options_tests.rs` name what is missing.

pub(crate) mod forms;

use std::sync::LazyLock;

use forms::FileValue;
use migration_proto::manager::{LimitChange, SessionLimits, SessionOptions};

/// An option of a session.
pub(crate) struct SessionOption {
    /// The name of its argument for clap. Its key in a session file has `-` in place of `_`.
    pub(crate) id: &'static str,
    /// Reads the value of a session file into the options. The error is the reason to refuse it.
    pub(crate) read: fn(toml::Value, &mut SessionOptions) -> Result<(), String>,
    /// The value for a session file; `None`: the file does not name this value.
    pub(crate) write: fn(&SessionOptions) -> Option<FileValue>,
    /// How `set` changes the option.
    pub(crate) set: Setting,
}

/// How `set` changes an option.
pub(crate) enum Setting {
    /// The option is a limit that can be changed.
    Limit {
        /// Applies the limit. Returns whether the option has another value now.
        apply: fn(&SessionLimits, &mut SessionOptions) -> bool,
        /// The change for the history, once all limits are applied.
        change: fn(&SessionOptions) -> LimitChange,
    },
    /// The option cannot be changed; the text is the reason.
    Fixed(
        #[cfg_attr(
            not(test),
            expect(dead_code, reason = "clap refuses the argument; the table says why")
        )]
        &'static str,
    ),
}

/// Makes a row: the name, the form in a file, the place in [`SessionOptions`], and the place in
/// [`SessionLimits`] with the change, or the reason why it is fixed.
macro_rules! row {
    ($id:ident, $form:expr, $($field:ident).+, limit $limit:ident, $change:expr) => {
        row!($id, $form, $($field).+, Setting::Limit {
            apply: |limits, options| replace(&mut options.$($field).+, limits.$limit.as_ref()),
            change: |options| $change(options.$($field).+.clone()),
        })
    };
    ($id:ident, $form:expr, $($field:ident).+, part $limit:ident, $change:expr) => {
        row!($id, $form, $($field).+, Setting::Limit {
            apply: |limits, options| replace(&mut options.$($field).+, limits.$limit.as_ref()),
            change: $change,
        })
    };
    ($id:ident, $form:expr, $($field:ident).+, fixed $reason:literal) => {
        row!($id, $form, $($field).+, Setting::Fixed($reason))
    };
    ($id:ident, $form:expr, $($field:ident).+, $set:expr) => {
        SessionOption {
            id: stringify!($id),
            read: |value, options| {
                options.$($field).+ = ($form.read)(value)?;
                Ok(())
            },
            write: |options| ($form.write)(&options.$($field).+),
            set: $set,
        }
    };
}

/// The options, in the order of a session file.
#[rustfmt::skip]
pub(crate) static TABLE: &[SessionOption] = &[
    row!(overwrite, forms::FLAG, overwrite, fixed "targets are checked by create"),
    row!(accept_weak_identity, forms::RARE_FLAG, accept_weak_identity, fixed "targets are checked by create"),
    row!(detect_zeroes, forms::FLAG, detect_zeroes, fixed "the whole copy is done in one way"),
    row!(verify, forms::VERIFY, verify, fixed "a proof is about the whole copy"),
    row!(on_authoritative_failure, forms::ON_FAILURE, on_authoritative_failure,
         limit on_authoritative_failure, LimitChange::OnAuthoritativeFailure),
    row!(rate, forms::RATE, rate_bytes_per_second,
         limit rate_bytes_per_second, LimitChange::RateBytesPerSecond),
    row!(priority, forms::PRIORITY, priority, limit priority, LimitChange::Priority),
    row!(switch, forms::SWITCH, switch, part switch, switch_change),
    row!(max_latency_impact, forms::PERCENT, max_latency_impact_percent,
         limit max_latency_impact_percent, LimitChange::MaxLatencyImpactPercent),
    row!(accept_unreadable, forms::ACCEPTED, accept_unreadable_bytes,
         limit accept_unreadable_bytes, LimitChange::AcceptUnreadableBytes),
    row!(mode, forms::MODE, mode, limit mode, LimitChange::Mode),
    row!(every, forms::INTERVAL, every_seconds, limit every_seconds, LimitChange::EverySeconds),
    row!(window_hours, forms::HOURS, hours, limit hours, LimitChange::Hours),
    row!(start_at, forms::START_AT, start_at_ms, limit start_at_ms, LimitChange::StartAtMs),
    row!(max_duration, forms::INTERVAL, max_duration_seconds,
         limit max_duration_seconds, LimitChange::MaxDurationSeconds),
    row!(switch_pairs, forms::SWITCH_PAIRS, switch_pairs, limit switch_pairs, LimitChange::SwitchPairs),
    row!(cutover_action, forms::CUTOVER_ACTION, cutover.action, part cutover_action, cutover_change),
    row!(attempts, forms::ATTEMPTS, cutover.attempts, part attempts, cutover_change),
    row!(cutover_duration, forms::SECONDS, cutover.duration_seconds,
         part cutover_duration_seconds, cutover_change),
    row!(throttle_floor, forms::FLOOR, cutover.floor_bytes_per_second,
         part throttle_floor_bytes_per_second, cutover_change),
    row!(retire, forms::RETIRE, retire, fixed "`shunt retire` does it at any time after the commit"),
];

/// The keys of the options in a session file, in the order of [`TABLE`].
static KEYS: LazyLock<Vec<String>> = LazyLock::new(|| {
    TABLE
        .iter()
        .map(|option| option.id.replace('_', "-"))
        .collect()
});

/// The options with their keys in a session file.
pub(crate) fn with_keys() -> impl Iterator<Item = (&'static str, &'static SessionOption)> {
    KEYS.iter().map(String::as_str).zip(TABLE)
}

/// The names of the arguments of all options, for clap.
pub(crate) fn ids() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|option| option.id)
}

/// Applies the limits to the options. Returns each change, in the order of [`TABLE`].
pub(crate) fn apply(limits: &SessionLimits, options: &mut SessionOptions) -> Vec<LimitChange> {
    let mut changed = Vec::new();
    for option in TABLE {
        match option.set {
            Setting::Limit { apply, change } if apply(limits, options) => changed.push(change),
            Setting::Limit { .. } | Setting::Fixed(_) => {}
        }
    }
    let mut changes: Vec<LimitChange> = changed.into_iter().map(|change| change(options)).collect();
    // The options of the cutover are one change.
    changes.dedup();
    changes
}

/// Sets `option` to the value that is asked for. Returns whether it has changed.
fn replace<T: Clone + PartialEq>(option: &mut T, asked: Option<&T>) -> bool {
    match asked {
        Some(value) if value != option => {
            *option = value.clone();
            true
        }
        Some(_) | None => false,
    }
}

fn switch_change(options: &SessionOptions) -> LimitChange {
    LimitChange::Switch {
        policy: options.switch.clone(),
        mode: options.mode,
    }
}

const fn cutover_change(options: &SessionOptions) -> LimitChange {
    LimitChange::Cutover(options.cutover)
}
