//! The output of `shunt-map check`.

use migration_core::map::Chosen;
use migration_proto::route::{Descriptor, Leg};

use crate::{
    dump::route_text,
    survey::{Bitmap, Survey},
};

/// The line for a file that is whole.
pub(crate) fn whole(survey: &Survey) -> String {
    let mut line = format!("ok: {}", survey.path.display());
    if let Some(descriptor) = survey.descriptor() {
        line.push_str(&format!(": volume {}", descriptor.volume));
    }
    if let Some(Chosen { record, .. }) = &survey.chosen {
        line.push_str(&format!(
            ", epoch {}, {}",
            record.epoch.0,
            route_text(record.route)
        ));
    }
    for Bitmap { regions, .. } in &survey.bitmaps[..survey.bitmaps.len().min(1)] {
        line.push_str(&format!(", {} dirty regions", regions.indexes()));
    }
    for note in &survey.notes {
        line.push_str(&format!("; {note}"));
    }
    line.push('\n');
    line
}

/// The text for a damaged file: the damage, its consequence and the way out.
pub(crate) fn damaged(survey: &Survey) -> String {
    let path = survey.path.display();
    let mut text = String::new();
    for problem in &survey.problems {
        text.push_str(&format!("damaged: {path}: {problem}\n"));
    }
    text.push_str(&way_out(survey));
    text
}

fn way_out(survey: &Survey) -> String {
    let leg = match authoritative(survey) {
        Some(leg) => format!("The role record names the authoritative leg: {leg}.\n"),
        None => "Which leg is authoritative cannot be read from the file: find the last switch or undo with\n\
                 `shunt history`, and compare the data on both legs read-only.\n"
            .to_owned(),
    };
    format!(
        "The data on the legs is not touched by this; ublk-target does not start the volume with this file.\n\
         {leg}\
         Way out: keep this file aside, attach the authoritative leg as a new volume (`shunt attach`), and copy\n\
         it to the other leg in full with a new session (`shunt create --overwrite`, `shunt start`).\n\
         Never put an older copy of a map file in its place: it calls regions equal that no longer are.\n"
    )
}

/// The side and the LUNs of the authoritative leg.
fn authoritative(survey: &Survey) -> Option<String> {
    let side = survey.chosen?.record.route.authoritative();
    let leg = survey
        .descriptor()
        .and_then(|descriptor: &Descriptor| descriptor.leg(side.into()));
    Some(match leg {
        Some(leg) => format!("{side} ({})", paths(leg)),
        None => side.to_string(),
    })
}

/// The paths of a leg's LUNs.
pub(crate) fn paths(leg: &Leg) -> String {
    let paths: Vec<String> = leg
        .extents
        .iter()
        .map(|extent| extent.path.display().to_string())
        .collect();
    paths.join(", ")
}
