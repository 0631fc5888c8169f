//! What is measured: packets, and the tables that they meet.

use anyhow::Result;
use hickory_proto::rr::RecordType;
use peak_common::verdict::{Outcome, PassReason, QueryType, Verdict};

use super::table::Services;
use crate::frame::{Asked, Frame};

/// How many names are asked at random, of a table of as many.
pub(crate) const SIZES: [u32; 5] = [1, 1 << 10, 1 << 14, 1 << 17, 1 << 20];
/// What is asked for one name only.
const HOT: &[u32] = &[1];
/// What is also asked for names at random.
const RANDOM: &[u32] = &[1, 1 << 10, 1 << 14, 1 << 17];

/// The program of which the cases are: the real one, after the prologue that makes a frame a query again.
const WHOLE: &str = "restored";

/// One row: a packet, what it meets, and what shall become of it.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// A label of its figures.
    pub(crate) label: Option<(&'static str, &'static str)>,
    pub(crate) program: &'static str,
    pub(crate) services: Services,
    /// The query. The 8 digits of its name vary.
    pub(crate) asked: Asked,
    /// What is done to the query's frame.
    pub(crate) altered: fn(&mut Frame),
    /// Whether the frame has room at its head only.
    pub(crate) by_head: bool,
    pub(crate) state: State,
    pub(crate) sizes: &'static [u32],
    /// How the packets are counted; `None` where the program counts nothing.
    pub(crate) verdict: Option<Verdict>,
    /// For each of the sizes: what it may cost, and what it should, in nanoseconds where the yardstick costs
    /// [`super::YARDSTICK`].
    pub(crate) limits: &'static [Limits],
}

/// A gate and an aim.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) names: u32,
    pub(crate) gate: f64,
    pub(crate) aim: f64,
}

/// What the table's flags say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It answers.
    Ready,
    /// The operator has switched it off.
    Disabled,
    /// Not all names have been written yet.
    Incomplete,
}

/// 40 bytes on the wire.
pub(crate) const STORED: &str = "web00000000.workload.svc.cluster.local.";
const MISSING: &str = "ask00000000.workload.svc.cluster.local.";
const FOREIGN: &str = "www00000000.services.example.com.";
/// 100 bytes on the wire.
const STORED_100: &str = "web00000000-of-a-team-that-likes-to-say-all-in-the-name-it-give.\
                          team-of-workload.svc.cluster.local.";
/// 250 bytes on the wire, in a zone of its own.
const STORED_250: &str = "web00000000-of-a-team-that-likes-to-say-all-in-the-name-it-give.\
                          a-namespace-which-is-called-after-the-team-and-what-it-is-for-0.svc.\
                          a-cluster-that-is-one-of-so-many-that-its-number-tells-them-apa.\
                          from-all-others-of-our-regions-by-the-sea-0001.local.";
/// Where the digits begin, after the first label's length.
pub(crate) const DIGITS: usize = 4;

const ASKED: Asked = Asked {
    name: STORED,
    query_type: RecordType::AAAA,
    edns: false,
    v4: false,
    tagged: false,
};

/// A hit; the other cases differ from it.
pub(crate) const PLAIN: Case = Case {
    name: "aaaa_hit",
    label: None,
    program: WHOLE,
    services: Services::V6,
    asked: ASKED,
    altered: |_| (),
    by_head: false,
    state: State::Ready,
    sizes: RANDOM,
    verdict: Some(Verdict::Answered(QueryType::Aaaa, Outcome::Records)),
    limits: &[],
};

/// Another name that is asked.
const fn of(name: &'static str) -> Asked {
    Asked { name, ..ASKED }
}

/// A gate and an aim for one name.
const fn hot(gate: f64, aim: f64) -> Limits {
    Limits {
        names: 1,
        gate,
        aim,
    }
}

