//! What a machine boots: a kernel, and the file system that does not change from run to run.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use super::{
    apt::{self, Apt},
    arch::Arch,
    cpio::Archive,
    kernel::{Kernel, Suite},
    modules::{self, Module},
    userland,
};
use crate::{scratch::ScratchDir, workspace};

const INIT: &str = include_str!("init.sh");

/// Loaded at boot where the kernel has them: first what the machine talks through, then the devices
/// under test, with options that keep a module from making a device by itself.
const MODULES: [(&str, &str); 15] = [
    ("virtio_pci", ""),
    ("virtio_console", ""),
    ("veth", ""),
    ("dummy", "numdummies=0"),
    ("bridge", ""),
    ("tun", ""),
    ("wireguard", ""),
    ("bonding", "max_bonds=0"),
    ("ifb", "numifbs=0"),
    ("macvlan", ""),
    ("ipvlan", ""),
    ("vxlan", ""),
    ("8021q", ""),
    ("vrf", ""),
    ("sch_netem", ""),
];

/// Programs and libraries are from the same suite for every kernel, so that only the kernel
/// differs. It is the newest stable one: programs that were linked on this or an older system find
/// a C library that is new enough.
const USERLAND: Suite = Suite::Trixie;

/// A kernel and its base file system, ready to boot.
pub(super) struct Image {
    pub(super) kernel: PathBuf,
    pub(super) initramfs: PathBuf,
    /// Holds the files when they are not in the cache.
    _scratch: Option<ScratchDir>,
}

impl Image {
    /// Makes the image, or takes it from the cache.
    pub(super) fn prepare(kernel: &Kernel, arch: Arch) -> Result<Self> {
        let cache = workspace::target_dir().join("vm");
        fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
        // Two runs at a time would download everything twice.
        let lock = File::create(cache.join("lock"))?;
        lock.lock().context("cannot lock the cache of kernels")?;
        match kernel {
            Kernel::Suite(suite) => Self::of_suite(&cache, *suite, arch),
            Kernel::Path(path) => Self::of_path(&cache, path, arch),
        }
    }

    fn of_suite(cache: &Path, suite: Suite, arch: Arch) -> Result<Self> {
        let dir = cache.join(format!("{suite}-{arch}"));
        let recipe = recipe();
        if fs::read_to_string(dir.join("recipe")).ok().as_ref() != Some(&recipe) {
            let scratch = ScratchDir::new(cache)?;
            let packages = kernel_packages(cache, &scratch, suite, arch)?;
            let root = scratch.path().join("kernel");
            apt::unpack(&packages, &root)?;
            let image = scratch.path().join("image");
            make(cache, &scratch, arch, &find_kernel(&root)?, &root, &image)?;
            fs::write(image.join("recipe"), recipe)?;
            if dir.exists() {
                fs::remove_dir_all(&dir)?;
            }
            fs::rename(&image, &dir)?;
        }
        Ok(Self {
            kernel: dir.join("vmlinuz"),
            initramfs: dir.join("initramfs"),
            _scratch: None,
        })
    }

    /// One's own kernel is looked at anew each time: it is what changes while somebody works on it.
    fn of_path(cache: &Path, path: &Path, arch: Arch) -> Result<Self> {
        let scratch = ScratchDir::new(cache)?;
        let image = scratch.path().join("image");
        let (kernel, modules) = if path.is_dir() {
            (find_kernel(path)?, path.to_owned())
        } else {
            // As a distribution installs it: /boot/vmlinuz-VERSION belongs to /lib/modules/VERSION.
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let version = name.split_once('-').map_or("", |(_, version)| version);
            let modules = Path::new("/lib/modules").join(version);
            let none = scratch.path().join("no-modules");
            fs::create_dir_all(&none)?;
            let has_modules = !version.is_empty() && modules.is_dir();
            (path.to_owned(), if has_modules { modules } else { none })
        };
        make(cache, &scratch, arch, &kernel, &modules, &image)?;
        Ok(Self {
            kernel: image.join("vmlinuz"),
            initramfs: image.join("initramfs"),
            _scratch: Some(scratch),
        })
    }
}

