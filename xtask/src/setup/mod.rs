//! libtorch in `.libtorch`, made once and checked every time.

pub mod adopt;
pub mod checksum;
pub mod disk;
pub mod fetch;
pub mod layout;
pub mod loader;
pub mod pins;
pub mod platform;
pub mod python;
pub mod stamp;
pub mod unpack;

use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

use rustix::fs::{FlockOperation, flock};

use self::adopt::Candidate;
use self::layout::{Layout, remove};
use self::pins::{ESSENTIALS, HEADERS, LIBTORCH_VERSION, Parts};
use self::python::Python;
use self::stamp::{Origin, Stamp};
use crate::failure::{Doing, Result};
use crate::progress::rounded;
use crate::workspace;

/// What a caller wants to be there.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// At least these parts.
    pub parts: Parts,
    /// Whether a libtorch that is installed already may be used by symlinks.
    pub adopt: bool,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { parts: Parts::Cpu, adopt: true }
    }
}

/// What was found in `.libtorch`.
enum State {
    Ready(Stamp),
    /// Nothing good, and why, when there is something to say.
    Unusable(Option<String>),
}

/// Makes sure that libtorch is there: at once when it is, otherwise by adopting or fetching it.
///
/// # Errors
/// When it cannot be had; what is missing and what to do is in the failure.
pub fn ensure(root: &Path, wanted: Wanted) -> Result<Stamp> {
    let layout = Layout::of(root);
    let users = workspace::users_libtorch(root).map(|path| Candidate::at(&path)).transpose()?;
    if let State::Ready(stamp) = inspect(&layout, wanted)? {
        return Ok(stamp);
    }
    fs::create_dir_all(&layout.home).doing(|| format!("make {}", layout.home.display()))?;
    let _lock = lock(&layout)?;
    // Another set-up may have finished while this one waited.
    let why = match inspect(&layout, wanted)? {
        State::Ready(stamp) => return Ok(stamp),
        State::Unusable(why) => why,
    };
    if let Some(why) = why {
        eprintln!("setting up libtorch anew: {why}");
    }
    let candidate = match users {
        _ if !wanted.adopt => None,
        Some(users) if users.parts >= wanted.parts => Some(users),
        _ => Candidate::of_python(wanted.parts).filter(Candidate::opens),
    };
    match candidate {
        Some(candidate) => adopt(&layout, candidate),
        None => download(&layout, wanted.parts),
    }
}

/// Looks at what is there, repairs what is cheap to repair and recognises what someone else unpacked.
fn inspect(layout: &Layout, wanted: Wanted) -> Result<State> {
    let Some(stamp) = Stamp::read(layout) else {
        return recognise(layout, wanted);
    };
    if let Some(damage) = stamp.damage(layout) {
        return Ok(State::Unusable(Some(damage)));
    }
    if stamp.parts < wanted.parts {
        return Ok(State::Unusable(None));
    }
    if !wanted.adopt && matches!(stamp.origin, Origin::Adopted(_)) {
        return Ok(State::Unusable(Some("the one there is adopted".into())));
    }
    if !layout.link_is_good() {
        layout.write_link()?;
    }
    Ok(State::Ready(stamp))
}

/// Whether a libtorch that has no stamp looks like the pinned one, by the sizes of what it cannot do without.
pub fn looks_complete(layout: &Layout) -> bool {
    let size = |path| fs::metadata(layout.home.join(path)).map(|found| found.len()).ok();
    // A folder of symlinks is an adopted one; only those who made it know from where.
    !layout.torch().is_symlink()
        && ESSENTIALS.iter().all(|file| size(file.path) == Some(file.bytes))
        && stamp::headers(layout).ok() == Some(HEADERS)
}

/// A libtorch without a stamp: good when its essential libraries are the pinned ones, byte for byte.
fn recognise(layout: &Layout, wanted: Wanted) -> Result<State> {
    if wanted.parts > Parts::Cpu || !looks_complete(layout) {
        return Ok(State::Unusable(None));
    }
    for file in ESSENTIALS {
        if checksum::sha256(&layout.home.join(file.path))? != file.sha256 {
            return Ok(State::Unusable(Some(format!("{} is damaged", file.path))));
        }
    }
    if !layout.link_is_good() {
        layout.write_link()?;
    }
    let stamp = Stamp::measure(layout, LIBTORCH_VERSION.into(), Parts::Cpu, Origin::Found)?;
    stamp.write(layout)?;
    eprintln!("recognised libtorch {LIBTORCH_VERSION} in {}", layout.home.display());
    Ok(State::Ready(stamp))
}

/// Waits for another set-up of the same folder; the lock is gone with the process that held it.
fn lock(layout: &Layout) -> Result<File> {
    let path = layout.home.join("lock");
    let locking = || format!("lock {}", path.display());
    let file = File::create(&path).doing(locking)?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        eprintln!("another set-up is running: waiting for it");
        flock(&file, FlockOperation::LockExclusive).map_err(std::io::Error::from).doing(locking)?;
    }
    Ok(file)
}

fn adopt(layout: &Layout, candidate: Candidate) -> Result<Stamp> {
    Stamp::remove(layout)?;
    candidate.link_into(layout)?;
    layout.write_link()?;
    eprintln!("using libtorch {} from {} by symlinks", candidate.version, candidate.folder.display());
    let origin = Origin::Adopted(candidate.folder);
    let stamp = Stamp::measure(layout, candidate.version, candidate.parts, origin)?;
    stamp.write(layout)?;
    Ok(stamp)
}

fn download(layout: &Layout, parts: Parts) -> Result<Stamp> {
    let started = Instant::now();
    platform::check()?;
    let python = Python::find()?;
    let (downloads, staging) = (layout.downloads(), layout.staging());
    let left = pins::wheels(parts).map(|wheel| match fetch::reached(wheel, &downloads) {
        fetch::Reached::Done => 0,
        fetch::Reached::Partial(bytes) => wheel.bytes - bytes,
    });
    // What an unpacking that was killed has left would only take up room.
    remove(&staging)?;
    disk::check(&layout.home, parts, left.sum())?;

    let what = match parts {
        Parts::Cpu => "for the CPU",
        Parts::Nvrtc => "for the CPU, and NVRTC",
        Parts::Cuda => "with CUDA",
    };
    eprintln!("fetching libtorch {LIBTORCH_VERSION} {what} through pip {}, once", python.pip);
    let files: Vec<_> = pins::wheels(parts)
        .map(|wheel| fetch::fetch(wheel, &downloads, &python).map(|file| (wheel, file)))
        .collect::<Result<_>>()?;
    for (wheel, file) in &files {
        unpack::unpack(wheel, file, &staging, parts, &python)?;
    }

    Stamp::remove(layout)?;
    layout.install_staging()?;
    layout.write_link()?;
    let stamp = Stamp::measure(layout, LIBTORCH_VERSION.into(), parts, Origin::Downloaded)?;
    stamp.write(layout)?;
    remove(&downloads)?;
    eprintln!("libtorch {LIBTORCH_VERSION} is set up ({})", rounded(started.elapsed()));
    Ok(stamp)
}
