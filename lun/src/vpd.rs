//! SCSI vital product data pages, as sysfs gives them (`device/vpd_pg80`, `device/vpd_pg83`).
//!
//! Layouts: SPC-5, 7.7.16 (unit serial number) and 7.7.6 (device identification). All numbers are
//! big-endian.

const HEADER_BYTES: usize = 4;
const DESCRIPTOR_HEADER_BYTES: usize = 4;
const ASSOCIATION_LOGICAL_UNIT: u8 = 0;
const DESIGNATOR_T10: u8 = 1;
const DESIGNATOR_EUI: u8 = 2;
const DESIGNATOR_NAA: u8 = 3;
const DESIGNATOR_SCSI_NAME: u8 = 8;

/// The unit serial number of page 0x80, without padding. `None`: not such a page, or no number in
/// it.
pub(crate) fn serial(page: &[u8]) -> Option<String> {
    printable(payload(page, 0x80)?)
}

/// The name of the logical unit in page 0x83, spelled as in the kernel's `wwid` file: `naa.`,
/// `eui.`, `t10.` or the SCSI name. NAA ranks before EUI-64, then the SCSI name, then T10; of
/// several of one type the longest counts.
///
/// Designators of the port or the target do not name the LUN and are skipped.
pub(crate) fn wwn(page: &[u8]) -> Option<String> {
    let mut rest = payload(page, 0x83)?;
    let mut best: Option<(u8, usize, String)> = None;
    while rest.len() >= DESCRIPTOR_HEADER_BYTES {
        let length = usize::from(rest[3]);
        let Some(value) = rest.get(DESCRIPTOR_HEADER_BYTES..DESCRIPTOR_HEADER_BYTES + length)
        else {
            break;
        };
        if (rest[1] >> 4) & 0x3 == ASSOCIATION_LOGICAL_UNIT
            && let Some((rank, name)) = designator(rest[1] & 0xf, value)
            && best
                .as_ref()
                .is_none_or(|(old_rank, old_length, _)| (rank, length) > (*old_rank, *old_length))
        {
            best = Some((rank, length, name));
        }
        rest = &rest[DESCRIPTOR_HEADER_BYTES + length..];
    }
    best.map(|(_, _, name)| name)
}

fn designator(designator_type: u8, value: &[u8]) -> Option<(u8, String)> {
    match designator_type {
        DESIGNATOR_NAA if matches!(value.len(), 8 | 16) => Some((4, format!("naa.{}", hex(value)))),
        DESIGNATOR_EUI if matches!(value.len(), 8 | 12 | 16) => {
            Some((3, format!("eui.{}", hex(value))))
        }
        DESIGNATOR_SCSI_NAME => printable(value).map(|name| (2, name)),
        DESIGNATOR_T10 => printable(value).map(|name| (1, format!("t10.{name}"))),
        _ => None,
    }
}

/// The bytes of the page after its header. A length in the header that reaches beyond the page is
/// limited to the page.
fn payload(page: &[u8], code: u8) -> Option<&[u8]> {
    if page.len() < HEADER_BYTES || page[1] != code {
        return None;
    }
    let length = usize::from(u16::from_be_bytes([page[2], page[3]]));
    let body = &page[HEADER_BYTES..];
    Some(&body[..length.min(body.len())])
}

fn printable(bytes: &[u8]) -> Option<String> {
    crate::sysfs::clean_text(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(code: u8, body: &[u8]) -> Vec<u8> {
        let mut page = vec![0, code, 0, 0];
        page[2..4].copy_from_slice(&u16::try_from(body.len()).unwrap().to_be_bytes());
        page.extend_from_slice(body);
        page
    }

    fn designation(association: u8, designator_type: u8, value: &[u8]) -> Vec<u8> {
        let mut out = vec![
            1,
            (association << 4) | designator_type,
            0,
            u8::try_from(value.len()).unwrap(),
        ];
        out.extend_from_slice(value);
        out
    }

    #[test]
    fn serial_page_gives_its_text_without_padding() {
        assert_eq!(
            serial(&page(0x80, b"  AB12 CD \0\0")).as_deref(),
            Some("AB12 CD")
        );
    }

    #[test]
    fn serial_page_that_is_empty_short_or_another_gives_nothing() {
        for bytes in [
            &b""[..],
            b"\0\x80",
            &page(0x80, b"    "),
            &page(0x83, b"AB12"),
        ] {
            assert_eq!(serial(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn serial_page_with_a_length_beyond_its_end_is_cut_there() {
        assert_eq!(
            serial(&[0, 0x80, 0xff, 0xff, b'x', b'y']).as_deref(),
            Some("xy")
        );
    }

    #[test]
    fn name_of_the_logical_unit_is_taken_by_rank_and_never_a_port() {
        let naa: [u8; 16] = [0x60, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        let naa_name = "naa.600102030405060708090a0b0c0d0e0f";
        let table: [(Vec<Vec<u8>>, Option<&str>); 7] = [
            (
                vec![
                    designation(0, 1, b"VENDOR  disk 1 "),
                    designation(0, 3, &naa),
                ],
                Some(naa_name),
            ),
            (
                vec![designation(0, 3, &naa[..8]), designation(0, 3, &naa)],
                Some(naa_name),
            ),
            (
                vec![designation(0, 3, &naa[..8]), designation(0, 2, &naa)],
                Some("naa.6001020304050607"),
            ),
            (
                vec![designation(1, 3, &naa), designation(0, 2, &naa[..8])],
                Some("eui.6001020304050607"),
            ),
            (
                vec![designation(0, 8, b"iqn.x:1\0\0"), designation(0, 1, b"V")],
                Some("iqn.x:1"),
            ),
            (
                vec![designation(0, 1, b"VENDOR  disk 1 ")],
                Some("t10.VENDOR  disk 1"),
            ),
            (
                vec![designation(1, 3, &naa), designation(0, 3, &naa[..5])],
                None,
            ),
        ];
        for (designations, expected) in table {
            let bytes = page(0x83, &designations.concat());
            assert_eq!(wwn(&bytes).as_deref(), expected, "{bytes:?}");
        }
    }

    #[test]
    fn identification_page_cut_anywhere_does_not_panic() {
        let whole = page(
            0x83,
            &[
                designation(0, 1, b"VENDOR disk"),
                designation(0, 3, &[0x60; 16]),
            ]
            .concat(),
        );
        for length in 0..whole.len() {
            let _ = wwn(&whole[..length]);
        }
        assert_eq!(
            wwn(&whole[..whole.len() - 1]).as_deref(),
            Some("t10.VENDOR disk")
        );
    }
}
