//! The files that a configuration was read from, and whether they still are what they were.
//!
//! They are looked at now and then, and not watched by inotify: that tells nothing of a file on NFS or FUSE, loses a
//! watch with every rename (editors, `mv`, the symlinks by which Kubernetes swaps a whole volume), and needs a watch
//! on every directory on the way. To ask the system about a file takes 1–2 µs.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use zeroize::Zeroizing;

use crate::crypto;

/// The files that a configuration was read from, as they were then.
#[derive(Clone, Debug, Default)]
pub struct Files {
    seen: Arc<BTreeMap<PathBuf, Seen>>,
    /// While one configuration is read: a file that several settings name is the same for all of them.
    contents: Option<HashMap<PathBuf, Content>>,
}

/// What was in a file, or the system's error.
type Content = Result<Zeroizing<Vec<u8>>, i32>;

/// What the system said about the files, at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look(Vec<Option<Stamp>>);

#[derive(Clone, Debug)]
struct Seen {
    stamp: Option<Stamp>,
    /// A hash of what was in it; `None`: it could not be read.
    content: Option<[u8; 32]>,
}

/// Differs after a file was written, replaced, or had its owner or mode changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let file = fs::metadata(path).ok()?;
        Some(Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        })
    }
}

impl Files {
    /// None so far, of one configuration: each is read once, until [`are_all_read`](Self::are_all_read).
    pub fn of_one_reading() -> Self {
        Self { contents: Some(HashMap::new()), ..Self::default() }
    }

    /// From here on, what is read is read anew.
    pub fn are_all_read(&mut self) {
        self.contents = None;
    }

    /// Reads a file, and remembers it: one that cannot be read too, for it may come. What can be read only once (a pipe, such
    /// as the shell's `<(…)`) is not looked at again.
    ///
    /// # Errors
    /// What the system says.
    pub fn read(&mut self, path: &Path) -> io::Result<Vec<u8>> {
        if let Some(known) = self.contents.as_ref().and_then(|contents| contents.get(path)) {
            return known
                .as_ref()
                .map(|bytes| bytes.to_vec())
                .map_err(|code| io::Error::from_raw_os_error(*code));
        }
        // Before it is read: what is written meanwhile is noticed.
        let (stamp, is_stream) = (Stamp::of(path), is_stream(path));
        let read = fs::read(path);
        let content = read.as_ref().ok().map(|bytes| crypto::sha256(bytes));
        if !is_stream {
            Arc::make_mut(&mut self.seen).insert(path.to_owned(), Seen { stamp, content });
        }
        let known = match &read {
            Ok(bytes) => Some(Ok(Zeroizing::new(bytes.clone()))),
            Err(error) => error.raw_os_error().map(Err),
        };
        if let (Some(contents), Some(known)) = (&mut self.contents, known) {
            contents.insert(path.to_owned(), known);
        }
        read
    }

    /// As they were when they were read.
    pub fn as_read(&self) -> Look {
        Look(self.seen.values().map(|seen| seen.stamp).collect())
    }

    /// As they are now.
    pub fn look(&self) -> Look {
        Look(self.seen.keys().map(|path| Stamp::of(path)).collect())
    }

    /// Whether the same is in those that look different now as when they were read, or in all of them: what is written
    /// twice in one tick of the file system's clock looks the same. If so, they are to be compared with how they look now
    /// from here on.
    pub fn hold_the_same(&mut self, all: bool) -> bool {
        let now = self.look();
        for ((path, seen), now) in self.seen.iter().zip(&now.0) {
            let same = || fs::read(path).ok().map(|bytes| crypto::sha256(&bytes)) == seen.content;
            if (all || seen.stamp != *now) && !same() {
                return false;
            }
        }
        if self.as_read() != now {
            for (seen, now) in Arc::make_mut(&mut self.seen).values_mut().zip(now.0) {
                seen.stamp = now;
            }
        }
        true
    }

    /// Those of them that are mounted as such, by a file and not with their directory: what is put in their place
    /// does not arrive there, and Kubernetes never updates them (`subPath`).
    pub fn mounted_alone(&self) -> Vec<PathBuf> {
        let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
        let points: Vec<PathBuf> = mounts.split(|byte| *byte == b'\n').filter_map(mount_point).collect();
        // The system names them without symlinks; what a symlink leads to may be mounted, and the symlink's own place.
        let is_alone = |path: &&PathBuf| {
            let ways = [std::path::absolute(path), fs::canonicalize(path)];
            ways.into_iter().flatten().any(|way| points.contains(&way))
        };
        self.seen.keys().filter(is_alone).cloned().collect()
    }
}

/// Whether it is gone once it was read.
fn is_stream(path: &Path) -> bool {
    let kind = fs::metadata(path).map(|file| file.file_type());
    kind.is_ok_and(|kind| kind.is_fifo() || kind.is_socket() || kind.is_char_device())
}

