//! What the machine's memory costs at the pace of a benchmark.

use std::hint::black_box;

use fastrand::Rng;

use crate::{kernel::measure::processor_time, report::Samples};

/// Words of a cache line.
const LINE: usize = 8;

/// Nanoseconds of a load that nothing else can be done before, from one of `lines` cache lines in random order, where
/// `pace` nanoseconds pass between one load and the next. A line is as long unused, then, as a name's record is
/// where as many names are asked; it may have left caches that are large enough, but shared with others.
pub(crate) fn latency(lines: usize, pace: f64, rounds: usize, runs: u32) -> Samples {
    let mut order: Vec<usize> = (0..lines).collect();
    Rng::with_seed(1).shuffle(&mut order);
    let mut memory = vec![0; lines * LINE];
    for (i, &line) in order.iter().enumerate() {
        memory[line * LINE] = order[(i + 1) % lines] * LINE;
    }
    let spins = (pace / spin_time(runs)) as u32;
    let mut at = order[0] * LINE;
    let mut samples = Vec::new();
    for _ in 0..rounds {
        let begin = processor_time();
        for _ in 0..runs {
            at = after_spinning(memory[at], spins);
        }
        let whole = processor_time() - begin;
        let begin = processor_time();
        for _ in 0..runs {
            at = after_spinning(at, spins);
        }
        let spinning = processor_time() - begin;
        samples.push((whole.as_nanos() as f64 - spinning.as_nanos() as f64) / f64::from(runs));
    }
    Samples(samples)
}

/// Nanoseconds of one spin.
fn spin_time(runs: u32) -> f64 {
    let begin = processor_time();
    black_box(after_spinning(1, runs));
    (processor_time() - begin).as_nanos() as f64 / f64::from(runs)
}

/// The same number, after multiplications each of which waits for the one before, and the first for the number.
fn after_spinning(number: usize, spins: u32) -> usize {
    let mut product = number;
    for _ in 0..spins {
        product = black_box(product).wrapping_mul(3);
    }
    // Waits for the last product without changing the number.
    number
        .wrapping_add(product)
        .wrapping_sub(black_box(product))
}
