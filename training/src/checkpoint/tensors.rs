//! Named tensors in safetensors files, one tensor in memory at a time.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use hymba_plus::weights::{dtype_of, kind_of};
use safetensors::{Dtype, SafeTensorError, View, tensor::Metadata};
use tch::Tensor;

use super::CheckpointError;

/// Tensors by name, in an order of their owner's.
pub type NamedTensors = Vec<(String, Tensor)>;

/// A tensor as the format's writer asks for it; its bytes are copied out only when it is its turn.
struct Row<'a> {
    tensor: &'a Tensor,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: usize,
}

impl<'a> Row<'a> {
    fn new(name: &str, tensor: &'a Tensor) -> Result<Self, CheckpointError> {
        let kind = tensor.kind();
        let Some(dtype) = dtype_of(kind) else {
            return Err(CheckpointError::Kind { name: name.to_owned(), kind });
        };
        let shape = tensor.size().iter().map(|&size| size as usize).collect();
        Ok(Self { tensor, dtype, shape, bytes: tensor.numel() * kind.elt_size_in_bytes() })
    }
}

impl View for Row<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0; self.bytes];
        // A failed copy leaves too few bytes, which the writer's caller sees in the file's length.
        match self.tensor.f_copy_data_u8(&mut bytes, self.tensor.numel()) {
            Ok(()) => Cow::Owned(bytes),
            Err(_) => Cow::Owned(Vec::new()),
        }
    }

    fn data_len(&self) -> usize {
        self.bytes
    }
}

/// Writes tensors of any device to a file, and makes it durable.
///
/// # Errors
/// When a tensor's type is not in the format, or the file cannot be written whole.
pub fn write_tensors(path: &Path, tensors: &[(String, Tensor)]) -> Result<(), CheckpointError> {
    let write_error = |source| CheckpointError::Write { path: path.to_owned(), source };
    let rows = tensors
        .iter()
        .map(|(name, tensor)| Ok((name.as_str(), Row::new(name, tensor)?)))
        .collect::<Result<Vec<_>, CheckpointError>>()?;
    let data: usize = rows.iter().map(|(_, row)| row.bytes).sum();
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]); // what other readers ask for
    safetensors::serialize_to_file(rows, Some(metadata), path).map_err(|error| {
        write_error(match error {
            SafeTensorError::IoError(source) => source,
            other => io::Error::other(other.to_string()),
        })
    })?;
    let file = File::open(path).map_err(write_error)?;
    file.sync_all().map_err(write_error)?;
    let (start, _) = header(&file, path)?;
    let length = file.metadata().map_err(write_error)?.len();
    if length != start + data as u64 {
        return Err(write_error(io::Error::other("a tensor could not be copied to the CPU")));
    }
    Ok(())
}

/// A safetensors file that is open for reading. Tensors are read one by one, straight from the file: nothing is mapped,
/// so a file that shrinks under a reader is an error and not a crash.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    start: u64,
    metadata: Metadata,
}

impl TensorFile {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// When it cannot be read or its header does not describe it.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let read_error = |source| CheckpointError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read_error)?;
        let (start, metadata) = header(&file, path)?;
        let (length, expected) =
            (file.metadata().map_err(read_error)?.len(), start + metadata.data_len() as u64);
        if length != expected {
            let message = format!("{length} bytes long where its header describes {expected}");
            return Err(CheckpointError::Format { path: path.to_owned(), message });
        }
        Ok(Self { path: path.to_owned(), file, start, metadata })
    }

    /// All names, sorted.
    pub fn names(&self) -> BTreeSet<String> {
        self.metadata.tensors().into_keys().collect()
    }

    /// Reads one tensor to the CPU, in the type it was written in.
    ///
    /// # Errors
    /// When there is none of that name, its type is unknown, or the file cannot be read.
    pub fn read(&self, name: &str) -> Result<Tensor, CheckpointError> {
        let format_error = |message| CheckpointError::Format { path: self.path.clone(), message };
        let info =
            self.metadata.info(name).ok_or_else(|| format_error(format!("it has no tensor `{name}`")))?;
        let kind = kind_of(info.dtype).ok_or_else(|| {
            format_error(format!("`{name}` is {:?}, which libtorch cannot hold", info.dtype))
        })?;
        let (from, to) = info.data_offsets;
        let mut bytes = vec![0; to - from];
        self.file
            .read_exact_at(&mut bytes, self.start + from as u64)
            .map_err(|source| CheckpointError::Read { path: self.path.clone(), source })?;
        let shape: Vec<i64> = info.shape.iter().map(|&size| size as i64).collect();
        Tensor::f_from_data_size(&bytes, &shape, kind)
            .map_err(|source| CheckpointError::Torch { name: name.to_owned(), source })
    }

    /// Copies the file's values into tensors. Every name must be there, none besides, and shapes and types must be
    /// equal; otherwise nothing is copied and everything that differs is listed.
    ///
    /// # Errors
    /// When names, shapes or types differ, or reading fails.
    pub fn load_into(&self, targets: &[(String, Tensor)]) -> Result<(), CheckpointError> {
        self.compare(targets)?;
        for (name, target) in targets {
            let source = self.read(name)?;
            let torch_error = |source| CheckpointError::Torch { name: name.clone(), source };
            let _no_grad = tch::no_grad_guard();
            target.shallow_clone().f_copy_(&source).map_err(torch_error)?;
        }
        Ok(())
    }

    fn compare(&self, targets: &[(String, Tensor)]) -> Result<(), CheckpointError> {
        let known: BTreeMap<_, _> = self.metadata.tensors().into_iter().collect();
        let wanted: BTreeSet<&String> = targets.iter().map(|(name, _)| name).collect();
        let missing: Vec<String> =
            wanted.iter().filter(|name| !known.contains_key(**name)).map(|n| (*n).clone()).collect();
        let unexpected: Vec<String> = known.keys().filter(|name| !wanted.contains(name)).cloned().collect();
        let mut mismatched = Vec::new();
        for (name, target) in targets {
            let Some(info) = known.get(name) else { continue };
            let shape: Vec<i64> = info.shape.iter().map(|&size| size as i64).collect();
            if shape != target.size() {
                mismatched.push(format!("{name} is {shape:?} in the file, {:?} here", target.size()));
            } else if kind_of(info.dtype) != Some(target.kind()) {
                mismatched.push(format!("{name} is {:?} in the file, {:?} here", info.dtype, target.kind()));
            }
        }
        if missing.is_empty() && unexpected.is_empty() && mismatched.is_empty() {
            return Ok(());
        }
        Err(CheckpointError::Mismatch { path: self.path.clone(), missing, unexpected, mismatched })
    }
}

