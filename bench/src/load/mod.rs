//! Who asks: our own sockets ([`sockets`]), `dnsperf` ([`dnsperf`]), and the kernel itself ([`live`]).
//!
//! A load is open: a query is sent when it is due, whatever became of those before it, and its latency is from when it was due.
//! A server that pauses is so charged with all that would have been asked meanwhile (no coordinated omission).

pub(crate) mod answer;
mod batch;
pub(crate) mod dnsperf;
pub(crate) mod knee;
pub(crate) mod live;
pub(crate) mod sockets;

use std::{fmt::Write, time::Duration};

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use hickory_proto::op::Message;

/// The longest query.
pub(crate) const QUERY_SIZE: usize = 512;
/// What a latency may be at most, nanoseconds; and the digits that are kept of it.
const LONGEST: u64 = 60_000_000_000;
const DIGITS: u8 = 3;
/// DNS: the header, and what follows a question's name.
const HEADER: usize = 12;
const QTYPE_AND_QCLASS: usize = 4;

/// What is asked, one after the other, and from the first again: whole messages, whose IDs are given when they are sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queries {
    messages: Vec<u8>,
    /// Where each ends, and where its question does.
    ends: Vec<(usize, usize)>,
}

impl Queries {
    /// # Errors
    /// One is longer than [`QUERY_SIZE`], or isn't a question with a plain name; there is none.
    pub(crate) fn new(messages: impl IntoIterator<Item = Vec<u8>>) -> Result<Self> {
        let mut queries = Self::default();
        for message in messages {
            let question = question_end(&message);
            ensure!(
                message.len() <= QUERY_SIZE && question.is_some(),
                "no query to send: {message:02x?}"
            );
            let begin = queries.messages.len();
            queries.messages.extend_from_slice(&message);
            let question = begin + question.unwrap_or_default();
            queries.ends.push((queries.messages.len(), question));
        }
        ensure!(queries.len() > 0, "there is nothing to ask");
        Ok(queries)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// A message, with whatever ID it had.
    pub(crate) fn message(&self, number: usize) -> &[u8] {
        &self.messages[self.begin(number)..self.ends[number].0]
    }

    /// A message's question as it stands in it: name, type and class.
    fn question(&self, number: usize) -> &[u8] {
        &self.messages[self.begin(number) + HEADER..self.ends[number].1]
    }

    fn begin(&self, number: usize) -> usize {
        number
            .checked_sub(1)
            .map_or(0, |before| self.ends[before].0)
    }

    /// As `dnsperf` reads them: a line with name and type each.
    fn lines(&self) -> Result<String> {
        let mut lines = String::new();
        for number in 0..self.len() {
            let message = Message::from_vec(self.message(number))?;
            for query in &message.queries {
                writeln!(lines, "{} {}", query.name(), query.query_type())?;
            }
        }
        Ok(lines)
    }
}

/// Where a message's only question ends.
fn question_end(message: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    loop {
        match *message.get(at)? {
            0 => break,
            label @ 1..64 => at += 1 + usize::from(label),
            _ => return None,
        }
    }
    let end = at + 1 + QTYPE_AND_QCLASS;
    (end <= message.len()).then_some(end)
}

/// Judges a reply: the query's number, the query as it was sent, and what came. It is to look at every byte.
pub(crate) type Check<'c> = dyn Fn(usize, &[u8], &[u8]) -> Result<()> + Sync + 'c;

/// What became of a load.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Queries sent.
    pub(crate) sent: u64,
    /// Replies with the ID and the question of a query that waited for one: as the receiver counts them.
    pub(crate) answered: u64,
    /// Replies that were not, or that were found wrong.
    pub(crate) wrong: u64,
    /// Replies that were looked at byte by byte.
    pub(crate) checked: u64,
    /// What was wrong with the first one.
    pub(crate) complaint: Option<String>,
    /// Replies by RCODE.
    pub(crate) rcodes: [u64; 16],
    /// From the first query to the last.
    pub(crate) sending: Duration,
    /// How long sending should have taken; nothing where it was to be as fast as it goes.
    pub(crate) intended: Duration,
    /// From when a query was due to its reply, nanoseconds.
    pub(crate) latency: Histogram<u64>,
}

impl Outcome {
    fn new(intended: Duration) -> Self {
        Self {
            sent: 0,
            answered: 0,
            wrong: 0,
            checked: 0,
            complaint: None,
            rcodes: [0; 16],
            sending: Duration::ZERO,
            intended,
            latency: Histogram::new_with_bounds(1, LONGEST, DIGITS).expect("bounds in order"),
        }
    }

    /// What of the queries had no reply: 0 to 1.
    pub(crate) fn loss(&self) -> f64 {
        1.0 - self.answered as f64 / (self.sent as f64).max(1.0)
    }

    /// Answers a second.
    pub(crate) fn rate(&self) -> f64 {
        self.answered as f64 / self.sending.as_secs_f64()
    }

    /// Whether the sender could send as fast as it was to.
    pub(crate) fn kept_up(&self) -> bool {
        self.sending <= self.intended.mul_f64(1.01) + Duration::from_millis(1)
    }

    /// # Errors
    /// A reply was wrong, or none was looked at.
    pub(crate) fn right(&self) -> Result<()> {
        ensure!(
            self.wrong == 0,
            "{} of {} replies were wrong; the first: {}",
            self.wrong,
            self.answered + self.wrong,
            self.complaint.as_deref().unwrap_or("")
        );
        ensure!(
            self.checked > 0,
            "of {} queries none got a reply to look at",
            self.sent
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUERY: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03web\x04shop\0\0\x1c\0\x01";

    #[test]
    fn queries_are_kept_as_they_came() -> Result<()> {
        let mut longer = QUERY.to_vec();
        longer.extend_from_slice(b"\0\0\x29\x04\xd0\0\0\0\0\0\0");
        let queries = Queries::new([QUERY.to_vec(), longer.clone(), QUERY.to_vec()])?;
        assert_eq!(queries.len(), 3);
        assert_eq!(queries.message(1), longer);
        assert_eq!(queries.message(2), QUERY);
        for number in 0..3 {
            assert_eq!(queries.question(number), &QUERY[HEADER..]);
        }
        Ok(())
    }

    #[test]
    fn lines_for_dnsperf_have_name_and_type() -> Result<()> {
        let queries = Queries::new([QUERY.to_vec(), QUERY.to_vec()])?;
        assert_eq!(queries.lines()?, "web.shop. AAAA\nweb.shop. AAAA\n");
        Ok(())
    }

    #[test]
    fn what_is_no_question_is_refused() {
        for message in [&QUERY[..QUERY.len() - 1], &[0; 12], b"", &[0xff; 40]] {
            assert!(Queries::new([message.to_vec()]).is_err(), "{message:?}");
        }
        assert!(Queries::new([]).is_err());
    }
}
