//! `shunt verify`: starts a comparison, waits for its end, and reports the result.

use std::collections::BTreeMap;

use migration_proto::manager::{PairRecord, Record, Request, Verification};

use super::args::Global;
use super::ask::ABSENCE_MAX;
use super::ask::Poll;
use super::commands::{change, shuntd};
use super::output::{print, say};
use super::problem::{Problem, Stop};
use super::{render, wait};

/// Starts a comparison of the session's pairs; with `waits`, reports the result.
///
/// # Errors
/// shuntd refuses or does not answer, something differs, or something could not be compared.
pub(super) fn verify(
    global: &Global,
    session: String,
    repair: bool,
    waits: bool,
) -> Result<(), Stop> {
    let request = Request::Verify {
        session: session.clone(),
        repair,
    };
    if !waits {
        return change(global, &request);
    }
    let status = Request::Status {
        session: Some(session.clone()),
    };
    let before = results(&shuntd(global).records(&status)?, &session);
    shuntd(global).ask(&request)?;
    let mut poll = Poll::new(shuntd(global), Some(session.clone()), ABSENCE_MAX);
    let records = wait::until_compared(&mut poll, &session, global.quiet)?;
    if global.json {
        print(render::json_lines(&records).as_bytes())?;
    }
    let mut worst = None;
    for pair in live_pairs(&records, &session) {
        match judge(pair, before.get(&pair.volume), &session) {
            Ok(text) => say(global, &text),
            Err(problem) => worst = worst.or(Some(problem)),
        }
    }
    worst.map_or(Ok(()), |problem| Err(problem.into()))
}

fn live_pairs<'a>(records: &'a [Record], session: &str) -> Vec<&'a PairRecord> {
    let mut pairs = render::pairs(records, session);
    pairs.retain(|pair| !matches!(pair.state.as_str(), "committed" | "retired" | "cancelled"));
    pairs
}

/// The result of the last comparison of each volume.
fn results(records: &[Record], session: &str) -> BTreeMap<String, Verification> {
    let pairs = live_pairs(records, session).into_iter();
    pairs
        .filter_map(|pair| Some((pair.volume.clone(), pair.verification.clone()?)))
        .collect()
}

fn judge(
    pair: &PairRecord,
    before: Option<&Verification>,
    session: &str,
) -> Result<String, Problem> {
    let object = format!("session {session}, volume {}", pair.volume);
    let again = format!("shunt verify {session}");
    let Some(found) = pair
        .verification
        .as_ref()
        .filter(|found| Some(*found) != before)
    else {
        let why = match &pair.problem {
            Some(problem) => format!(": {problem}"),
            None => ", ended by another command or by the end of shuntd".to_owned(),
        };
        let cause = format!(
            "it is {}, and the comparison has no result{why}",
            pair.state
        );
        return Err(Problem::failed(object, cause, again));
    };
    let text = render::verification(found, pair.size_bytes);
    if found.is_different() {
        let next =
            format!("shunt wait {session} --for source-selected, then shunt verify {session}");
        return Err(Problem::failed(object, text, next));
    }
    if found.unknown_bytes > 0 {
        return Err(Problem::failed(object, text, again));
    }
    Ok(format!("{}: {text}", pair.volume))
}
