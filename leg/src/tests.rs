use std::fs::{self, File};
use std::os::unix::fs::symlink;

use lun::OpenOptions;
use tempfile::TempDir;

use super::*;

const SIZE: u64 = 1 << 20;

fn files(names: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in names {
        let file = File::create(folder.path().join(name)).unwrap();
        file.set_len(SIZE).unwrap();
    }
    folder
}

fn extent(path: &Path, start_bytes: u64, length_bytes: u64) -> route::Extent {
    route::Extent {
        path: path.to_owned(),
        identity: Lun::open(path, &OpenOptions::default()).unwrap().identity,
        start_bytes,
        length_bytes,
    }
}

fn open(extents: Vec<route::Extent>) -> Result<OpenLeg, LegError> {
    OpenLeg::open(
        &Leg { extents },
        |_, _| Ok(None),
        |path| Lun::open(path, &OpenOptions::default()),
    )
}

#[test]
fn extents_are_laid_end_to_end_and_a_lun_is_opened_once() {
    let folder = files(&["a", "b"]);
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let name = folder.path().join("another-name");
    symlink(&a, &name).unwrap();
    let leg = open(vec![
        extent(&a, 4096, 8192),
        extent(&b, 0, 4096),
        extent(&a, 0, 4096),
        extent(&name, 16384, 4096),
    ]);
    let leg = leg.unwrap();
    assert_eq!(leg.luns.len(), 2);
    let at = |address| {
        let place = leg.layout.locate(address, 1).unwrap();
        (place.lun, place.offset)
    };
    assert_eq!(
        [at(0), at(8192), at(12288), at(16384)],
        [(0, 4096), (1, 0), (0, 0), (0, 16384)]
    );
    let luns: Vec<_> = leg.lun_of_each_extent().map(|lun| &lun.path).collect();
    let [a, b] = [&leg.luns[0].path, &leg.luns[1].path];
    assert_eq!(luns, [a, b, a, a]);
}

#[test]
fn every_extent_names_the_lun_that_was_recorded() {
    let folder = files(&["a", "b"]);
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let mut second = extent(&a, 4096, 4096);
    second.identity = extent(&b, 0, 0).identity;
    let error = open(vec![extent(&a, 0, 4096), second]).unwrap_err();
    let is_mismatch = matches!(error, LegError::Recorded(RecordedError::Mismatch { .. }));
    assert!(is_mismatch, "{error}");

    let recorded = extent(&a, 0, 4096);
    fs::rename(&b, &a).unwrap();
    assert!(open(vec![recorded]).is_err());
}

#[test]
fn an_extent_that_does_not_fit_on_its_lun_is_refused() {
    let folder = files(&["a"]);
    let a = folder.path().join("a");
    open(vec![extent(&a, 0, SIZE)]).unwrap();
    for (start, length) in [(4096, SIZE), (0, SIZE + 1), (u64::MAX, 2)] {
        let error = open(vec![extent(&a, 0, SIZE), extent(&a, start, length)]).unwrap_err();
        assert!(matches!(error, LegError::TooSmall { .. }), "{error}");
    }
}

#[test]
fn a_lun_whose_disk_is_not_known_is_not_opened() {
    let folder = files(&["a"]);
    let leg = Leg {
        extents: vec![extent(&folder.path().join("a"), 0, SIZE)],
    };
    let opened = OpenLeg::open(
        &leg,
        |_, _| Err("another disk".to_owned()),
        |path| panic!("{} is opened", path.display()),
    );
    let error = opened.unwrap_err();
    let is_weak = matches!(error, LegError::Recorded(RecordedError::Weak { .. }));
    assert!(
        is_weak && error.to_string().ends_with("another disk"),
        "{error}"
    );
}