/// The fifth field, in which blanks and backslashes are three octal digits (proc_pid_mountinfo(5)).
fn mount_point(line: &[u8]) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt as _;
    let mut field = line.split(|byte| *byte == b' ').nth(4)?;
    let mut point = Vec::with_capacity(field.len());
    while let Some((first, rest)) = field.split_first() {
        let octal = rest
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        point.push(octal.unwrap_or(*first));
        field = rest.get(if octal.is_some() { 3 } else { 0 }..)?;
    }
    Some(std::ffi::OsString::from_vec(point).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_written_replaced_removed_or_made_is_noticed_and_the_same_content_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("a"), "one").unwrap();
        let mut files = Files::default();
        assert_eq!(files.read(&path("a")).unwrap(), b"one");
        assert!(files.read(&path("absent")).is_err());
        assert_eq!(files.look(), files.as_read());

        fs::write(path("b"), "one").unwrap();
        fs::rename(path("b"), path("a")).unwrap();
        assert_ne!(files.look(), files.as_read());
        assert!(files.hold_the_same(false));
        assert_eq!(files.look(), files.as_read());

        // Of another length: not every file system has a clock that is fine enough.
        fs::write(path("a"), "three").unwrap();
        assert!(files.look() != files.as_read() && !files.hold_the_same(false));
        files.read(&path("a")).unwrap();
        fs::remove_file(path("a")).unwrap();
        assert!(files.look() != files.as_read() && !files.hold_the_same(false));
        assert!(files.read(&path("a")).is_err());
        assert!(files.look() == files.as_read() && files.hold_the_same(false));
        fs::write(path("absent"), "").unwrap();
        assert!(files.look() != files.as_read() && !files.hold_the_same(false));
        // Written twice in one tick of the clock: it looks as it did.
        files.read(&path("absent")).unwrap();
        assert!(files.hold_the_same(true));
        fs::write(path("absent"), "x").unwrap();
        for (path, seen) in Arc::make_mut(&mut files.seen) {
            seen.stamp = Stamp::of(path);
        }
        assert!(files.look() == files.as_read() && files.hold_the_same(false) && !files.hold_the_same(true));
    }

    #[test]
    fn a_file_that_is_named_several_times_is_the_same_for_all_until_the_next_reading() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("a"), "one").unwrap();
        let mut files = Files::of_one_reading();
        assert_eq!(files.read(&path("a")).unwrap(), b"one");
        assert_eq!(files.read(&path("b")).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::write(path("a"), "three").unwrap();
        fs::write(path("b"), "three").unwrap();
        assert_eq!(files.read(&path("a")).unwrap(), b"one");
        assert_eq!(files.read(&path("b")).unwrap_err().kind(), io::ErrorKind::NotFound);
        // That they are others now is noticed.
        assert!(files.look() != files.as_read() && !files.hold_the_same(false));
        files.are_all_read();
        assert_eq!(
            (files.read(&path("a")).unwrap(), files.read(&path("b")).unwrap()),
            (b"three".into(), b"three".into())
        );
        assert_eq!(files.look(), files.as_read());
    }

    #[test]
    fn what_can_be_read_only_once_is_not_looked_at_again() {
        use std::io::Write as _;
        use std::os::fd::AsRawFd as _;
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"one").unwrap();
        drop(writer);
        let path = PathBuf::from(format!("/proc/self/fd/{}", reader.as_raw_fd()));
        let mut files = Files::of_one_reading();
        assert_eq!(files.read(&path).unwrap(), b"one");
        assert_eq!(files.read(&path).unwrap(), b"one");
        assert!(files.look() == files.as_read() && files.hold_the_same(true));
    }

    #[test]
    fn a_volume_that_is_swapped_by_its_symlink_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for (version, text) in [("..1", "one"), ("..2", "two")] {
            fs::create_dir(path(version)).unwrap();
            fs::write(path(version).join("config.yaml"), text).unwrap();
        }
        std::os::unix::fs::symlink("..1", path("..data")).unwrap();
        std::os::unix::fs::symlink("..data/config.yaml", path("config.yaml")).unwrap();
        let mut files = Files::default();
        assert_eq!(files.read(&path("config.yaml")).unwrap(), b"one");
        std::os::unix::fs::symlink("..2", path("..data_tmp")).unwrap();
        fs::rename(path("..data_tmp"), path("..data")).unwrap();
        assert!(files.look() != files.as_read() && !files.hold_the_same(false));
    }

    #[test]
    fn the_point_of_a_mount_is_read_with_its_blanks() {
        let line = br"31 23 0:26 / /etc/my\040app/config.yaml rw,nosuid - tmpfs tmpfs rw";
        assert_eq!(mount_point(line).unwrap(), Path::new("/etc/my app/config.yaml"));
        assert_eq!(mount_point(b""), None);
        let mut files = Files::default();
        files.read(Path::new("/proc/self/status")).unwrap();
        assert!(files.mounted_alone().is_empty());
        let _ = files.read(Path::new("/proc"));
        assert_eq!(files.mounted_alone(), [Path::new("/proc")]);
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/proc", directory.path().join("way")).unwrap();
        for way in ["/dev/../proc".into(), directory.path().join("way")] {
            let mut files = Files::default();
            let _ = files.read(&way);
            assert_eq!(files.mounted_alone(), [way]);
        }
    }
}
