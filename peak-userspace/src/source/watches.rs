//! What the kernel tells of a tree of folders, of files that are changed elsewhere, and of the way to the tree, through
//! inotify.
//!
//! The queue is read by who reads the files: what happened to a file before it was read stands in the queue afterwards,
//! so that a reader can know whether it saw a file in the middle of a change.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsString,
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Room for some hundred events.
const BUFFER: usize = 16 * 1024;

/// Watched folders and files.
#[derive(Debug)]
pub(super) struct Watches {
    inotify: Inotify,
    /// The paths at which each is known: links may lead to the same one.
    watched: HashMap<WatchDescriptor, HashSet<PathBuf>>,
    /// Folders of which only these entries matter.
    entries: HashMap<WatchDescriptor, (PathBuf, HashSet<OsString>)>,
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
            watched: HashMap::new(),
            entries: HashMap::new(),
        })
    }

    /// Watches what happens to a file, by whatever name; or in a folder, not in those below it. Says whether it wasn't
    /// watched before.
    pub(super) fn watch(&mut self, path: &Path) -> io::Result<bool> {
        let mask = WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MODIFY
            | WatchMask::CLOSE_WRITE
            | WatchMask::MOVE
            | WatchMask::ATTRIB
            | WatchMask::MOVE_SELF
            | WatchMask::DELETE_SELF;
        let descriptor = self.inotify.watches().add(path, mask)?;
        let paths = self.watched.entry(descriptor).or_default();
        Ok(paths.insert(path.to_owned()))
    }

    /// Watches nothing else than these.
    pub(super) fn retain(&mut self, paths: &HashSet<PathBuf>) {
        let mut watches = self.inotify.watches();
        self.watched.retain(|descriptor, known| {
            known.retain(|path| paths.contains(path));
            if known.is_empty() && !self.entries.contains_key(descriptor) {
                // The kernel forgets what is gone by itself.
                let _ = watches.remove(descriptor.clone());
            }
            !known.is_empty()
        });
    }

    /// Watches that these paths come, go, and become something else, and no other paths.
    pub(super) fn watch_entries<'a>(&mut self, paths: impl IntoIterator<Item = &'a Path>) {
        let mask = WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVE | WatchMask::MASK_ADD;
        let mut watches = self.inotify.watches();
        let before = std::mem::take(&mut self.entries);
        for path in paths {
            let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
                continue;
            };
            let here = if folder.as_os_str().is_empty() {
                Path::new(".")
            } else {
                folder
            };
            // One that isn't there, or can't be watched, is looked after by the sweep.
            if let Ok(descriptor) = watches.add(here, mask) {
                let (_, names) = self
                    .entries
                    .entry(descriptor)
                    .or_insert_with(|| (folder.to_owned(), HashSet::new()));
                names.insert(name.to_owned());
            }
        }
        for (descriptor, _) in before {
            if !self.entries.contains_key(&descriptor) && !self.watched.contains_key(&descriptor) {
                let _ = watches.remove(descriptor);
            }
        }
    }

    /// All that happened until now and wasn't told before.
    pub(super) fn notes(&mut self) -> Vec<Note> {
        let mut notes = Vec::new();
        let mut buffer = [0; BUFFER];
        // An empty queue is an error, too (EAGAIN); no other is possible on a descriptor that is ours.
        while let Ok(events) = self.inotify.read_events(&mut buffer) {
            for event in events {
                let mut push = |path| {
                    notes.push(Note {
                        mask: event.mask,
                        path,
                        cookie: event.cookie,
                    });
                };
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    push(PathBuf::new());
                } else if event.mask.contains(EventMask::IGNORED) {
                    self.watched.remove(&event.wd);
                    self.entries.remove(&event.wd);
                }
                // A watch that was given up has no paths.
                for path in self.watched.get(&event.wd).into_iter().flatten() {
                    push(
                        event
                            .name
                            .map_or_else(|| path.clone(), |name| path.join(name)),
                    );
                }
                if let Some((folder, names)) = self.entries.get(&event.wd)
                    && let Some(name) = event.name.filter(|name| names.contains(*name))
                {
                    push(folder.join(name));
                }
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
