//! Compares `ublk::abi` with the `<linux/ublk_cmd.h>` that the C compiler sees.
//!
//! A small C program prints the header's sizes, offsets and constants. With
//! `SHUNT_UBLK_INCLUDE=DIRECTORY` the header is `DIRECTORY/linux/ublk_cmd.h`, and every value must
//! be in it. Without the variable the system's header is used, which may be old: then the values
//! that it has are compared, and the values that it lacks are printed.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of a test; a failure here fails the test"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::mem::{offset_of, size_of};
use std::path::{Path, PathBuf};
use std::process::Command;

use ublk_target::ublk::abi::{self, *};

/// The variable with the directory of a newer header than the system's.
const INCLUDE_VARIABLE: &str = "SHUNT_UBLK_INCLUDE";

/// One value to compare.
struct Probe {
    /// A macro that is defined in every header with this value.
    guard: String,
    /// The value in C.
    expression: String,
    /// The value here; negative numbers as two's complement.
    expected: u64,
}

/// Constants that have the header's own names.
macro_rules! constants {
    ($($name:ident)*) => {
        vec![$(Probe {
            guard: stringify!($name).into(),
            expression: stringify!($name).into(),
            expected: abi::$name as u64,
        },)*]
    };
}

/// The size of a structure, with its name in C. Headers with the structure define the macro
/// `$guard`.
macro_rules! size {
    ($guard:literal, $c:literal, $rust:ident) => {
        Probe {
            guard: $guard.into(),
            expression: concat!("sizeof(struct ", $c, ")").into(),
            expected: size_of::<$rust>() as u64,
        }
    };
}

/// The offsets of a structure's members, each with its name in C. Headers with the member define
/// the macro of its group.
macro_rules! offsets {
    ($probes:ident, $c:literal, $rust:ident, $($guard:literal: $($c_member:literal $member:ident),+;)+) => {
        $($($probes.push(Probe {
            guard: $guard.into(),
            expression: concat!("offsetof(struct ", $c, ", ", $c_member, ")").into(),
            expected: offset_of!($rust, $member) as u64,
        });)+)+
    };
}

