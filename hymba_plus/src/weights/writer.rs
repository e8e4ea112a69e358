//! Writing safetensors files whose tensors are made one at a time, and folders that appear whole or not at all.

use std::{
    borrow::Cow,
    cell::RefCell,
    collections::HashMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use safetensors::{Dtype, SafeTensorError, View};
use tch::{Kind, Tensor};
use torch_bridge::{Result, tensors::to_bytes};

use super::{WeightsError, kinds::dtype_of};

/// A tensor that is to be written: known by its size, made when it is its turn.
pub(super) struct Row<'a> {
    pub(super) name: &'a str,
    pub(super) shape: Vec<usize>,
    pub(super) kind: Kind,
    pub(super) make: Box<dyn Fn() -> Result<Tensor> + 'a>,
}

impl Row<'_> {
    /// Size in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.kind.elt_size_in_bytes()
    }
}

/// A row at work: what went wrong when it was made comes out by `failure`, the format's writer has no way for it.
struct Written<'a, 'b> {
    row: &'b Row<'a>,
    dtype: Dtype,
    failure: &'b RefCell<Option<torch_bridge::Error>>,
}

impl View for Written<'_, '_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.row.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match (self.row.make)().and_then(|tensor| to_bytes(&tensor)) {
            Ok(bytes) => Cow::Owned(bytes),
            Err(error) => {
                self.failure.borrow_mut().get_or_insert(error);
                Cow::Owned(Vec::new())
            }
        }
    }

    fn data_len(&self) -> usize {
        self.row.bytes()
    }
}

/// Writes tensors to a file and makes it durable.
pub(super) fn write_file(path: &Path, rows: &[Row<'_>]) -> Result<(), WeightsError> {
    let failed = |source| WeightsError::Io { path: path.to_owned(), source };
    let failure = RefCell::new(None);
    let mut views = Vec::with_capacity(rows.len());
    for row in rows {
        let dtype = dtype_of(row.kind).ok_or_else(|| {
            torch_bridge::Error::other(format!(
                "{} is {:?}, which safetensors cannot hold",
                row.name, row.kind
            ))
        })?;
        views.push((row.name, Written { row, dtype, failure: &failure }));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]); // what other readers ask for
    let written = safetensors::serialize_to_file(views, Some(metadata), path);
    if let Some(error) = failure.into_inner() {
        return Err(error.into());
    }
    written.map_err(|error| match error {
        SafeTensorError::IoError(source) => failed(source),
        other => failed(io::Error::other(other.to_string())),
    })?;
    File::open(path).and_then(|file| file.sync_all()).map_err(failed)
}

/// A folder that is filled under a hidden name beside its own and takes its name when it is whole. Dropped before that,
/// it is gone.
#[derive(Debug)]
pub(super) struct NewFolder {
    path: PathBuf,
    temporary: PathBuf,
}

impl NewFolder {
    /// Begins a folder; refused when there is one with something in it.
    pub(super) fn begin(path: &Path) -> Result<Self, WeightsError> {
        let failed = |source| WeightsError::Io { path: path.to_owned(), source };
        let is_used = match fs::read_dir(path) {
            Ok(mut entries) => entries.next().is_some(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(source) => return Err(failed(source)),
        };
        if is_used {
            return Err(WeightsError::Exists { path: path.to_owned() });
        }
        let name = path.file_name().ok_or_else(|| failed(io::Error::other("not a name for a folder")))?;
        let hidden = format!(".{}.tmp-{}", name.display(), std::process::id());
        let temporary = path.with_file_name(hidden);
        if temporary.exists() {
            fs::remove_dir_all(&temporary).map_err(failed)?; // left by a process of this number that died
        }
        fs::create_dir_all(&temporary).map_err(failed)?;
        Ok(Self { path: path.to_owned(), temporary })
    }

    /// Where to write.
    pub(super) fn hidden_path(&self) -> &Path {
        &self.temporary
    }

    /// Writes a small file.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), WeightsError> {
        let path = self.temporary.join(name);
        let write = || {
            let mut file = File::create(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(|source| WeightsError::Io { path: path.clone(), source })
    }

    /// Gives the folder its name.
    pub(super) fn finish(self) -> Result<(), WeightsError> {
        let publish = || {
            // The library's files are readable by their owner only; weights are as open as any other file.
            let mode = fs::metadata(self.temporary.join(super::export::CONFIG))?.permissions();
            for entry in fs::read_dir(&self.temporary)? {
                fs::set_permissions(entry?.path(), mode.clone())?;
            }
            File::open(&self.temporary)?.sync_all()?;
            fs::rename(&self.temporary, &self.path)?; // takes the place of an empty folder
            let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
            File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
        };
        publish().map_err(|source| WeightsError::Io { path: self.path.clone(), source })
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.temporary); // nothing is there after it took its name
    }
}
