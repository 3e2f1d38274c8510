//! The order in which regions are copied.

use super::{bench::*, *};

#[test]
fn both_ends_of_the_target_are_copied_last() {
    let mut bench = Bench::new(Side::Source);
    for region in 0..REGIONS as u64 {
        bench.volume.differ(block(2 * region));
    }
    bench.volume.open_copier(COPIER).unwrap();
    assert_eq!(claim(&mut bench, 5), [claimed(5, &[1, 2])]);
    report(&mut bench, &[1]);
    assert_eq!(claim(&mut bench, 6), [claimed(6, &[])], "one is not done");
    report(&mut bench, &[2]);
    assert_eq!(claim(&mut bench, 7), [claimed(7, &[0, 3])]);
    report(&mut bench, &[0, 3]);
    assert_eq!(claim(&mut bench, 8), [claimed(8, &[])]);
    assert!((0..REGIONS).all(|region| bench.is_clean(region)));
}

#[test]
fn what_is_written_all_the_time_is_reserved_before_the_ends() {
    let mut bench = Bench::new(Side::Source);
    bench.volume.differ(block(0));
    bench.volume.differ(block(2));
    bench.volume.open_copier(COPIER).unwrap();
    let effects = bench.request(0, WRITE, 2);
    assert_eq!(effects, [leg(0, Side::Source, WRITE)]);
    assert_eq!(claim(&mut bench, 5), [], "the region is being written");
    assert_eq!(bench.request(1, WRITE, 0), [leg(1, Side::Source, WRITE)]);
    assert_eq!(bench.request(2, WRITE, 3), [], "it waits for the copy");
    bench.leg(1, Side::Source, Ok(()));
    let effects = bench.leg(0, Side::Source, Ok(()));
    assert!(effects.contains(&claimed(5, &[1])), "{effects:?}");
}
