//! Where things are.

use std::{
    env,
    path::{Path, PathBuf},
};

/// The directory of the workspace's `Cargo.toml`.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the xtask crate is a directory of the workspace")
}

/// Cargo's target directory, which also keeps all that xtask builds, downloads and caches.
pub(crate) fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        // Cargo takes a relative path from the current directory, and so does xtask, which cargo
        // leaves there.
        Some(dir) if !dir.is_empty() => std::path::absolute(&dir).unwrap_or_else(|_| dir.into()),
        _ => root().join("target"),
    }
}
