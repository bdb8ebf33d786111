//! Directories that do not outlive the work done in them.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

const PREFIX: &str = ".scratch-";

/// A directory of our own, deleted when dropped.
pub(crate) struct ScratchDir {
    path: PathBuf,
    /// Locked as long as the directory is in use: tells it from what a killed process left behind.
    _lock: File,
}

impl ScratchDir {
    /// Made in `parent`, so that what was made in it can be renamed into place there.
    pub(crate) fn new(parent: &Path) -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        fs::create_dir_all(parent)?;
        // Nobody may sweep between the making of a directory and its locking.
        let making = File::open(parent)?;
        making.lock()?;
        sweep(parent)?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("{PREFIX}{}-{count}", process::id()));
        fs::create_dir(&path)?;
        let lock = File::open(&path)?;
        lock.lock()?;
        Ok(Self { path, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        // What is left is swept another time.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Deletes what killed processes left behind.
fn sweep(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX)
            // Gone meanwhile, or in use.
            && let Ok(dir) = File::open(entry.path())
            && dir.try_lock().is_ok()
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_stays_and_what_is_left_behind_goes() {
        let parent = crate::workspace::target_dir().join(format!("scratch-test-{}", process::id()));
        let left_behind = parent.join(format!("{PREFIX}0-0"));
        fs::create_dir_all(&left_behind).expect("the target directory can be written");
        let first = ScratchDir::new(&parent).expect("a directory can be made");
        let second = ScratchDir::new(&parent).expect("another can be made");
        assert!(!left_behind.exists());
        assert!(first.path().exists());
        let path = second.path().to_owned();
        drop(second);
        assert!(!path.exists());
        drop(first);
        fs::remove_dir(&parent).expect("it is empty");
    }
}
