//! What may become of a packet: a closed set, each with its counter.

use crate::abi::COUNTERS;

macro_rules! closed_set {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// Every member, in the order of its counter.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The label in metrics and JSON.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

closed_set! {
    /// The types that the kernel answers.
    QueryType {
        /// An IPv4 address (RFC 1035).
        A = "A",
        /// An IPv6 address (RFC 3596).
        Aaaa = "AAAA",
    }
}

closed_set! {
    /// What kind of answer was given.
    Outcome {
        /// Records of the type asked for.
        Records = "NOERROR",
        /// The name exists without that type (RFC 2308, section 2.2).
        NoData = "NODATA",
        /// The name does not exist (RFC 2308, section 2.1).
        NxDomain = "NXDOMAIN",
    }
}

closed_set! {
    /// Why a packet goes up the stack, untouched.
    PassReason {
        /// Neither IPv4 nor IPv6.
        NotIp = "not_ip",
        /// Not UDP, or UDP behind extension headers.
        NotUdp = "not_udp",
        /// To an address or port that is not served.
        NotServed = "not_served",
        /// To another MAC address than the interface's own.
        OtherHost = "other_host",
        /// Ends before its own lengths say.
        Truncated = "truncated",
        /// A header that contradicts itself: lengths, version, header checksum.
        BadHeader = "bad_header",
        /// A fragment (IPv4).
        Fragment = "fragment",
        /// IPv4 options.
        IpOptions = "ip_options",
        /// A source that nothing can be sent to.
        Source = "source",
        /// The operator has switched the kernel off.
        Disabled = "disabled",
        /// The table does not hold a complete snapshot yet.
        NotReady = "not_ready",
        /// A response.
        Response = "response",
        /// Another opcode than QUERY.
        Opcode = "opcode",
        /// Not exactly one question.
        Questions = "questions",
        /// Records where a query has none, or more than an OPT.
        Sections = "sections",
        /// A name that is no plain sequence of labels.
        Name = "name",
        /// Another class than IN.
        Class = "class",
        /// Another type than A and AAAA.
        Type = "type",
        /// An OPT that is malformed or of another version.
        Edns = "edns",
        /// Bytes after the last record.
        Leftover = "leftover",
        /// A name outside the zones.
        ForeignName = "foreign_name",
        /// A name that the fallback knows more of.
        AskFallback = "ask_fallback",
        /// The answer does not fit what the client takes, or the link.
        TooLarge = "too_large",
        /// The frame's buffer cannot grow by as much, or it has several parts.
        NoRoom = "no_room",
    }
}

closed_set! {
    /// Why a packet was dropped half-written; each is a defect of the program or of a driver.
    AbortReason {
        /// The resized frame is not as long as was asked for.
        Resized = "resized",
        /// The table changed under a reader in a way that it never should.
        Table = "table",
    }
}

/// What the program did with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Answered in place.
    Answered(QueryType, Outcome),
    /// Left to the kernel's stack.
    Passed(PassReason),
    /// Dropped.
    Aborted(AbortReason),
}

/// A verdict without its particulars: what the driver is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To be sent.
    Answered,
    /// To be passed up.
    Passed,
    /// To be dropped.
    Aborted,
}

const PASSED: usize = QueryType::ALL.len() * Outcome::ALL.len();
const ABORTED: usize = PASSED + PassReason::ALL.len();
const _: () = assert!(ABORTED + AbortReason::ALL.len() <= COUNTERS);

impl Verdict {
    /// Where its counter stands in a row of [`crate::abi::Counters`].
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Answered(query_type, outcome) => {
                query_type as usize * Outcome::ALL.len() + outcome as usize
            }
            Self::Passed(reason) => PASSED + reason as usize,
            Self::Aborted(reason) => ABORTED + reason as usize,
        }
    }

    /// What kind of verdict has this [`Self::index`].
    #[inline(always)]
    #[must_use]
    pub const fn kind(index: usize) -> Kind {
        if index < PASSED {
            Kind::Answered
        } else if index < ABORTED {
            Kind::Passed
        } else {
            Kind::Aborted
        }
    }

    /// Every verdict, in the order of its counter.
    pub fn all() -> impl Iterator<Item = Self> {
        QueryType::ALL
            .iter()
            .flat_map(|&query_type| {
                Outcome::ALL
                    .iter()
                    .map(move |&outcome| Self::Answered(query_type, outcome))
            })
            .chain(PassReason::ALL.iter().map(|&reason| Self::Passed(reason)))
            .chain(AbortReason::ALL.iter().map(|&reason| Self::Aborted(reason)))
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, Verdict};

    #[test]
    fn each_verdict_has_a_counter_of_its_own() {
        for (index, verdict) in Verdict::all().enumerate() {
            assert_eq!(verdict.index(), index, "{verdict:?}");
            let kind = match verdict {
                Verdict::Answered(..) => Kind::Answered,
                Verdict::Passed(_) => Kind::Passed,
                Verdict::Aborted(_) => Kind::Aborted,
            };
            assert_eq!(Verdict::kind(index), kind, "{verdict:?}");
        }
    }
}
