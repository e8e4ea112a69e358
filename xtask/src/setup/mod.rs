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
use self::pins::{ESSENTIALS, HEADERS, LIBTORCH_VERSION, Parts, Wheel};
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
    /// Good, but with fewer parts than are wanted.
    Smaller(Stamp),
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
    let have = match inspect(&layout, wanted)? {
        State::Ready(stamp) => return Ok(stamp),
        State::Smaller(stamp) => Some(stamp),
        State::Unusable(why) => {
            if let Some(why) = why {
                eprintln!("setting up libtorch anew: {why}");
            }
            None
        }
    };
    let candidate = match users {
        _ if !wanted.adopt => None,
        // One compiler more is no reason to change the libtorch.
        _ if have.is_some() && wanted.parts == Parts::Nvrtc => None,
        Some(users) if users.parts >= wanted.parts => Some(users),
        _ => Candidate::of_python(wanted.parts).filter(Candidate::opens),
    };
    match (candidate, have) {
        (Some(candidate), _) => adopt(&layout, candidate),
        (None, Some(have)) => extend(&layout, &have, wanted.parts),
        (None, None) => download(&layout, wanted.parts),
    }
}

/// Makes sure that kernels can be compiled too, where that takes one library more. An adopted libtorch is not ours to
/// add to.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_nvrtc(root: &Path) -> Result<Stamp> {
    let stamp = ensure(root, Wanted::default())?;
    if stamp.parts >= Parts::Nvrtc || matches!(stamp.origin, Origin::Adopted(_)) {
        return Ok(stamp);
    }
    ensure(root, Wanted { parts: Parts::Nvrtc, adopt: true })
}

/// Looks at what is there, repairs what is cheap to repair and recognises what someone else unpacked.
fn inspect(layout: &Layout, wanted: Wanted) -> Result<State> {
    let Some(stamp) = Stamp::read(layout) else {
        return recognise(layout, wanted);
    };
    if let Some(damage) = stamp.damage(layout) {
        return Ok(State::Unusable(Some(damage)));
    }
    let adopted = matches!(stamp.origin, Origin::Adopted(_));
    if adopted && stamp.parts < wanted.parts {
        return Ok(State::Unusable(None));
    }
    if !wanted.adopt && adopted {
        return Ok(State::Unusable(Some("the one there is adopted".into())));
    }
    if !layout.link_is_good() {
        layout.write_link()?;
    }
    Ok(State::of(stamp, wanted))
}

impl State {
    fn of(stamp: Stamp, wanted: Wanted) -> Self {
        if stamp.parts < wanted.parts { Self::Smaller(stamp) } else { Self::Ready(stamp) }
    }
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
    if !looks_complete(layout) {
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
    Ok(State::of(stamp, wanted))
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
    let what = match parts {
        Parts::Cpu => "for the CPU",
        Parts::Nvrtc => "for the CPU, and NVRTC",
        Parts::Cuda => "with CUDA",
    };
    stage(layout, pins::wheels(parts).collect(), parts, &format!("libtorch {LIBTORCH_VERSION} {what}"))?;
    Stamp::remove(layout)?;
    layout.install_staging()?;
    layout.write_link()?;
    finish(layout, parts, Origin::Downloaded, started)
}

/// Adds what `parts` has more than the good libtorch that is there.
fn extend(layout: &Layout, have: &Stamp, parts: Parts) -> Result<Stamp> {
    let started = Instant::now();
    let what = if parts == Parts::Nvrtc { "NVRTC, which compiles GPU kernels," } else { "what a GPU needs" };
    stage(layout, pins::wheels_between(have.parts, parts).collect(), parts, what)?;
    Stamp::remove(layout)?;
    layout.merge_staging()?;
    finish(layout, parts, have.origin.clone(), started)
}

/// Fetches wheels, verifies them and unpacks what `parts` needs of them into staging.
fn stage(layout: &Layout, wheels: Vec<&'static Wheel>, parts: Parts, what: &str) -> Result<()> {
    platform::check()?;
    let python = Python::find()?;
    let (downloads, staging) = (layout.downloads(), layout.staging());
    let left = wheels.iter().map(|wheel| match fetch::reached(wheel, &downloads) {
        fetch::Reached::Done => 0,
        fetch::Reached::Partial(bytes) => wheel.bytes - bytes,
    });
    let unpacked = wheels.iter().map(|wheel| wheel.unpacked_bytes(parts));
    // What an unpacking that was killed has left would only take up room.
    remove(&staging)?;
    disk::check(&layout.home, left.sum::<u64>() + unpacked.sum::<u64>())?;

    eprintln!("fetching {what} through pip {}, once", python.pip);
    let files: Vec<_> = wheels
        .into_iter()
        .map(|wheel| fetch::fetch(wheel, &downloads, &python).map(|file| (wheel, file)))
        .collect::<Result<_>>()?;
    for (wheel, file) in &files {
        unpack::unpack(wheel, file, &staging, parts, &python)?;
    }
    Ok(())
}

fn finish(layout: &Layout, parts: Parts, origin: Origin, started: Instant) -> Result<Stamp> {
    let stamp = Stamp::measure(layout, LIBTORCH_VERSION.into(), parts, origin)?;
    stamp.write(layout)?;
    remove(&layout.downloads())?;
    eprintln!("libtorch {LIBTORCH_VERSION} is set up ({})", rounded(started.elapsed()));
    Ok(stamp)
}
