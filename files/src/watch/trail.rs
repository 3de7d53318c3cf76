//! How a path leads to a file: the folders and symbolic links on the way, and what stands at its end.
//!
//! A path can lead somewhere else without a change of any file: `tls.crt -> ..data/tls.crt` and `..data -> ..2026_11_29`, of
//! which only the second link is replaced. So each step is taken here, and each name that was followed is a name whose change
//! matters.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

/// As many links as Linux follows.
const MAX_LINKS: u32 = 40;

/// The steps from a path to its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trail {
    /// The names whose change matters, each as a whole path without links before the last component.
    pub(super) names: Vec<PathBuf>,
    /// The folders in which they are. Without one of these a change goes unnoticed ...
    pub(super) folders: Vec<PathBuf>,
    /// ... and without one of these the replacement of such a folder.
    pub(super) parents: Vec<PathBuf>,
    pub(super) print: Print,
}

/// What is compared to find out whether a path leads to another file, or the file is another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Print {
    /// Where the path leads: without links. Of a missing file, the first name that is missing.
    pub(super) real: PathBuf,
    /// `None`: nothing is there, or it cannot be looked at.
    pub(super) stat: Option<Stat>,
    /// When the latest of the links was made.
    linked: Option<SystemTime>,
}

/// What tells two states of a file apart without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Stat {
    length: u64,
    modified: Option<SystemTime>,
    /// Device, inode, and the time of the last change of either content or metadata, in seconds and nanoseconds.
    #[cfg(unix)]
    identity: (u64, u64, i64, i64),
    #[cfg(not(unix))]
    created: Option<SystemTime>,
}

impl Stat {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            length: metadata.len(),
            modified: metadata.modified().ok(),
            #[cfg(unix)]
            identity: {
                use std::os::unix::fs::MetadataExt;
                (metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec())
            },
            #[cfg(not(unix))]
            created: metadata.created().ok(),
        }
    }

    /// When it was last changed, as far as the file system tells.
    fn changed(&self) -> Option<SystemTime> {
        #[cfg(unix)]
        {
            let (_, _, seconds, nanos) = self.identity;
            let changed =
                u64::try_from(seconds).ok().zip(u32::try_from(nanos).ok()).and_then(|(seconds, nanos)| {
                    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
                });
            self.modified.max(changed)
        }
        #[cfg(not(unix))]
        self.modified.max(self.created)
    }
}

impl Print {
    /// Whether the last change was `time` ago or more, by the time of day. `false` if that cannot be told.
    pub(super) fn is_older_than(&self, time: Duration, now: SystemTime) -> bool {
        let Some(stat) = &self.stat else { return true };
        let Some(changed) = stat.changed().max(self.linked) else { return false };
        now.duration_since(changed).is_ok_and(|age| age >= time)
    }
}

/// A component of a path that is still to be walked.
enum Step {
    /// A root, or a prefix of Windows.
    Root(OsString),
    Parent,
    Name(OsString),
}

fn steps(path: &Path) -> impl DoubleEndedIterator<Item = Step> + '_ {
    path.components().filter_map(|component| match component {
        Component::Prefix(_) | Component::RootDir => Some(Step::Root(component.as_os_str().to_owned())),
        Component::CurDir => None,
        Component::ParentDir => Some(Step::Parent),
        Component::Normal(name) => Some(Step::Name(name.to_owned())),
    })
}

impl Trail {
    /// Walks an absolute path.
    pub(super) fn walk(path: &Path) -> Self {
        let mut ahead: VecDeque<Step> = steps(path).collect();
        let mut at = PathBuf::new();
        let mut names = Vec::new();
        let mut links = 0;
        let mut linked = None;
        let mut stat = None;
        while let Some(step) = ahead.pop_front() {
            let name = match step {
                Step::Root(root) => {
                    at.push(root);
                    continue;
                }
                Step::Parent => {
                    // Of a path without links, so this is where `..` leads.
                    at.pop();
                    continue;
                }
                Step::Name(name) => name,
            };
            let here = at.join(name);
            let is_last = ahead.is_empty();
            let Ok(metadata) = fs::symlink_metadata(&here) else {
                names.push(here);
                stat = None;
                break;
            };
            if metadata.is_symlink() {
                links += 1;
                linked = linked.max(Stat::of(&metadata).changed());
                names.push(here.clone());
                let target = fs::read_link(&here);
                let Some(target) = target.ok().filter(|_| links <= MAX_LINKS) else { break };
                for step in steps(&target).rev() {
                    ahead.push_front(step);
                }
                continue;
            }
            if is_last || !metadata.is_dir() {
                names.push(here);
                stat = is_last.then(|| Stat::of(&metadata));
                break;
            }
            at = here;
        }
        let real = names.last().cloned().unwrap_or_else(|| path.to_owned());
        let mut folders: Vec<PathBuf> = names.iter().filter_map(|name| parent(name)).collect();
        folders.sort();
        folders.dedup();
        // A folder is a name too, in its own folder.
        let mut parents: Vec<PathBuf> = folders.iter().filter_map(|folder| parent(folder)).collect();
        parents.sort();
        parents.dedup();
        parents.retain(|parent| !folders.contains(parent));
        names.extend(folders.iter().cloned());
        Self { names, folders, parents, print: Print { real, stat, linked } }
    }
}

fn parent(path: &Path) -> Option<PathBuf> {
    path.parent().map(Path::to_owned)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn each_link_on_the_way_is_a_name_that_matters() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        fs::create_dir(root.join("..1")).unwrap();
        fs::write(root.join("..1/key"), "1").unwrap();
        symlink("..1", root.join("..data")).unwrap();
        symlink("..data/key", root.join("key")).unwrap();

        let trail = Trail::walk(&root.join("key"));
        assert_eq!(trail.print.real, root.join("..1/key"));
        assert!(trail.print.stat.is_some());
        for name in ["key", "..data", "..1", "..1/key"] {
            assert!(trail.names.contains(&root.join(name)), "{name} is missing: {trail:?}");
        }
        assert_eq!(trail.folders, [root.clone(), root.join("..1")]);
        assert_eq!(trail.parents, [root.parent().unwrap()]);
    }

    #[test]
    fn a_missing_folder_is_waited_for_where_it_will_be_made() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let trail = Trail::walk(&root.join("a/b/key"));
        assert_eq!(trail.print.real, root.join("a"));
        assert_eq!(trail.print.stat, None);
        assert_eq!(trail.folders, [root]);
    }

    #[test]
    fn links_in_a_circle_and_dots_end() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        symlink("b", root.join("a")).unwrap();
        symlink("a", root.join("b")).unwrap();
        assert_eq!(Trail::walk(&root.join("a")).print.stat, None);

        fs::create_dir(root.join("sub")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        let trail = Trail::walk(&root.join("sub/../file"));
        assert_eq!(trail.print.real, root.join("file"));
        // A file in place of a folder.
        assert_eq!(Trail::walk(&root.join("file/key")).print.stat, None);
    }
}
