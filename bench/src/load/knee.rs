//! How much a server can take: the offered rate is raised until replies are missing.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Outcome;

/// What may be missing of the replies: 0 to 1.
const LOSS: f64 = 0.001;
/// By how much the rate is raised while all is well.
const STEP: f64 = 1.3;
/// By how much it is lowered as long as nothing is.
const DESCENT: f64 = 2.0;
/// How near to one another the highest good rate and the lowest bad one are when the search ends.
const NEAR: f64 = 1.03;
/// How often a rate is tried before it is too high: a neighbour on the machine may have been there once.
const TRIES: usize = 2;

/// What the search found.
pub(crate) struct Knee {
    /// The highest rate offered, queries a second, at which hardly a reply was missing.
    pub(crate) offered: f64,
    /// At the next rate it was the sender who could not keep up.
    pub(crate) sender_bound: bool,
}

/// Looks for the highest rate that is answered, from `first` on, for `limit` or a little longer.
///
/// # Errors
/// `offer`'s own; replies are wrong; not even a thousandth of `first` is answered.
pub(crate) fn search(
    first: f64,
    limit: Duration,
    mut offer: impl FnMut(f64) -> Result<Outcome>,
) -> Result<Knee> {
    let begin = Instant::now();
    let mut good: Option<f64> = None;
    let mut bad: Option<(f64, bool)> = None;
    let mut rate = first;
    loop {
        let mut outcome = offer(rate)?;
        for _ in 1..TRIES {
            if !well(&outcome) {
                outcome = offer(rate)?;
            }
        }
        if outcome.answered > 0 {
            outcome.right()?;
        }
        if well(&outcome) {
            good = Some(rate);
        } else {
            bad = Some((rate, !outcome.kept_up()));
        }
        rate = match (good, bad) {
            (Some(good), None) => good * STEP,
            (Some(good), Some((bad, _))) => (good * bad).sqrt(),
            (None, _) => rate / DESCENT,
        };
        let near = good
            .zip(bad)
            .is_some_and(|(good, (bad, _))| bad / good < NEAR);
        if near || (begin.elapsed() > limit && good.is_some()) || rate < first / 1000.0 {
            break;
        }
    }
    let offered =
        good.with_context(|| format!("not even {rate:.0} queries a second are answered"))?;
    Ok(Knee {
        offered,
        sender_bound: bad.is_some_and(|(_, sender_bound)| sender_bound),
    })
}

fn well(outcome: &Outcome) -> bool {
    outcome.loss() <= LOSS && outcome.kept_up()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A server that answers so many a second, and a sender that sends so many.
    fn pretend(capacity: f64, sender: f64) -> impl FnMut(f64) -> Result<Outcome> {
        move |rate| {
            let mut outcome = Outcome::new(SECOND);
            outcome.sent = rate as u64;
            outcome.answered = rate.min(capacity) as u64;
            outcome.checked = 1;
            outcome.sending = SECOND.mul_f64((rate / sender).max(1.0));
            Ok(outcome)
        }
    }

    #[test]
    fn the_knee_is_just_below_what_the_server_can() -> Result<()> {
        for capacity in [900.0, 10_000.0, 123_456.0] {
            let knee = search(10_000.0, SECOND, pretend(capacity, f64::INFINITY))?;
            assert!(knee.offered <= capacity * 1.002, "{}", knee.offered);
            assert!(knee.offered >= capacity / 1.04, "{}", knee.offered);
            assert!(!knee.sender_bound);
        }
        Ok(())
    }

    #[test]
    fn a_sender_that_cannot_keep_up_is_told_from_a_server() -> Result<()> {
        let knee = search(10_000.0, SECOND, pretend(1e9, 50_000.0))?;
        assert!((48_000.0..51_000.0).contains(&knee.offered));
        assert!(knee.sender_bound);
        Ok(())
    }

    #[test]
    fn one_bad_moment_does_not_count() -> Result<()> {
        let mut calls = 0;
        let mut server = pretend(100_000.0, f64::INFINITY);
        let knee = search(10_000.0, SECOND, |rate| {
            calls += 1;
            let mut outcome = server(rate)?;
            if calls % 3 == 1 {
                outcome.answered /= 2;
            }
            Ok(outcome)
        })?;
        assert!(knee.offered > 95_000.0, "{}", knee.offered);
        Ok(())
    }

    #[test]
    fn a_server_that_says_nothing_has_no_knee() {
        assert!(search(1_000.0, SECOND, pretend(0.0, f64::INFINITY)).is_err());
    }
}