pub(crate) const ANSWERS: &[Case] = &[
    Case {
        sizes: &SIZES,
        limits: &[
            hot(50.0, 35.0),
            Limits {
                names: 1 << 14,
                gate: 110.0,
                aim: 60.0,
            },
            Limits {
                names: 1 << 17,
                gate: 250.0,
                aim: 80.0,
            },
        ],
        ..PLAIN
    },
    Case {
        name: "hash_map",
        program: "hash_map",
        verdict: None,
        ..PLAIN
    },
    Case {
        name: "aaaa_hit_opt",
        asked: Asked {
            edns: true,
            ..ASKED
        },
        limits: &[hot(65.0, 45.0)],
        ..PLAIN
    },
    Case {
        name: "aaaa_hit_grown_by_head",
        by_head: true,
        ..PLAIN
    },
    Case {
        name: "aaaa_hit_ipv4",
        asked: Asked { v4: true, ..ASKED },
        ..PLAIN
    },
    Case {
        name: "aaaa_hit_vlan",
        asked: Asked {
            tagged: true,
            ..ASKED
        },
        ..PLAIN
    },
    Case {
        name: "nodata",
        asked: Asked {
            query_type: RecordType::A,
            ..ASKED
        },
        verdict: Some(Verdict::Answered(QueryType::A, Outcome::NoData)),
        limits: &[hot(90.0, 55.0)],
        ..PLAIN
    },
    Case {
        name: "nxdomain",
        asked: of(MISSING),
        sizes: &SIZES,
        verdict: Some(Verdict::Answered(QueryType::Aaaa, Outcome::NxDomain)),
        limits: &[hot(90.0, 55.0)],
        ..PLAIN
    },
    Case {
        name: "a_hit",
        services: Services::Dual,
        asked: Asked {
            query_type: RecordType::A,
            ..ASKED
        },
        verdict: Some(Verdict::Answered(QueryType::A, Outcome::Records)),
        ..PLAIN
    },
    Case {
        name: "aaaa_8_records",
        services: Services::Several(8),
        limits: &[hot(90.0, 65.0)],
        ..PLAIN
    },
    Case {
        name: "aaaa_16_records",
        services: Services::Several(16),
        ..PLAIN
    },
    Case {
        name: "aaaa_hit_name_of_100",
        services: Services::Long(STORED_100),
        asked: of(STORED_100),
        ..PLAIN
    },
    Case {
        name: "aaaa_hit_name_of_250",
        services: Services::Long(STORED_250),
        asked: of(STORED_250),
        ..PLAIN
    },
];

/// A packet that is passed on for this reason, after what was done to the query's frame.
const fn pass(reason: PassReason, altered: fn(&mut Frame)) -> Case {
    Case {
        name: "pass",
        label: Some(("reason", reason.as_str())),
        altered,
        services: Services::Special,
        sizes: HOT,
        verdict: Some(Verdict::Passed(reason)),
        ..PLAIN
    }
}

/// A name outside the zones.
pub(crate) const FOREIGN_NAME: Case = Case {
    sizes: &SIZES,
    services: Services::V6,
    asked: of(FOREIGN),
    limits: &[hot(45.0, 30.0)],
    ..pass(PassReason::ForeignName, |_| ())
};

