//! Uses a libtorch that is on this machine already, by symlinks, instead of fetching one.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::layout::{Layout, remove};
use super::pins::{LIBTORCH_VERSION, Parts};
use super::{loader, python};
use crate::failure::{Doing, Failure, Result};

/// A libtorch that someone else installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The folder with `lib/` and `include/`.
    pub folder: PathBuf,
    /// Its version, with the build's suffix.
    pub version: String,
    /// What it can do.
    pub parts: Parts,
}

impl Candidate {
    /// Looks at a folder with `lib/` and `include/`: an unpacked libtorch archive or an installed torch package.
    ///
    /// # Errors
    /// When it is none, or one of another version.
    pub fn at(given: &Path) -> Result<Self> {
        let library = given.join("lib/libtorch_cpu.so");
        let refuse = |why: &str| {
            Err(Failure::new(
                format!("{} {why}, and this project needs libtorch {LIBTORCH_VERSION}", given.display()),
                format!("point LIBTORCH to a libtorch {LIBTORCH_VERSION}, or unset it to let one be fetched"),
            ))
        };
        // Some layouts show the library by a symlink; where it really lies its neighbours are too.
        let Ok(real) = fs::canonicalize(&library) else {
            return refuse("has no lib/libtorch_cpu.so");
        };
        let Some(folder) = real.parent().and_then(Path::parent).map(Path::to_path_buf) else {
            return refuse("is no libtorch");
        };
        let Some(version) = version(&folder).or_else(|| version(given)) else {
            return refuse("holds a libtorch of unknown version");
        };
        if !is_the_version(&version) {
            return refuse(&format!("holds libtorch {version}"));
        }
        if !folder.join("include/torch").is_dir() {
            return refuse("has no headers (include/torch)");
        }
        let cuda = folder.join("lib/libtorch_cuda.so").exists();
        Ok(Self { folder, version, parts: if cuda { Parts::Cuda } else { Parts::Cpu } })
    }

    /// The first `python3` on the `PATH` whose installed torch will do for `parts`.
    pub fn of_python(parts: Parts) -> Option<Self> {
        let folders = python::interpreters().into_iter();
        let found = folders.filter_map(|interpreter| python::folder_with_torch(&interpreter));
        found.filter_map(|folder| Self::at(&folder.join("torch")).ok()).find(|found| found.parts >= parts)
    }

    /// Whether it runs outside its Python; a torch whose libraries are found by Python code does not.
    pub fn opens(&self) -> bool {
        let opened = loader::opens(&self.folder.join("lib/libtorch_cpu.so"));
        if let Err(reason) = &opened {
            eprintln!("not using the libtorch in {}: {reason}", self.folder.display());
        }
        opened.is_ok()
    }

    /// Points `.libtorch/torch` and `.libtorch/nvidia` at it.
    ///
    /// # Errors
    /// When the symlinks cannot be written.
    pub fn link_into(&self, layout: &Layout) -> Result<()> {
        remove(&layout.torch())?;
        remove(&layout.nvidia())?;
        symlink(&self.folder, layout.torch()).doing(|| format!("write {}", layout.torch().display()))?;
        // The libraries find it by $ORIGIN/../../nvidia; ours is for those who look for headers and NVRTC.
        match self.folder.parent().map(|packages| packages.join("nvidia")).filter(|nvidia| nvidia.is_dir()) {
            Some(nvidia) => {
                symlink(nvidia, layout.nvidia()).doing(|| format!("write {}", layout.nvidia().display()))
            }
            None => Ok(()),
        }
    }
}

/// A release or a build of it (`2.11.0+cu130`), not a development snapshot.
fn is_the_version(version: &str) -> bool {
    version.strip_prefix(LIBTORCH_VERSION).is_some_and(|rest| rest.is_empty() || rest.starts_with('+'))
}

/// The version an archive writes to `build-version`, or a Python package to `version.py`.
fn version(folder: &Path) -> Option<String> {
    let plain = fs::read_to_string(folder.join("build-version")).ok().map(|text| text.trim().to_owned());
    plain.or_else(|| parse_version_py(&fs::read_to_string(folder.join("version.py")).ok()?))
}

fn parse_version_py(text: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
    Some(line.trim().trim_matches(['\'', '"']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Folder;

    fn package(version: &str) -> (Folder, PathBuf) {
        let folder = Folder::new("adopt");
        folder.write(
            "site/torch/version.py",
            format!("from typing import Optional\n__version__ = '{version}'\n"),
        );
        folder.write("site/torch/lib/libtorch_cpu.so", "");
        folder.write("site/torch/include/torch/all.h", "");
        folder.write("site/nvidia/cu13/lib/libcudart.so.13", "");
        let torch = fs::canonicalize(folder.path()).unwrap().join("site/torch");
        (folder, torch)
    }

    #[test]
    fn an_installed_package_is_adopted() {
        let (folder, torch) = package("2.11.0+cu130");
        let found = Candidate::at(&torch).unwrap();
        assert_eq!((found.version.as_str(), found.parts), ("2.11.0+cu130", Parts::Cpu));
        folder.write("site/torch/lib/libtorch_cuda.so", "");
        assert_eq!(Candidate::at(&torch).unwrap().parts, Parts::Cuda);

        let layout = Layout::of(folder.path());
        fs::create_dir(&layout.home).unwrap();
        found.link_into(&layout).unwrap();
        assert!(layout.torch().join("lib/libtorch_cpu.so").exists());
        assert!(layout.nvidia().join("cu13/lib/libcudart.so.13").exists());
        found.link_into(&layout).unwrap();
    }

    #[test]
    fn another_version_is_named() {
        for wrong in ["2.5.1", "2.11.0a0+git1234", "2.11.01"] {
            let (_folder, torch) = package(wrong);
            let text = Candidate::at(&torch).unwrap_err().to_string();
            assert!(text.contains(&format!("holds libtorch {wrong}, and this project needs")), "{text}");
        }
    }

    #[test]
    fn a_folder_of_symlinks_leads_to_the_real_one() {
        let (folder, torch) = package("2.11.0");
        fs::create_dir_all(folder.path().join("link/lib")).unwrap();
        symlink(torch.join("lib/libtorch_cpu.so"), folder.path().join("link/lib/libtorch_cpu.so")).unwrap();
        assert_eq!(Candidate::at(&folder.path().join("link")).unwrap().folder, torch);
    }

    #[test]
    fn a_folder_without_libtorch_is_refused() {
        let text = Candidate::at(Path::new("/nowhere")).unwrap_err().to_string();
        assert!(text.contains("/nowhere has no lib/libtorch_cpu.so"), "{text}");
    }
}
