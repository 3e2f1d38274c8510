//! The output of `shunt-map dump`, for people and as JSON.

use std::fmt::Write;

use migration_core::{
    map::{self, RoleRecord},
    route::{Route, Side},
};
use migration_proto::route::{Descriptor, Extent};
use serde_json::{Value, json};
use tools::{JSON_SCHEMA, Run, Runs, size_text};

use crate::survey::{Bitmap, DescriptorSlot, Slot, Survey};

/// The highest number of ranges of a bitmap in the text; JSON has all ranges.
const RANGES_SHOWN_MAX: usize = 32;

/// The route in words.
pub(crate) fn route_text(route: Route) -> String {
    match route {
        Route::Single(side) => format!("single, {side} leg"),
        Route::Split => "split, source leg authoritative".to_owned(),
        Route::Mirrored { authoritative } => format!("mirrored, {authoritative} leg authoritative"),
    }
}

/// The dump as text: each line begins with a word that names its subject.
pub(crate) fn text(survey: &Survey) -> String {
    let mut out = String::new();
    line(
        &mut out,
        "file",
        &format!("{}, {} bytes", survey.path.display(), survey.size_bytes),
    );
    for (number, slot) in survey.slots.iter().enumerate() {
        line(
            &mut out,
            &format!("role {number}"),
            &role_text(survey, number, slot),
        );
    }
    if let Some(chosen) = &survey.chosen {
        line(&mut out, "geometry", &geometry_text(&chosen.record));
    }
    for (number, slot) in survey.descriptors.iter().enumerate() {
        descriptor_text(&mut out, number, slot);
    }
    for bitmap in &survey.bitmaps {
        line(&mut out, bitmap.name(), &bitmap_text(bitmap));
    }
    for note in &survey.notes {
        line(&mut out, "note", note);
    }
    out
}

fn line(out: &mut String, what: &str, rest: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{what:<13}{rest}");
}

fn role_text(survey: &Survey, number: usize, slot: &Slot) -> String {
    match slot {
        Slot::Valid(record) => format!(
            "valid{}: epoch {}, {}, descriptor {}, volume {}",
            if holds(survey, record) { ", holds" } else { "" },
            record.epoch.0,
            route_text(record.route),
            record.descriptor_slot,
            uuid_text(&record.volume_id),
        ),
        Slot::Invalid => "not valid: no record, or it does not match its checksum".to_owned(),
        Slot::Refused(error) => format!("refused: {error}"),
        Slot::Unread(cause) => format!(
            "cannot be read at byte {}: {cause}",
            map::ROLE_OFFSETS[number]
        ),
    }
}

fn holds(survey: &Survey, record: &RoleRecord) -> bool {
    survey.chosen.is_some_and(|chosen| chosen.record == *record)
}

fn geometry_text(record: &RoleRecord) -> String {
    let geometry = record.geometry;
    format!(
        "{} ({} bytes), {} regions of {}, written in blocks of {} bytes",
        size_text(geometry.size_bytes()),
        geometry.size_bytes(),
        geometry.regions(),
        size_text(geometry.region_bytes()),
        record.block.bytes()
    )
}

fn descriptor_text(out: &mut String, number: usize, slot: &DescriptorSlot) {
    let name = format!("descriptor {number}");
    let state = match (slot.verified, slot.named_by.is_empty()) {
        (true, _) => "valid",
        (false, true) => "not in use",
        (false, false) => "does not match its checksum",
    };
    let Some(descriptor) = &slot.descriptor else {
        line(out, &name, state);
        return;
    };
    line(
        out,
        &name,
        &format!(
            "{state}: volume {} ({}), {} bytes, blocks of {} (physical {})",
            descriptor.volume,
            descriptor.volume_id,
            descriptor.size_bytes,
            descriptor.logical_block_bytes,
            descriptor.physical_block_bytes
        ),
    );
    for side in [Side::Source, Side::Target] {
        for extent in descriptor
            .leg(side.into())
            .into_iter()
            .flat_map(|leg| &leg.extents)
        {
            line(out, &format!("  {side}"), &extent_text(extent));
        }
    }
}