/// Where the data starts, and what the header says of it.
fn header(mut file: &File, path: &Path) -> Result<(u64, Metadata), CheckpointError> {
    let format_error = |message: String| CheckpointError::Format { path: path.to_owned(), message };
    let read_error = |source| CheckpointError::Read { path: path.to_owned(), source };
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(read_error)?;
    let length = u64::from_le_bytes(length);
    if length > file.metadata().map_err(read_error)?.len() {
        return Err(format_error(format!("a header of {length} bytes in a file that is shorter")));
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact(&mut bytes).map_err(read_error)?;
    let metadata =
        serde_json::from_slice(&bytes).map_err(|error| format_error(format!("its header: {error}")))?;
    Ok((length + 8, metadata))
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn named(name: &str, tensor: Tensor) -> (String, Tensor) {
        (name.to_owned(), tensor)
    }

    #[test]
    fn every_type_and_shape_comes_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        let base = Tensor::from_slice(&[1.0, -2.5, f64::NAN, f64::INFINITY, -0.0, 0.1]).view([2, 3]);
        let mut tensors = vec![
            named("bool", base.ge(0.0)),
            named("scalar", Tensor::from(3.25_f64)),
            named("empty", Tensor::zeros([0, 4], (Kind::Float, Device::Cpu))),
            named("strided", base.transpose(0, 1)),
        ];
        for kind in [Kind::Double, Kind::Float, Kind::Half, Kind::BFloat16] {
            tensors.push(named(&format!("{kind:?}"), base.to_kind(kind)));
        }
        for kind in [Kind::Int64, Kind::Int, Kind::Int16, Kind::Int8, Kind::Uint8] {
            tensors.push(named(&format!("{kind:?}"), Tensor::from_slice(&[1_i64, 2, 100]).to_kind(kind)));
        }
        write_tensors(&path, &tensors).unwrap();
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.names().len(), tensors.len());
        for (name, tensor) in &tensors {
            let back = file.read(name).unwrap();
            assert_eq!((back.kind(), back.size()), (tensor.kind(), tensor.size()), "{name}");
            let bytes = |tensor: &Tensor| {
                let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
                tensor.copy_data_u8(&mut bytes, tensor.numel());
                bytes
            };
            assert_eq!(bytes(&back), bytes(tensor), "{name}");
        }
    }

    #[test]
    fn everything_that_differs_is_listed_and_nothing_is_copied() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
        write_tensors(
            &path,
            &[
                named("same", zeros(&[2]) + 1.0),
                named("shape", zeros(&[2])),
                named("kind", zeros(&[2])),
                named("old.a", zeros(&[1])),
                named("old.b", zeros(&[1])),
            ],
        )
        .unwrap();
        let target = zeros(&[2]);
        let error = TensorFile::open(&path)
            .unwrap()
            .load_into(&[
                named("same", target.shallow_clone()),
                named("shape", zeros(&[3])),
                named("kind", zeros(&[2]).to_kind(Kind::Double)),
                named("new.a", zeros(&[1])),
                named("new.b", zeros(&[1])),
            ])
            .unwrap_err()
            .to_string();
        for part in [
            "2 missing: new.a, new.b",
            "2 unexpected: old.a, old.b",
            "2 different: shape is [2] in the file, [3] here, kind is F32 in the file, Double here",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(target.equal(&zeros(&[2])));
    }

    #[test]
    fn a_long_list_of_differences_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        write_tensors(&path, &[named("a", Tensor::from(1.0))]).unwrap();
        let wanted: Vec<_> = (0..400).map(|i| named(&format!("w{i:03}"), Tensor::from(1.0))).collect();
        let error = TensorFile::open(&path).unwrap().load_into(&wanted).unwrap_err().to_string();
        let list = "400 missing: w000, w001, w002, w003, w004 and 395 more; 1 unexpected: a";
        assert!(error.ends_with(list), "{error}");
    }

    #[test]
    fn a_file_of_another_length_than_its_header_says_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        write_tensors(&path, &[named("a", Tensor::zeros([8], (Kind::Float, Device::Cpu)))]).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for length in [0, 4, 20, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(TensorFile::open(&path).is_err(), "{length}");
        }
    }
}
