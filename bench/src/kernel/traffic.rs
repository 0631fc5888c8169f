//! The kernel's own statistics of the program under real traffic, to check the benchmark by.

use std::{net::UdpSocket, time::Duration};

use anyhow::{Context, Result, ensure};
use aya::{
    programs::{ProgramInfo, XdpMode},
    sys::{Stats, enable_stats},
};
use fastrand::Rng;
use peak_tests::{Net, pass};
use peak_userspace::dataplane::{
    compile::Table,
    loader::{Kernel, LoadOptions, Program},
    table::Writer,
};

use super::{
    cases::{DIGITS, PLAIN},
    measure::Effort,
    table::Services,
};
use crate::{
    frame::PORT,
    report::{Better, Report, Samples},
};

/// The interface on either end.
const INTERFACE: &str = "eth0";
const MTU: u32 = 1500;
/// Names in the table.
const NAMES: u32 = 1 << 14;
/// Queries that are sent at once, before their answers are fetched: the node has more than one to poll for.
const BURST: usize = 32;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks Peak over a veth pair, attached natively as the agent does it, from an ordinary socket, and adds what the kernel has
/// counted for each run of the program.
pub(super) fn measure(report: &mut Report, effort: &Effort) -> Result<()> {
    let net = Net::new()?;
    let _pass = pass(&net.client, INTERFACE)?;
    let index = net.node.link(INTERFACE)?["ifindex"].as_u64();
    let index = u32::try_from(index.context("an interface has an index")?)?;
    let Kernel {
        memory,
        mut program,
    } = Kernel::load(LoadOptions::default())?;
    let snapshot = Services::V6.snapshot(NAMES);
    let mut table = Table::new(Writer::create(memory)?, snapshot.zones())?;
    table.sync(&snapshot);
    let server = Net::SERVERS[0].parse()?;
    let slot = index % peak_common::abi::MAX_INTERFACES;
    program.describe(slot, index, net.node.mac(INTERFACE)?, MTU, true);
    program
        .serve(index, server, PORT)
        .context("there is room for one address")?;

    // What the empty program passes goes here, and is dropped when the socket's buffer is full.
    let _sink = net.node.run(|| UdpSocket::bind((server, PORT)))?;
    let socket = net
        .client
        .run(|| peak_tests::connect((server, PORT).into()))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let _counting = enable_stats(Stats::RunTime).context("cannot let the kernel count")?;
    let query = PLAIN.asked.message()?;
    let mut client = Client {
        socket,
        query,
        random: Rng::with_seed(1),
    };
    let queries = effort.runs as usize / 10;

    program.xdp("pass")?.load()?;
    let mut samples = |program: &mut Program, name: &str, names: u32| -> Result<Samples> {
        let program = program.xdp(name)?;
        let link = net.node.run(|| program.attach(index, XdpMode::Driver))?;
        // Neighbours get to know one another, and caches what is asked for.
        client.ask(queries, names, name == "peak")?;
        let mut samples = Vec::new();
        for _ in 0..effort.rounds {
            let before = program.info()?;
            client.ask(queries, names, name == "peak")?;
            samples.push(per_run(&before, &program.info()?, queries)?);
        }
        program.detach(link)?;
        Ok(Samples(samples))
    };
    let empty = samples(&mut program, "pass", 1)?;
    let hot = samples(&mut program, "peak", 1)?;
    let random = samples(&mut program, "peak", NAMES)?;

    // They are not of the same rounds: one program is attached at a time.
    let base = empty.quantile(0.5);
    let above = |samples: &Samples| Samples(samples.0.iter().map(|ns| ns - base).collect());
    let note = "by the kernel's own run_time_ns and run_cnt, over a veth pair, above the median of the empty program there";
    for (name, names, samples) in [
        ("traffic_empty", None, empty.clone()),
        ("traffic_aaaa_hit", Some(1), above(&hot)),
        ("traffic_aaaa_hit", Some(NAMES), above(&random)),
    ] {
        let labels = names.map(|names: u32| ("names", names.into()));
        let labels = labels.as_slice();
        let figure = report.add(name, labels, "ns", Better::Lower, "batches", samples);
        figure.note = names.map(|_| note.into());
    }
    Ok(())
}

/// Nanoseconds for each run between two looks, in which there were so many queries.
fn per_run(before: &ProgramInfo, after: &ProgramInfo, queries: usize) -> Result<f64> {
    let runs = after.run_count() - before.run_count();
    ensure!(
        runs >= queries as u64,
        "the kernel has counted {runs} runs for {queries} queries"
    );
    let time = after.run_time() - before.run_time();
    Ok(time.as_nanos() as f64 / runs as f64)
}

/// An ordinary socket that asks.
struct Client {
    socket: UdpSocket,
    query: Vec<u8>,
    random: Rng,
}

impl Client {
    /// Sends so many queries for one of so many names; `answered` if answers are to be waited for.
    fn ask(&mut self, queries: usize, names: u32, answered: bool) -> Result<()> {
        const NAME: usize = 12;
        let mut reply = [0; 512];
        for _ in 0..queries.div_ceil(BURST) {
            for _ in 0..BURST {
                let digits = format!("{:08}", self.random.u32(0..names));
                self.query[NAME + DIGITS..][..8].copy_from_slice(digits.as_bytes());
                self.socket.send(&self.query)?;
            }
            for _ in 0..if answered { BURST } else { 0 } {
                let length = self.socket.recv(&mut reply).context("no answer")?;
                // One record more than the question, by a pointer to it.
                ensure!(
                    length == self.query.len() + peak_common::bench::RECORD,
                    "an answer of {length} bytes"
                );
            }
        }
        Ok(())
    }
}