fn extent_text(extent: &Extent) -> String {
    let mut text = format!(
        "{}, {} bytes from byte {}",
        extent.path.display(),
        extent.length_bytes,
        extent.start_bytes
    );
    for (what, value) in [
        ("wwn", &extent.identity.wwn),
        ("serial", &extent.identity.serial),
    ] {
        if let Some(value) = value {
            text.push_str(&format!(", {what} {value}"));
        }
    }
    text
}

fn bitmap_text(bitmap: &Bitmap) -> String {
    let mut shown = Runs::new(RANGES_SHOWN_MAX);
    bitmap
        .regions
        .kept()
        .iter()
        .flat_map(|run| run.first..run.first + run.count)
        .for_each(|region| shown.add(region));
    let mut text = format!("{} regions, {}", shown.indexes(), size_text(bitmap.bytes));
    if shown.indexes() > 0 {
        text.push_str(&format!(": {shown}"));
    }
    if bitmap.damaged.indexes() > 0 {
        text.push_str(&format!("; damaged sectors: {}", bitmap.damaged));
    }
    text
}

/// The dump as JSON, one object a line.
pub(crate) fn json(survey: &Survey) -> String {
    let mut records = vec![json!({
        "type": "file",
        "schema": JSON_SCHEMA,
        "path": survey.path.display().to_string(),
        "size_bytes": survey.size_bytes,
        "whole": survey.is_whole(),
        "problems": survey.problems,
        "notes": survey.notes,
    })];
    records.extend(
        survey
            .slots
            .iter()
            .enumerate()
            .map(|(number, slot)| role_json(survey, number, slot)),
    );
    if let Some(chosen) = &survey.chosen {
        let geometry = chosen.record.geometry;
        records.push(json!({
            "type": "geometry",
            "schema": JSON_SCHEMA,
            "size_bytes": geometry.size_bytes(),
            "region_bytes": geometry.region_bytes(),
            "regions": geometry.regions(),
            "block_bytes": chosen.record.block.bytes(),
        }));
    }
    records.extend(
        survey
            .descriptors
            .iter()
            .enumerate()
            .map(|(number, slot)| descriptor_json(number, slot)),
    );
    records.extend(survey.bitmaps.iter().map(bitmap_json));
    records.iter().map(|record| format!("{record}\n")).collect()
}

fn role_json(survey: &Survey, number: usize, slot: &Slot) -> Value {
    let base = |state: &str, problem: Option<String>| json!({ "type": "role", "schema": JSON_SCHEMA, "slot": number, "state": state, "problem": problem });
    match slot {
        Slot::Valid(record) => {
            let mut value = base("valid", None);
            value["holds"] = json!(holds(survey, record));
            value["epoch"] = json!(record.epoch.0);
            value["route"] = json!(migration_proto::route::Route::from(record.route));
            value["descriptor_slot"] = json!(record.descriptor_slot);
            value["volume_id"] = json!(uuid_text(&record.volume_id));
            value
        }
        Slot::Invalid => base("invalid", None),
        Slot::Refused(error) => base("refused", Some(error.to_string())),
        Slot::Unread(cause) => base("unread", Some(cause.clone())),
    }
}

fn descriptor_json(number: usize, slot: &DescriptorSlot) -> Value {
    json!({
        "type": "descriptor",
        "schema": JSON_SCHEMA,
        "slot": number,
        "named_by_roles": slot.named_by,
        "verified": slot.verified,
        "descriptor": slot.descriptor.as_ref().map(|descriptor: &Descriptor| json!(descriptor)),
    })
}

fn bitmap_json(bitmap: &Bitmap) -> Value {
    json!({
        "type": "bitmap",
        "schema": JSON_SCHEMA,
        "area": bitmap.name(),
        "regions": bitmap.regions.indexes(),
        "bytes": bitmap.bytes,
        "ranges": bitmap.regions.kept().iter().map(range_json).collect::<Vec<_>>(),
        "damaged_sectors": bitmap.damaged.kept().iter().map(range_json).collect::<Vec<_>>(),
    })
}

fn range_json(run: &Run) -> Value {
    json!({ "first": run.first, "count": run.count })
}

fn uuid_text(id: &[u8; 16]) -> String {
    let digits: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    [
        &digits[..8],
        &digits[8..12],
        &digits[12..16],
        &digits[16..20],
        &digits[20..],
    ]
    .join("-")
}
