//! The record of what was set up, by which a damaged or half-made `.libtorch` is told from a good one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::layout::Layout;
use super::pins::Parts;
use crate::failure::{Doing, Failure, Result};

/// Raised when this file's meaning changes; another format counts as no stamp.
const FORMAT: u32 = 1;

/// What `.libtorch/stamp.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    format: u32,
    /// libtorch's version, with the build's suffix where it has one (`2.11.0+cu130`).
    pub version: String,
    /// What is set up.
    pub parts: Parts,
    /// Where it came from.
    pub origin: Origin,
    /// Size of each library, by its path below `.libtorch`.
    files: BTreeMap<PathBuf, u64>,
    /// Number and total size of the headers.
    headers: (u64, u64),
}

/// Where a libtorch came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Fetched by this program, checksums verified.
    Downloaded,
    /// It lay there, and its essential libraries had the right checksums.
    Found,
    /// Symlinks into this folder of a torch that is installed already.
    Adopted(PathBuf),
}

impl Stamp {
    /// Measures what lies in `.libtorch` now.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn measure(layout: &Layout, version: String, parts: Parts, origin: Origin) -> Result<Self> {
        let mut files = BTreeMap::new();
        let mut add = |path: &Path, bytes| {
            if path.to_string_lossy().contains(".so")
                && let Ok(relative) = path.strip_prefix(&layout.home)
            {
                files.insert(relative.to_path_buf(), bytes);
            }
        };
        walk(&layout.torch().join("lib"), &mut add)?;
        // An adopted environment may hold any number of NVIDIA packages that are none of ours.
        if !matches!(origin, Origin::Adopted(_)) && layout.nvidia().exists() {
            walk(&layout.nvidia(), &mut add)?;
        }
        Ok(Self { format: FORMAT, version, parts, origin, files, headers: headers(layout)? })
    }

    /// The stamp of a set-up, if there is one that this program understands.
    pub fn read(layout: &Layout) -> Option<Self> {
        let text = fs::read_to_string(path(layout)).ok()?;
        serde_json::from_str(&text).ok().filter(|stamp: &Self| stamp.format == FORMAT)
    }

    /// Writes the stamp; the last step of a set-up.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, layout: &Layout) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| Failure::new(format!("could not write the stamp: {error}"), ""))?;
        let fresh = layout.home.join("stamp.json.new");
        fs::write(&fresh, text + "\n").doing(|| format!("write {}", fresh.display()))?;
        fs::rename(&fresh, path(layout)).doing(|| format!("write {}", path(layout).display()))
    }

    /// Takes the stamp away before anything is changed: a set-up that is killed is then known to be unfinished.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(layout: &Layout) -> Result<()> {
        super::layout::remove(&path(layout))
    }

    /// The first thing that is not as it was left, in words.
    pub fn damage(&self, layout: &Layout) -> Option<String> {
        for (file, bytes) in &self.files {
            match fs::metadata(layout.home.join(file)) {
                Err(_) => return Some(format!("{} is missing", file.display())),
                Ok(found) if found.len() != *bytes => {
                    return Some(format!("{} has {} bytes instead of {bytes}", file.display(), found.len()));
                }
                Ok(_) => {}
            }
        }
        match headers(layout) {
            Ok(found) if found == self.headers => None,
            _ => Some("torch/include is not complete".into()),
        }
    }
}

fn path(layout: &Layout) -> PathBuf {
    layout.home.join("stamp.json")
}

/// Number and total size in bytes of the headers there are.
///
/// # Errors
/// When a folder cannot be read.
pub fn headers(layout: &Layout) -> Result<(u64, u64)> {
    let mut sum = (0, 0);
    walk(&layout.torch().join("include"), &mut |_, bytes| sum = (sum.0 + 1, sum.1 + bytes))?;
    Ok(sum)
}

fn walk(folder: &Path, visit: &mut dyn FnMut(&Path, u64)) -> Result<()> {
    let reading = || format!("read {}", folder.display());
    for entry in fs::read_dir(folder).doing(reading)? {
        let path = entry.doing(reading)?.path();
        // Through symlinks: some environments are made of them.
        match fs::metadata(&path) {
            Ok(found) if found.is_dir() => walk(&path, visit)?,
            Ok(found) => visit(&path, found.len()),
            Err(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Folder;

    fn small_libtorch(name: &str) -> (Folder, Layout, Stamp) {
        let folder = Folder::new(name);
        folder.write(".libtorch/torch/lib/libc10.so", "c10");
        folder.write(".libtorch/nvidia/cu13/lib/libcudart.so.13", "cudart");
        folder.write(".libtorch/torch/include/ATen/ATen.h", "header");
        let layout = Layout::of(folder.path());
        let stamp = Stamp::measure(&layout, "2.11.0".into(), Parts::Cpu, Origin::Downloaded).unwrap();
        (folder, layout, stamp)
    }

    #[test]
    fn a_stamp_survives_the_disk() {
        let (_folder, layout, stamp) = small_libtorch("stamp");
        assert_eq!(Stamp::read(&layout), None);
        stamp.write(&layout).unwrap();
        assert_eq!(Stamp::read(&layout), Some(stamp.clone()));
        assert_eq!(stamp.damage(&layout), None);
        Stamp::remove(&layout).unwrap();
        assert_eq!(Stamp::read(&layout), None);
    }

    #[test]
    fn damage_is_seen() {
        let (folder, layout, stamp) = small_libtorch("damage");
        folder.write(".libtorch/torch/lib/libc10.so", "c");
        assert_eq!(stamp.damage(&layout).as_deref(), Some("torch/lib/libc10.so has 1 bytes instead of 3"));
        folder.write(".libtorch/torch/lib/libc10.so", "c10");
        fs::remove_file(layout.nvidia().join("cu13/lib/libcudart.so.13")).unwrap();
        assert!(stamp.damage(&layout).unwrap().ends_with("libcudart.so.13 is missing"));
        folder.write(".libtorch/nvidia/cu13/lib/libcudart.so.13", "cudart");
        fs::remove_file(layout.torch().join("include/ATen/ATen.h")).unwrap();
        assert_eq!(stamp.damage(&layout).as_deref(), Some("torch/include is not complete"));
    }

    #[test]
    fn a_stamp_of_another_format_is_no_stamp() {
        let (folder, layout, mut stamp) = small_libtorch("format");
        stamp.format = FORMAT + 1;
        stamp.write(&layout).unwrap();
        assert_eq!(Stamp::read(&layout), None);
        folder.write(".libtorch/stamp.json", "{ half");
        assert_eq!(Stamp::read(&layout), None);
    }
}
