//! Warns about programs that find the same member of a volume group or array on the volume and on
//! its legs.
//!
//! A volume and its legs hold the same bytes, so LVM and mdadm see the same member two or three
//! times, and may use a leg instead of the volume. Until Shunt hides the legs, the operator has to
//! configure these programs to use the volume.

use migration_proto::luns::LunPaths;

use super::checks::open_recorded;
use crate::daemon::context::reading;
use crate::store::VolumeRow;

/// The name that libblkid has for a physical volume of LVM.
const LVM_MEMBER: &str = "LVM2_member";
/// The name that libblkid has for a member of a Linux MD array.
const MD_MEMBER: &str = "linux_raid_member";

/// One warning for each program that will find the contents of the volume more than once. `target`
/// is the leg that is to become a copy. No warnings if the leg in use cannot be read: that is
/// refused elsewhere.
pub(crate) async fn warnings(volume: &VolumeRow, target: Option<&LunPaths>) -> Vec<String> {
    let luns = volume.leg.luns().to_vec();
    let kinds = reading(move || {
        let found = luns.iter().filter_map(|row| {
            let lun = open_recorded(row, &lun::OpenOptions::default()).ok()?;
            lun::signatures(&lun).ok()
        });
        found.flatten().map(|found| found.kind).collect::<Vec<_>>()
    });
    let kinds = kinds.await.unwrap_or_default();
    texts(&volume.name, volume.leg.paths(), target, &kinds)
}

fn texts(
    volume: &str,
    source: &LunPaths,
    target: Option<&LunPaths>,
    kinds: &[String],
) -> Vec<String> {
    let legs = source
        .paths()
        .iter()
        .chain(target.iter().flat_map(|target| target.paths()));
    let legs: Vec<String> = legs.map(|path| path.display().to_string()).collect();
    let has = |kind: &str| kinds.iter().any(|found| found == kind);
    let mut warnings = Vec::new();
    if has(LVM_MEMBER) {
        let reject: Vec<String> = legs.iter().map(|leg| format!("\"r|^{leg}$|\"")).collect();
        let delete: Vec<String> = legs
            .iter()
            .map(|leg| format!("lvmdevices --deldev {leg}"))
            .collect();
        warnings.push(format!(
            "warning: it holds an LVM physical volume, which LVM finds on the volume and on every leg (duplicate PVs), and may \
             activate from a leg. Let LVM use the volume only. In the section devices of /etc/lvm/lvm.conf: \
             global_filter = [ {} ]. Where LVM has a devices file instead: lvmdevices --adddev /dev/shunt/{volume}; {}",
            reject.join(", "),
            delete.join("; ")
        ));
    }
    if has(MD_MEMBER) {
        warnings.push(format!(
            "warning: it holds a member of an MD array, which mdadm finds on the volume and on every leg, and may assemble from \
             a leg. Let mdadm use the volume only. In /etc/mdadm/mdadm.conf: lines DEVICE with /dev/shunt/{volume} and the \
             other members, without {}; and AUTO -all",
            legs.join(" and ")
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_warned_about_with_the_lines_that_hide_every_leg() {
        let path = |text: &str| text.parse::<LunPaths>().unwrap();
        let (source, target) = (path("/dev/a"), path("/dev/b"));
        let texts = |target, kinds: &[&str]| {
            let kinds: Vec<String> = kinds.iter().map(|kind| (*kind).to_owned()).collect();
            texts("db", &source, target, &kinds)
        };
        assert_eq!(texts(Some(&target), &["ext4", "dos"]), Vec::<String>::new());
        let alone = texts(None, &[LVM_MEMBER]).join("");
        assert!(
            alone.contains(r#"global_filter = [ "r|^/dev/a$|" ]"#),
            "{alone}"
        );
        let both = texts(Some(&target), &[LVM_MEMBER]).join("");
        for part in [
            r#"global_filter = [ "r|^/dev/a$|", "r|^/dev/b$|" ]"#,
            "lvmdevices --adddev /dev/shunt/db; lvmdevices --deldev /dev/a; lvmdevices --deldev /dev/b",
        ] {
            assert!(both.contains(part), "{both}");
        }
        let array = texts(Some(&target), &[MD_MEMBER]).join("");
        assert!(array.contains("DEVICE with /dev/shunt/db"), "{array}");
        assert!(array.contains("without /dev/a and /dev/b"), "{array}");
    }
}