/// A packet that is passed on for each reason. `no_room` is not among them: a page is what BPF_PROG_TEST_RUN gives each frame, of
/// which neither end is ever full before the other has room.
pub(crate) const PASSES: &[Case] = &[
    FOREIGN_NAME,
    Case {
        services: Services::V6,
        limits: &[hot(12.0, 8.0)],
        // TCP.
        ..pass(PassReason::NotUdp, |frame| frame.bytes[frame.ip + 6] = 6)
    },
    // ARP.
    pass(PassReason::NotIp, |frame| {
        frame.bytes[frame.ip - 2..frame.ip].copy_from_slice(&[8, 6]);
    }),
    // To port 5353.
    pass(PassReason::NotServed, |frame| {
        frame.bytes[frame.udp + 2..frame.udp + 4].copy_from_slice(&5353_u16.to_be_bytes());
    }),
    pass(PassReason::OtherHost, |frame| frame.bytes[5] = 9),
    pass(PassReason::Truncated, |frame| {
        frame.bytes.truncate(frame.bytes.len() - 4);
    }),
    // The UDP header's length.
    pass(PassReason::BadHeader, |frame| {
        frame.bytes[frame.udp + 5] -= 1
    }),
    Case {
        asked: Asked { v4: true, ..ASKED },
        // More fragments.
        ..pass(PassReason::Fragment, |frame| {
            frame.bytes[frame.ip + 6] = 0x20
        })
    },
    Case {
        asked: Asked { v4: true, ..ASKED },
        ..pass(PassReason::IpOptions, |frame| frame.bytes[frame.ip] = 0x46)
    },
    // From port 0.
    pass(PassReason::Source, |frame| {
        frame.bytes[frame.udp..frame.udp + 2].fill(0);
    }),
    Case {
        state: State::Disabled,
        ..pass(PassReason::Disabled, |_| ())
    },
    Case {
        state: State::Incomplete,
        ..pass(PassReason::NotReady, |_| ())
    },
    pass(PassReason::Response, |frame| header(frame)[2] |= 0x80),
    // NOTIFY.
    pass(PassReason::Opcode, |frame| header(frame)[2] |= 4 << 3),
    pass(PassReason::Questions, |frame| header(frame)[5] = 2),
    pass(PassReason::Sections, |frame| header(frame)[7] = 1),
    // A label of 64 bytes.
    pass(PassReason::Name, |frame| {
        let label = frame.name();
        frame.bytes[label] = 64;
    }),
    // CHAOS.
    pass(PassReason::Class, |frame| {
        if let Some(class) = frame.bytes.last_mut() {
            *class = 3;
        }
    }),
    Case {
        asked: Asked {
            query_type: RecordType::TXT,
            ..ASKED
        },
        ..pass(PassReason::Type, |_| ())
    },
    Case {
        asked: Asked {
            edns: true,
            ..ASKED
        },
        // Version 1.
        ..pass(PassReason::Edns, |frame| {
            let version = frame.bytes.len() - 5;
            frame.bytes[version] = 1;
        })
    },
    pass(PassReason::Leftover, |frame| {
        frame.bytes.extend([0; 4]);
    }),
    Case {
        asked: of("ext00000000.workload.svc.cluster.local."),
        ..pass(PassReason::AskFallback, |_| ())
    },
    Case {
        asked: of("big00000000.workload.svc.cluster.local."),
        ..pass(PassReason::TooLarge, |_| ())
    },
];

/// The message's header.
fn header(frame: &mut Frame) -> &mut [u8] {
    let at = frame.message();
    &mut frame.bytes[at..at + 12]
}

impl Case {
    /// The query's frame, and where its digits are.
    pub(crate) fn frame(&self) -> Result<(Vec<u8>, usize)> {
        let mut frame = self.asked.frame()?;
        let digits = frame.name() + DIGITS;
        (self.altered)(&mut frame);
        Ok((frame.bytes, digits))
    }

    /// What it may cost where so many names are asked.
    pub(crate) fn limits(&self, names: u32) -> Option<Limits> {
        let limits = self.limits.iter().copied();
        limits.into_iter().find(|limits| limits.names == names)
    }

    /// Its name, and what tells it from others of that name.
    pub(crate) fn title(&self) -> String {
        match self.label {
            Some((_, label)) => format!("{} {label}", self.name),
            None => self.name.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_as_long_as_is_said() -> Result<()> {
        for (name, length) in [(STORED, 40), (STORED_100, 100), (STORED_250, 250)] {
            let frame = of(name).frame()?;
            // Type and class follow.
            assert_eq!(frame.bytes.len() - 4 - frame.name(), length, "{name}");
        }
        Ok(())
    }

    #[test]
    fn each_reason_to_pass_a_packet_has_one() {
        let reasons: BTreeSet<_> = PASSES.iter().filter_map(|case| case.verdict).collect();
        let all = PassReason::ALL.iter().copied();
        let wanted = all.filter(|&reason| reason != PassReason::NoRoom);
        assert_eq!(reasons, wanted.map(Verdict::Passed).collect());
    }
}
