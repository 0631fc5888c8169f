//! What the kernel tells of a tree of folders, through inotify.
//!
//! The queue is read by who reads the files: what happened to a file before it was read stands in the queue afterwards,
//! so that a reader can know whether it saw a file in the middle of a change.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Room for some hundred events.
const BUFFER: usize = 16 * 1024;

/// Watched folders.
#[derive(Debug)]
pub(super) struct Watches {
    inotify: Inotify,
    folders: HashMap<WatchDescriptor, PathBuf>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) mask: EventMask,
    /// What it happened to; the folder itself where it has no name in one. Empty when events were lost.
    pub(super) path: PathBuf,
    /// The same for both halves of a move.
    pub(super) cookie: u32,
}

/// Why a wait has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    Note,
    Timeout,
    Stop,
}

impl Watches {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            inotify: Inotify::init()?,
            folders: HashMap::new(),
        })
    }

    /// Watches what happens in a folder, not in those below it, and says whether it wasn't watched before.
    pub(super) fn watch(&mut self, folder: &Path) -> io::Result<bool> {
        let mask = WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MODIFY
            | WatchMask::CLOSE_WRITE
            | WatchMask::MOVE
            | WatchMask::ATTRIB
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let descriptor = self.inotify.watches().add(folder, mask)?;
        Ok(self.folders.insert(descriptor, folder.to_owned()).is_none())
    }

    /// Watches no other folders than these.
    pub(super) fn retain(&mut self, folders: &HashSet<PathBuf>) {
        let mut watches = self.inotify.watches();
        self.folders.retain(|descriptor, folder| {
            let keep = folders.contains(folder);
            if !keep {
                // The kernel forgets a folder that is gone by itself.
                let _ = watches.remove(descriptor.clone());
            }
            keep
        });
    }

    /// All that happened until now and wasn't told before.
    pub(super) fn notes(&mut self) -> Vec<Note> {
        let mut notes = Vec::new();
        let mut buffer = [0; BUFFER];
        // An empty queue is an error, too (EAGAIN); no other is possible on a descriptor that is ours.
        while let Ok(events) = self.inotify.read_events(&mut buffer) {
            for event in events {
                let folder = self.folders.get(&event.wd);
                let path = match (folder, event.name) {
                    _ if event.mask.contains(EventMask::Q_OVERFLOW) => PathBuf::new(),
                    (Some(_), _) if event.mask.contains(EventMask::IGNORED) => {
                        self.folders.remove(&event.wd);
                        continue;
                    }
                    (Some(folder), Some(name)) => folder.join(name),
                    (Some(folder), None) => folder.clone(),
                    // Of a watch that was given up.
                    (None, _) => continue,
                };
                notes.push(Note {
                    mask: event.mask,
                    path,
                    cookie: event.cookie,
                });
            }
        }
        notes
    }

    /// Waits until something happens, the time is over, or the other end of `stop` is closed.
    pub(super) fn wait(&self, stop: &UnixStream, timeout: Duration) -> Woken {
        let mut ends = [
            PollFd::new(&self.inotify, PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        let timeout = Timespec::try_from(timeout).unwrap_or(Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        });
        match poll(&mut ends, Some(&timeout)) {
            Ok(_) if !ends[1].revents().is_empty() => Woken::Stop,
            Ok(_) if !ends[0].revents().is_empty() => Woken::Note,
            // A signal ends a wait early, too.
            _ => Woken::Timeout,
        }
    }
}
