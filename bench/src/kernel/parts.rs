//! Where the nanoseconds go: a hit stage by stage, and what its steps cost at the least.

use peak_common::{
    bench::{RECORD, STOPPED},
    verdict::{PassReason, Verdict},
};

use super::cases::{Case, PLAIN};

/// How many names are asked: one, and at random where each costs cache lines.
pub(super) const SIZES: &[u32] = &[1, 1 << 17];

/// A stage: a hit that is taken this far, and no further. It costs what it costs more than the one before.
const fn stage(stage: &'static str, program: &'static str) -> Case {
    Case {
        name: "stage",
        label: Some(("stage", stage)),
        program,
        sizes: SIZES,
        verdict: Some(Verdict::Passed(STOPPED)),
        ..PLAIN
    }
}

/// The stages of the program whose checksums are left out, all of them.
pub(super) const STAGES: &[Case] = &[
    stage("enter", "stage_enter"),
    Case {
        // What is a response is left alone right before its name is read.
        altered: |frame| {
            let flags = frame.message() + 2;
            frame.bytes[flags] |= 0x80;
        },
        verdict: Some(Verdict::Passed(PassReason::Response)),
        ..stage("parse", "stage_parse")
    },
    stage("name", "stage_parse"),
    stage("lookup", "stage_look_up"),
    stage("grow", "stage_make_room"),
    Case {
        verdict: PLAIN.verdict,
        ..stage("answer", PLAIN.program)
    },
];

/// The last stage: the whole program costs that more.
pub(super) const LAST: Case = Case {
    verdict: PLAIN.verdict,
    ..stage("checksum", PLAIN.program)
};

/// A step by itself, done for one kind of packet.
const fn floor(step: &'static str, program: &'static str) -> Case {
    Case {
        name: "floor",
        label: Some(("step", step)),
        program,
        sizes: SIZES,
        verdict: None,
        ..PLAIN
    }
}

const HOT: &[u32] = &[1];

/// Steps by themselves; the last one is all of them.
pub(super) const FLOORS: &[Case] = &[
    Case {
        sizes: HOT,
        ..floor("grow", "floor_grow")
    },
    Case {
        sizes: HOT,
        ..floor("hash", "floor_hash")
    },
    floor("lookup_1_line", "floor_look_up_1"),
    floor("lookup_2_lines", "floor_look_up_2"),
    Case {
        sizes: HOT,
        altered: |frame| frame.bytes.extend([0; RECORD]),
        ..floor("write", "floor_write")
    },
    ANSWER,
];

pub(super) const ANSWER: Case = floor("answer", "floor_answer");
