//! What lies where in `.libtorch`, and the folder that torch-sys links against.
//!
//! ```text
//! torch/{lib,include}     the libraries and headers, as in an installed torch package
//! nvidia/*/lib            what they open, found by their own $ORIGIN/../../nvidia/... search path
//! link/                   what LIBTORCH points to when building
//! stamp.json              what is there, written last
//! download/, staging/     work in progress
//! ```
//!
//! `link/` names libtorch_cpu and libc10 only. torch-sys would link libtorch_cuda if it saw it, and the binary would
//! then not start without CUDA; ours opens it at run time. `link/lib` is never a run-time search path: `$ORIGIN` of a
//! library found through a symlink is the symlink's folder, where its neighbours are not.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::pins::LIBTORCH_VERSION;
use crate::failure::{Doing, Result};

/// Libraries that `link/lib` shows the linker.
const LINKED: [&str; 2] = ["libc10.so", "libtorch_cpu.so"];
/// torch-sys asks for `-ltorch`; this linker script answers without libtorch.so, which needs libtorch_cuda.
const LIBTORCH_SCRIPT: &str = "INPUT(libtorch_cpu.so)\n";

/// The folder `.libtorch` of a workspace.
#[derive(Debug, Clone)]
pub struct Layout {
    /// `.libtorch` itself.
    pub home: PathBuf,
}

impl Layout {
    /// The layout of the workspace at `root`.
    pub fn of(root: &Path) -> Self {
        Self { home: root.join(".libtorch") }
    }

    /// The torch package: `lib/` and `include/`.
    pub fn torch(&self) -> PathBuf {
        self.home.join("torch")
    }

    /// NVIDIA's libraries.
    pub fn nvidia(&self) -> PathBuf {
        self.home.join("nvidia")
    }

    /// The folder of wheels, whole and partial.
    pub fn downloads(&self) -> PathBuf {
        self.home.join("download")
    }

    /// The folder that wheels are unpacked to.
    pub fn staging(&self) -> PathBuf {
        self.home.join("staging")
    }

    fn links(&self) -> Vec<(PathBuf, PathBuf)> {
        let link = self.home.join("link");
        let libraries =
            LINKED.iter().map(|name| (link.join("lib").join(name), Path::new("../../torch/lib").join(name)));
        libraries.chain([(link.join("include"), "../torch/include".into())]).collect()
    }

    fn texts(&self) -> [(PathBuf, String); 2] {
        let link = self.home.join("link");
        [
            (link.join("lib/libtorch.so"), LIBTORCH_SCRIPT.to_owned()),
            (link.join("build-version"), format!("{LIBTORCH_VERSION}\n")),
        ]
    }

    /// Whether `link/` is as [`Layout::write_link`] leaves it.
    pub fn link_is_good(&self) -> bool {
        let links = self.links();
        let mut links = links.iter();
        links.all(|(at, to)| fs::read_link(at).is_ok_and(|found| found == *to))
            && self.texts().iter().all(|(at, text)| fs::read_to_string(at).is_ok_and(|found| found == *text))
    }

    /// Writes `link/` anew.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write_link(&self) -> Result<()> {
        let link = self.home.join("link");
        remove(&link)?;
        let writing = || format!("write {}", link.display());
        fs::create_dir_all(link.join("lib")).doing(writing)?;
        for (at, to) in self.links() {
            symlink(to, at).doing(writing)?;
        }
        for (at, text) in self.texts() {
            fs::write(at, text).doing(writing)?;
        }
        Ok(())
    }

    /// Moves what staging holds into place, a rename each, and removes what was there.
    ///
    /// # Errors
    /// When a folder cannot be moved or removed.
    pub fn install_staging(&self) -> Result<()> {
        for name in ["torch", "nvidia"] {
            let (new, place) = (self.staging().join(name), self.home.join(name));
            let old = self.staging().join(format!("old-{name}"));
            remove(&old)?;
            rename_if_there(&place, &old)?;
            rename_if_there(&new, &place)?;
        }
        remove(&self.staging())
    }

    /// Moves what staging holds to its places and leaves everything else there, a rename for each file.
    ///
    /// # Errors
    /// When a file cannot be moved.
    pub fn merge_staging(&self) -> Result<()> {
        merge(&self.staging(), &self.home)?;
        remove(&self.staging())
    }
}

