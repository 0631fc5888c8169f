//! Changes under load: the kernel is asked without a pause while its table changes. Every reply is read whole.

mod bench;
mod scale;
mod sockets;
mod swaps;
mod wire;

use std::{
    net::IpAddr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Release},
    },
    time::Duration,
};

use bench::Answer;
use peak_userspace::name::Name;
use wire::Ring;

const ZONE: &str = "cluster.local";
/// How long what goes on in the background may take.
const LIMIT: Duration = Duration::from_secs(20);

/// These tests want the machine's processors for themselves.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn name(text: &str) -> Name {
    Name::parse(text).expect("a name")
}

/// Ends a thread that looks at it, also when its owner panics.
struct EndWhenDropped<'a>(&'a AtomicBool);

impl Drop for EndWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Release);
    }
}

/// The AAAA and A records of a name.
type Addresses = [Vec<IpAddr>; 2];
/// Their types.
const TYPES: [(u16, &str); 2] = [(wire::TYPE_AAAA, "AAAA"), (wire::TYPE_A, "A")];

/// What must be answered.
enum Expected {
    Records(Ring),
    NoData,
    NxDomain,
}

impl Expected {
    fn new(addresses: Option<&[IpAddr]>) -> Self {
        match addresses {
            None => Self::NxDomain,
            Some([]) => Self::NoData,
            Some(addresses) => Self::Records(Ring::new(addresses)),
        }
    }

    fn is(&self, answer: &Answer<'_>) -> bool {
        match (self, answer) {
            (Self::Records(ring), Answer::Records(reply)) => ring.is_given(reply),
            (Self::NoData, Answer::NoData) | (Self::NxDomain, Answer::NxDomain) => true,
            _ => false,
        }
    }

    const fn label(&self) -> &'static str {
        match self {
            Self::Records(_) => "NOERROR",
            Self::NoData => "NODATA",
            Self::NxDomain => "NXDOMAIN",
        }
    }
}