/// Stands for how an image is made, so that one made in another way is not used: the sources that
/// make it.
fn recipe() -> String {
    let sources = [
        INIT,
        include_str!("image.rs"),
        include_str!("modules.rs"),
        include_str!("userland.rs"),
    ];
    format!("{:x}", Sha256::digest(sources.concat()))
}

fn kernel_packages(
    cache: &Path,
    scratch: &ScratchDir,
    suite: Suite,
    arch: Arch,
) -> Result<PathBuf> {
    let image = format!("linux-image-cloud-{}", arch.debian());
    // Newer suites have the kernel and its modules in packages that the image depends on.
    let is_kernel = |name: &str| {
        ["linux-image-", "linux-binary-", "linux-modules-"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
    };
    packages(cache, scratch, suite, arch, &[&image], is_kernel)
}

fn userland_packages(cache: &Path, scratch: &ScratchDir, arch: Arch) -> Result<PathBuf> {
    // What is not a library is not needed to run the programs.
    let is_library = |name: &str| name.starts_with("lib") || name.starts_with("zlib");
    let names = userland::PACKAGES;
    packages(cache, scratch, USERLAND, arch, &names, is_library)
}

/// The directory of the packages, downloaded when it is not in the cache.
pub(crate) fn packages(
    cache: &Path,
    scratch: &ScratchDir,
    suite: Suite,
    arch: Arch,
    names: &[&str],
    follow: impl Fn(&str) -> bool,
) -> Result<PathBuf> {
    let name = format!("packages-{suite}-{arch}-{}", names.join("+"));
    let dir = cache.join(&name);
    if !dir.exists() {
        let what = names.join(" and ");
        eprintln!("downloading {what} of Debian {suite} for {arch}");
        let apt = scratch.path().join("apt").join(&name);
        let downloaded = scratch.path().join(&name);
        Apt::new(&apt, suite.name(), arch.debian())?.download(names, follow, &downloaded)?;
        // Only what is whole gets its name.
        fs::rename(&downloaded, &dir)?;
    }
    Ok(dir)
}

fn make(
    cache: &Path,
    scratch: &ScratchDir,
    arch: Arch,
    kernel: &Path,
    modules: &Path,
    image: &Path,
) -> Result<()> {
    let packages = userland_packages(cache, scratch, arch)?;
    let root = scratch.path().join("userland");
    apt::unpack(&packages, &root)?;

    let mut archive = Archive::default();
    for dir in ["dev", "proc", "sys", "root", "etc", "tmp", "run", "var/run"] {
        archive.directory(dir);
    }
    archive.file("init", 0o755, INIT.as_bytes());
    archive.file(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    );
    archive.file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n");
    userland::add(&mut archive, &root)?;
    add_modules(&mut archive, modules)?;

    fs::create_dir_all(image)?;
    fs::copy(kernel, image.join("vmlinuz"))
        .with_context(|| format!("cannot read {}", kernel.display()))?;
    fs::write(image.join("initramfs"), archive.finish())?;
    Ok(())
}

fn add_modules(archive: &mut Archive, tree: &Path) -> Result<()> {
    let names = MODULES.map(|(name, _)| name);
    let mut order = String::new();
    for Module { name, content } in modules::in_load_order(tree, &names)? {
        archive.file(&format!("lib/modules/{name}.ko"), 0o644, &content);
        let options = MODULES
            .iter()
            .find_map(|(module, options)| (*module == name).then_some(*options))
            .unwrap_or_default();
        order.push_str(&format!("{name} {options}\n"));
    }
    archive.file("lib/modules/order", 0o644, order.as_bytes());
    Ok(())
}

/// The kernel in an unpacked package, a build tree or the root of a system.
fn find_kernel(tree: &Path) -> Result<PathBuf> {
    let mut dirs = vec![tree.to_owned()];
    while let Some(dir) = dirs.pop() {
        let entries = fs::read_dir(&dir)
            .with_context(|| format!("cannot read the directory {}", dir.display()))?;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
            } else if name == "vmlinuz" || name.starts_with("vmlinuz-") {
                return Ok(entry.path());
            }
        }
    }
    bail!("no vmlinuz in {}", tree.display())
}