#[test]
fn structures_and_constants_are_those_of_the_header() {
    let directory = std::env::var_os(INCLUDE_VARIABLE).map(PathBuf::from);
    let probes: Vec<Probe> = features()
        .chain(constants())
        .chain(sizes())
        .chain(offsets())
        .collect();
    let Some(values) = header_values(directory.as_deref(), &probes) else {
        assert!(
            directory.is_none(),
            "{INCLUDE_VARIABLE} is set, but its header can not be compiled"
        );
        println!("SKIPPED: no C compiler or no <linux/ublk_cmd.h> here");
        return;
    };
    let mut missing = Vec::new();
    let mut wrong = Vec::new();
    for probe in &probes {
        match values.get(&probe.expression) {
            None => missing.push(probe.expression.as_str()),
            Some(value) if *value == probe.expected => {}
            Some(value) => wrong.push(format!(
                "{}: header {value:#x}, here {:#x}",
                probe.expression, probe.expected
            )),
        }
    }
    println!(
        "{} values equal to the header's",
        probes.len() - missing.len() - wrong.len()
    );
    println!(
        "{} not comparable, this header is older: {missing:?}",
        missing.len()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(
        directory.is_none() || missing.is_empty(),
        "{INCLUDE_VARIABLE} names an old header: {missing:?}"
    );
}

fn features() -> impl Iterator<Item = Probe> {
    Features::TABLE.iter().map(|(flag, name)| Probe {
        guard: format!("UBLK_F_{name}"),
        expression: format!("UBLK_F_{name}"),
        expected: flag.bits(),
    })
}

fn constants() -> Vec<Probe> {
    constants! {
        UBLK_U_CMD_GET_QUEUE_AFFINITY UBLK_U_CMD_GET_DEV_INFO UBLK_U_CMD_ADD_DEV UBLK_U_CMD_DEL_DEV
        UBLK_U_CMD_START_DEV UBLK_U_CMD_STOP_DEV UBLK_U_CMD_SET_PARAMS UBLK_U_CMD_GET_PARAMS
        UBLK_U_CMD_START_USER_RECOVERY UBLK_U_CMD_END_USER_RECOVERY UBLK_U_CMD_GET_DEV_INFO2
        UBLK_U_CMD_GET_FEATURES UBLK_U_CMD_DEL_DEV_ASYNC UBLK_U_CMD_UPDATE_SIZE UBLK_U_CMD_QUIESCE_DEV
        UBLK_U_CMD_TRY_STOP_DEV UBLK_U_CMD_REG_BUF UBLK_U_CMD_UNREG_BUF UBLK_FEATURES_LEN
        UBLK_U_IO_FETCH_REQ UBLK_U_IO_COMMIT_AND_FETCH_REQ UBLK_U_IO_NEED_GET_DATA
        UBLK_U_IO_REGISTER_IO_BUF UBLK_U_IO_UNREGISTER_IO_BUF UBLK_U_IO_PREP_IO_CMDS
        UBLK_U_IO_COMMIT_IO_CMDS UBLK_U_IO_FETCH_IO_CMDS
        UBLK_IO_RES_OK UBLK_IO_RES_NEED_GET_DATA UBLK_IO_RES_ABORT
        UBLKSRV_CMD_BUF_OFFSET UBLKSRV_IO_BUF_OFFSET UBLK_MAX_QUEUE_DEPTH UBLK_IO_BUF_BITS UBLK_TAG_OFF
        UBLK_TAG_BITS UBLK_QID_OFF UBLK_QID_BITS UBLK_MAX_NR_QUEUES
        UBLK_S_DEV_DEAD UBLK_S_DEV_LIVE UBLK_S_DEV_QUIESCED UBLK_S_DEV_FAIL_IO
        UBLK_IO_OP_READ UBLK_IO_OP_WRITE UBLK_IO_OP_FLUSH UBLK_IO_OP_DISCARD UBLK_IO_OP_WRITE_SAME
        UBLK_IO_OP_WRITE_ZEROES UBLK_IO_OP_ZONE_OPEN UBLK_IO_OP_ZONE_CLOSE UBLK_IO_OP_ZONE_FINISH
        UBLK_IO_OP_ZONE_APPEND UBLK_IO_OP_ZONE_RESET_ALL UBLK_IO_OP_ZONE_RESET UBLK_IO_OP_REPORT_ZONES
        UBLK_IO_F_FAILFAST_DEV UBLK_IO_F_FAILFAST_TRANSPORT UBLK_IO_F_FAILFAST_DRIVER UBLK_IO_F_META
        UBLK_IO_F_FUA UBLK_IO_F_NOUNMAP UBLK_IO_F_SWAP UBLK_IO_F_NEED_REG_BUF UBLK_IO_F_INTEGRITY
        UBLK_IO_F_SHMEM_ZC
        UBLK_ATTR_READ_ONLY UBLK_ATTR_ROTATIONAL UBLK_ATTR_VOLATILE_CACHE UBLK_ATTR_FUA
        UBLK_PARAM_TYPE_BASIC UBLK_PARAM_TYPE_DISCARD UBLK_PARAM_TYPE_DEVT UBLK_PARAM_TYPE_ZONED
        UBLK_PARAM_TYPE_DMA_ALIGN UBLK_PARAM_TYPE_SEGMENT UBLK_PARAM_TYPE_INTEGRITY
        UBLK_MIN_SEGMENT_SIZE UBLK_AUTO_BUF_REG_FALLBACK
    }
}

fn sizes() -> Vec<Probe> {
    vec![
        size!("UBLK_CMD_ADD_DEV", "ublksrv_ctrl_cmd", CtrlCmd),
        size!("UBLK_CMD_ADD_DEV", "ublksrv_ctrl_dev_info", CtrlDevInfo),
        size!("UBLK_IO_FETCH_REQ", "ublksrv_io_cmd", IoCmd),
        size!("UBLK_IO_FETCH_REQ", "ublksrv_io_desc", IoDesc),
        size!("UBLK_U_IO_PREP_IO_CMDS", "ublk_batch_io", BatchIo),
        size!(
            "UBLK_AUTO_BUF_REG_FALLBACK",
            "ublk_auto_buf_reg",
            AutoBufReg
        ),
        size!("UBLK_PARAM_TYPE_BASIC", "ublk_param_basic", ParamBasic),
        size!(
            "UBLK_PARAM_TYPE_DISCARD",
            "ublk_param_discard",
            ParamDiscard
        ),
        size!("UBLK_PARAM_TYPE_DEVT", "ublk_param_devt", ParamDevt),
        size!("UBLK_PARAM_TYPE_ZONED", "ublk_param_zoned", ParamZoned),
        size!(
            "UBLK_PARAM_TYPE_DMA_ALIGN",
            "ublk_param_dma_align",
            ParamDmaAlign
        ),
        size!(
            "UBLK_PARAM_TYPE_SEGMENT",
            "ublk_param_segment",
            ParamSegment
        ),
        size!(
            "UBLK_PARAM_TYPE_INTEGRITY",
            "ublk_param_integrity",
            ParamIntegrity
        ),
        size!("UBLK_PARAM_TYPE_INTEGRITY", "ublk_params", Params),
    ]
}

fn offsets() -> Vec<Probe> {
    let mut probes = Vec::new();
    offsets!(probes, "ublksrv_ctrl_cmd", CtrlCmd,
        "UBLK_CMD_ADD_DEV": "dev_id" dev_id, "queue_id" queue_id, "len" len, "addr" addr, "data" data;
        "UBLK_CMD_GET_DEV_INFO2": "dev_path_len" dev_path_len, "pad" pad, "reserved" reserved;
    );
    offsets!(probes, "ublksrv_ctrl_dev_info", CtrlDevInfo,
        "UBLK_CMD_ADD_DEV": "nr_hw_queues" nr_hw_queues, "queue_depth" queue_depth, "state" state, "pad0" pad0,
            "max_io_buf_bytes" max_io_buf_bytes, "dev_id" dev_id, "ublksrv_pid" ublksrv_pid, "pad1" pad1,
            "flags" flags, "ublksrv_flags" ublksrv_flags, "reserved1" reserved1, "reserved2" reserved2;
        "UBLK_CMD_GET_DEV_INFO2": "owner_uid" owner_uid, "owner_gid" owner_gid;
    );
    offsets!(probes, "ublksrv_io_cmd", IoCmd,
        "UBLK_IO_FETCH_REQ": "q_id" q_id, "tag" tag, "result" result, "addr" addr;
    );
    offsets!(probes, "ublksrv_io_desc", IoDesc,
        "UBLK_IO_FETCH_REQ": "op_flags" op_flags, "nr_sectors" nr_sectors, "start_sector" start_sector,
            "addr" addr;
    );
    offsets!(probes, "ublk_batch_io", BatchIo,
        "UBLK_U_IO_PREP_IO_CMDS": "q_id" q_id, "flags" flags, "nr_elem" nr_elem, "elem_bytes" elem_bytes,
            "reserved" reserved, "reserved2" reserved2;
    );
    offsets!(probes, "ublk_auto_buf_reg", AutoBufReg,
        "UBLK_AUTO_BUF_REG_FALLBACK": "index" index, "flags" flags, "reserved0" reserved0, "reserved1" reserved1;
    );
    param_offsets(&mut probes);
    probes
}

fn param_offsets(probes: &mut Vec<Probe>) {
    offsets!(probes, "ublk_param_basic", ParamBasic,
        "UBLK_PARAM_TYPE_BASIC": "attrs" attrs, "logical_bs_shift" logical_bs_shift,
            "physical_bs_shift" physical_bs_shift, "io_opt_shift" io_opt_shift, "io_min_shift" io_min_shift,
            "max_sectors" max_sectors, "chunk_sectors" chunk_sectors, "dev_sectors" dev_sectors,
            "virt_boundary_mask" virt_boundary_mask;
    );
    offsets!(probes, "ublk_param_discard", ParamDiscard,
        "UBLK_PARAM_TYPE_DISCARD": "discard_alignment" discard_alignment,
            "discard_granularity" discard_granularity, "max_discard_sectors" max_discard_sectors,
            "max_write_zeroes_sectors" max_write_zeroes_sectors,
            "max_discard_segments" max_discard_segments, "reserved0" reserved0;
    );
    offsets!(probes, "ublk_param_devt", ParamDevt,
        "UBLK_PARAM_TYPE_DEVT": "char_major" char_major, "char_minor" char_minor, "disk_major" disk_major,
            "disk_minor" disk_minor;
    );
    offsets!(probes, "ublk_param_zoned", ParamZoned,
        "UBLK_PARAM_TYPE_ZONED": "max_open_zones" max_open_zones, "max_active_zones" max_active_zones,
            "max_zone_append_sectors" max_zone_append_sectors, "reserved" reserved;
    );
    offsets!(probes, "ublk_param_dma_align", ParamDmaAlign,
        "UBLK_PARAM_TYPE_DMA_ALIGN": "alignment" alignment, "pad" pad;
    );
    offsets!(probes, "ublk_param_segment", ParamSegment,
        "UBLK_PARAM_TYPE_SEGMENT": "seg_boundary_mask" seg_boundary_mask, "max_segment_size" max_segment_size,
            "max_segments" max_segments, "pad" pad;
    );
    offsets!(probes, "ublk_param_integrity", ParamIntegrity,
        "UBLK_PARAM_TYPE_INTEGRITY": "flags" flags, "max_integrity_segments" max_integrity_segments,
            "interval_exp" interval_exp, "metadata_size" metadata_size, "pi_offset" pi_offset,
            "csum_type" csum_type, "tag_size" tag_size, "pad" pad;
    );
    offsets!(probes, "ublk_params", Params,
        "UBLK_PARAM_TYPE_BASIC": "len" len, "types" types, "basic" basic;
        "UBLK_PARAM_TYPE_DISCARD": "discard" discard;
        "UBLK_PARAM_TYPE_DEVT": "devt" devt;
        "UBLK_PARAM_TYPE_ZONED": "zoned" zoned;
        "UBLK_PARAM_TYPE_DMA_ALIGN": "dma" dma;
        "UBLK_PARAM_TYPE_SEGMENT": "seg" segment;
        "UBLK_PARAM_TYPE_INTEGRITY": "integrity" integrity;
    );
}

/// The header's values by expression; `None` if there is no compiler or no header.
fn header_values(include: Option<&Path>, probes: &[Probe]) -> Option<BTreeMap<String, u64>> {
    let directory = tempfile::tempdir().unwrap();
    let (source, program) = (
        directory.path().join("layout.c"),
        directory.path().join("layout"),
    );
    fs::write(&source, c_program(probes)).unwrap();
    let mut compiler = Command::new("cc");
    if let Some(include) = include {
        compiler.arg("-I").arg(include);
    }
    let compiled = compiler
        .arg("-o")
        .arg(&program)
        .arg(&source)
        .output()
        .ok()?;
    if !compiled.status.success() {
        println!("{}", String::from_utf8_lossy(&compiled.stderr));
        return None;
    }
    let output = Command::new(&program).output().unwrap();
    assert!(output.status.success());
    Some(
        String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(value_line)
            .collect(),
    )
}

/// `expression=decimal`.
fn value_line(line: &str) -> (String, u64) {
    let (expression, value) = line.rsplit_once('=').unwrap();
    (expression.into(), value.parse().unwrap())
}

fn c_program(probes: &[Probe]) -> String {
    let mut source = String::from(
        "#include <errno.h>\n#include <stddef.h>\n#include <stdio.h>\n#include <linux/ioctl.h>\n\
         #include <linux/ublk_cmd.h>\nint main(void)\n{\n",
    );
    for Probe {
        guard, expression, ..
    } in probes
    {
        writeln!(
            source,
            "#ifdef {guard}\n\tprintf(\"%s=%llu\\n\", \"{expression}\", (unsigned long long)({expression}));\n#endif"
        )
        .unwrap();
    }
    source.push_str("\treturn 0;\n}\n");
    source
}
