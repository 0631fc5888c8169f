//! How far a benchmark is, on standard error.

use std::{cell::Cell, time::Instant};

/// What has passed, and about what is left.
pub(crate) struct Progress {
    began: Instant,
    total: f64,
    done: Cell<f64>,
}

/// Before so many seconds or this part is done, nothing is said of what is left.
const FIRST: (f64, f64) = (2.0, 0.02);

impl Progress {
    /// `total` is in whatever unit [`Self::done`] is told.
    pub(crate) fn new(total: f64) -> Self {
        Self {
            began: Instant::now(),
            total,
            done: Cell::new(0.0),
        }
    }

    /// One line.
    pub(crate) fn say(&self, what: &str) {
        let elapsed = self.began.elapsed().as_secs_f64();
        let left = left(elapsed, self.done.get() / self.total).unwrap_or_default();
        eprintln!("{:>6}  {left:<13} {what}", span(elapsed));
    }

    /// So much more of the total is done.
    pub(crate) fn done(&self, part: f64) {
        self.done.set(self.done.get() + part);
    }
}

fn left(elapsed: f64, done: f64) -> Option<String> {
    let (seconds, part) = FIRST;
    if elapsed < seconds || done < part {
        return None;
    }
    let left = elapsed * (1.0 - done) / done;
    Some(format!("{} left", span(left.max(0.0))))
}

/// `45 s`, `7:05`.
fn span(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match seconds {
        0..90 => format!("{seconds} s"),
        _ => format!("{}:{:02}", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_when_it_can_be() {
        assert_eq!(left(1.0, 0.5), None);
        assert_eq!(left(10.0, 0.01), None);
        assert_eq!(left(10.0, 0.25).as_deref(), Some("30 s left"));
        assert_eq!(left(100.0, 0.1).as_deref(), Some("15:00 left"));
        assert_eq!(left(100.0, 1.1).as_deref(), Some("0 s left"));
    }
}