/// Moves every file below `from` to the same place below `to`, over what is there.
fn merge(from: &Path, to: &Path) -> Result<()> {
    let moving = || format!("move {} to {}", from.display(), to.display());
    fs::create_dir_all(to).doing(moving)?;
    for entry in fs::read_dir(from).doing(moving)? {
        let (new, place) = entry.map(|entry| (entry.path(), to.join(entry.file_name()))).doing(moving)?;
        if new.is_dir() && !new.is_symlink() {
            merge(&new, &place)?;
        } else {
            fs::rename(new, place).doing(moving)?;
        }
    }
    Ok(())
}

/// Removes a file, a symlink or a whole folder; nothing there is fine.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    ignore_missing(removed).doing(|| format!("remove {}", path.display()))
}

fn rename_if_there(from: &Path, to: &Path) -> Result<()> {
    ignore_missing(fs::rename(from, to)).doing(|| format!("move {} to {}", from.display(), to.display()))
}

fn ignore_missing(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Folder;

    #[test]
    fn the_link_folder_shows_only_what_is_linked() {
        let folder = Folder::new("layout");
        let layout = Layout::of(folder.path());
        folder.write(".libtorch/torch/lib/libc10.so", "c10");
        folder.write(".libtorch/torch/lib/libtorch_cuda.so", "cuda");
        assert!(!layout.link_is_good());
        layout.write_link().unwrap();
        assert!(layout.link_is_good());

        let link = layout.home.join("link");
        assert_eq!(fs::read_to_string(link.join("lib/libc10.so")).unwrap(), "c10");
        assert_eq!(fs::read_to_string(link.join("lib/libtorch.so")).unwrap(), "INPUT(libtorch_cpu.so)\n");
        assert_eq!(fs::read_to_string(link.join("build-version")).unwrap().trim(), "2.11.0");
        assert!(!link.join("lib/libtorch_cuda.so").exists());

        fs::remove_file(link.join("lib/libtorch_cpu.so")).unwrap();
        assert!(!layout.link_is_good());
    }

    #[test]
    fn staging_replaces_what_was_there() {
        let folder = Folder::new("staging");
        let layout = Layout::of(folder.path());
        folder.write(".libtorch/torch/lib/old", "");
        folder.write(".libtorch/nvidia/old", "");
        folder.write(".libtorch/staging/torch/lib/new", "");
        layout.install_staging().unwrap();
        assert!(layout.torch().join("lib/new").exists());
        assert!(!layout.torch().join("lib/old").exists());
        assert!(!layout.nvidia().exists());
        assert!(!layout.staging().exists());
    }

    #[test]
    fn staging_can_be_added_to_what_was_there() {
        let folder = Folder::new("merge");
        let layout = Layout::of(folder.path());
        folder.write(".libtorch/nvidia/cu13/lib/old", "");
        folder.write(".libtorch/nvidia/cu13/lib/both", "old");
        folder.write(".libtorch/staging/nvidia/cu13/lib/both", "new");
        folder.write(".libtorch/staging/nvidia/cu13/include/new.h", "");
        layout.merge_staging().unwrap();
        let cu13 = layout.nvidia().join("cu13");
        assert!(cu13.join("lib/old").exists() && cu13.join("include/new.h").exists());
        assert_eq!(fs::read_to_string(cu13.join("lib/both")).unwrap(), "new");
        assert!(!layout.staging().exists());
    }

    #[test]
    fn removing_a_symlink_leaves_what_it_points_to() {
        let folder = Folder::new("remove");
        let kept = folder.write("kept/file", "");
        let link = folder.path().join("link");
        symlink(kept.parent().unwrap(), &link).unwrap();
        remove(&link).unwrap();
        remove(&link).unwrap();
        assert!(kept.exists());
    }
}
