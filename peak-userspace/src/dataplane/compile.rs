//! From the snapshot to the table: what `dataplane` does with a change.

use std::{cmp::Reverse, io};

use peak_common::abi::{Control, MAX_ZONES, NAME_WORDS, RecordHead, Zone as ZoneWords};
use thiserror::Error;

use super::{
    memory::Memory,
    record::NodeRecord,
    table::{Batch, Stats, Writer, is_comparable},
};
use crate::{
    name::Name,
    snapshot::{Change, Node, Snapshot, Zone},
};

/// Why the kernel can't answer for a list of zones. The remedy is another list, or no kernel program.
#[derive(Debug, Error)]
pub enum ZonesError {
    /// More zones than the control block has room for.
    #[error("{0} zones: the kernel program takes at most {MAX_ZONES}")]
    TooMany(usize),
    /// A zone's name has bytes that the kernel's comparison takes for letters.
    #[error(
        "zone {0}: the kernel program compares only names of printable ASCII without `{{|}}~ and backquotes"
    )]
    Name(Name),
    /// The system refused a grace period.
    #[error(transparent)]
    Memory(#[from] io::Error),
}

/// The table as a compiled form of the snapshot.
pub struct Table<M> {
    writer: Writer<M>,
    /// For each zone of the snapshot its place in [`Control::zones`].
    places: Box<[u8]>,
}

impl<M: Memory> Table<M> {
    /// Lets the table hold these zones, the snapshot's. An adopted table that holds the same ones goes on being
    /// read; one that holds others answers nothing until [`Self::sync`].
    ///
    /// # Errors
    /// [`ZonesError`]; the table is as it was then.
    pub fn new(mut writer: Writer<M>, zones: &[Zone]) -> Result<Self, ZonesError> {
        if zones.len() > MAX_ZONES {
            return Err(ZonesError::TooMany(zones.len()));
        }
        if let Some(zone) = zones.iter().find(|zone| !is_comparable(&zone.name)) {
            return Err(ZonesError::Name(zone.name.clone()));
        }
        // The longest first: readers take the first that fits.
        let mut order: Vec<_> = (0..zones.len()).collect();
        order.sort_by_key(|&zone| Reverse(zones[zone].name.as_wire().len()));
        let mut places = vec![0; zones.len()];
        for (place, &zone) in order.iter().enumerate() {
            places[zone] = place as u8;
        }
        let names: Vec<_> = order.iter().map(|&zone| &zones[zone].name).collect();
        let control = writer.memory().control();
        if !holds_zones(control, &names) {
            if control.flags.load() & Control::COMPLETE != 0 {
                writer.set_flags(Control::COMPLETE, 0);
                writer.memory_mut().barrier()?;
            }
            let control = writer.memory().control();
            for (zone, name) in control.zones.iter().zip(&names) {
                zone.length.store(name.as_wire().len() as u64);
                for (word, value) in zone.suffix.iter().zip(suffix_words(name)) {
                    word.store(value);
                }
            }
            control.zone_count.store(names.len() as u64);
        }
        Ok(Self {
            writer,
            places: places.into(),
        })
    }

    /// Makes the table equal to the snapshot, whatever it holds. Nothing is done for a snapshot that is not complete.
    pub fn sync(&mut self, snapshot: &Snapshot) {
        if !snapshot.complete() {
            return;
        }
        for (zone, name, node) in snapshot.names() {
            self.set(snapshot, zone, &name, &node);
        }
        self.writer.retain(|name| {
            matches!(
                snapshot.lookup(name.as_wire()),
                crate::snapshot::Lookup::Present { .. }
            )
        });
        self.publish(snapshot);
    }

    /// Brings the table from the snapshot before this one to this one.
    pub fn apply(&mut self, snapshot: &Snapshot, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Set { zone, name, node } => self.set(snapshot, *zone, name, node),
                Change::Remove { name, .. } => {
                    self.writer.remove(name);
                }
            }
        }
        self.publish(snapshot);
    }

    fn set(&mut self, snapshot: &Snapshot, zone: usize, name: &Name, node: &Node) {
        let flags = if node.ask_fallback {
            RecordHead::ASK_FALLBACK
        } else {
            0
        };
        let record = NodeRecord {
            addresses: node.addresses.clone(),
            ttl: snapshot.ttl(),
            zone: self.places[zone],
            flags,
            pick: 0,
        };
        self.writer.set(name, &record);
    }

    /// Says which snapshot it is that the table now holds: a serial that is seen stands for data that is there.
    fn publish(&mut self, snapshot: &Snapshot) {
        let control = self.writer.memory().control();
        for zone in &control.zones[..self.places.len()] {
            zone.ttl.store(snapshot.ttl().into());
            zone.serial.store(snapshot.serial().into());
        }
        control.generation.store(snapshot.generation());
        if snapshot.complete() {
            self.writer.all_names_set();
            self.writer.set_flags(Control::COMPLETE, Control::COMPLETE);
        }
    }

    /// Whether the fallback forwards, and answers hence say that recursion is available.
    pub fn set_recursion_available(&mut self, available: bool) {
        let flag = Control::RECURSION_AVAILABLE;
        self.writer
            .set_flags(flag, if available { flag } else { 0 });
    }

    /// The operator's switch: whether the kernel answers at all.
    pub fn set_enabled(&mut self, enabled: bool) {
        let flag = Control::ENABLED;
        self.writer.set_flags(flag, if enabled { flag } else { 0 });
    }

    /// What the kernel holds of a name.
    pub fn lookup(&self, name: &Name) -> Option<NodeRecord> {
        self.writer.get(name)
    }

    /// Figures.
    pub fn stats(&self) -> Stats {
        self.writer.stats()
    }

    /// See [`Writer::take_quarantine`].
    pub fn take_quarantine(&mut self) -> Option<Batch> {
        self.writer.take_quarantine()
    }

    /// See [`Writer::release`].
    pub fn release(&mut self, batch: Batch) {
        self.writer.release(batch);
    }

    /// What writes the table.
    pub fn writer(&self) -> &Writer<M> {
        &self.writer
    }

    /// What writes the table, to be given what the snapshot does not know.
    pub fn writer_mut(&mut self) -> &mut Writer<M> {
        &mut self.writer
    }
}

/// The words of a zone's name from its end, as [`ZoneWords::suffix`] holds them, all of them.
fn suffix_words(name: &Name) -> [u64; NAME_WORDS] {
    let mut words = [0; NAME_WORDS];
    for (word, chunk) in words.iter_mut().zip(name.as_wire().rchunks(8)) {
        let mut bytes = [0; 8];
        bytes[8 - chunk.len()..].copy_from_slice(chunk);
        *word = u64::from_le_bytes(bytes);
    }
    words
}

fn holds_zones(control: &Control, names: &[&Name]) -> bool {
    let holds = |(zone, name): (&ZoneWords, &&Name)| {
        zone.length.load() == name.as_wire().len() as u64
            && zone
                .suffix
                .iter()
                .zip(suffix_words(name))
                .all(|(word, value)| word.load() == value)
    };
    control.zone_count.load() == names.len() as u64 && control.zones.iter().zip(names).all(holds)
}
