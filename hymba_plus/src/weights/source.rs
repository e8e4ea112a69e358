//! Foreign tensors: one safetensors file or several with an index, mapped into memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use safetensors::{SafeTensorError, SafeTensors, tensor::Metadata};
use serde_json::Value;
use tch::{Kind, Tensor};
use torch_bridge::{Error, mapped::MappedFile};

use super::{WeightsError, json::read_object, kinds::kind_of};

/// The one file of a model that is not split.
pub(super) const SINGLE: &str = "model.safetensors";
/// Which file each tensor of a split model is in.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// One file.
#[derive(Debug)]
struct Shard {
    file: MappedFile,
    start: usize,
    metadata: Metadata,
}

/// All tensors of a folder. Nothing but headers is read until a tensor is asked for.
#[derive(Debug)]
pub struct TensorFolder {
    folder: PathBuf,
    shards: Vec<Shard>,
    places: BTreeMap<String, usize>,
}

impl TensorFolder {
    /// Opens `model.safetensors`, or the files that `model.safetensors.index.json` names, and checks that they are whole
    /// and are what the index says.
    ///
    /// # Errors
    /// When there is neither; and everything that is wrong with the files.
    pub fn open(folder: &Path) -> Result<Self, WeightsError> {
        let mut this = Self { folder: folder.to_owned(), shards: Vec::new(), places: BTreeMap::new() };
        let mut problems = Vec::new();
        if folder.join(SINGLE).exists() {
            this.add(SINGLE, &mut problems);
        } else if folder.join(INDEX).exists() {
            this.add_indexed(&mut problems)?;
        } else {
            problems.push(nothing_there(folder));
        }
        if problems.is_empty() {
            return Ok(this);
        }
        Err(WeightsError::Damaged { path: folder.to_owned(), problems })
    }

    fn add_indexed(&mut self, problems: &mut Vec<String>) -> Result<(), WeightsError> {
        let path = self.folder.join(INDEX);
        let index = read_object(&path)?;
        let failed = |message: &str| WeightsError::Format { path: path.clone(), message: message.to_owned() };
        let map = index.get("weight_map").and_then(Value::as_object);
        let map = map.ok_or_else(|| failed("it has no weight_map"))?;
        let mut promised = BTreeMap::<String, BTreeSet<&String>>::new();
        for (tensor, file) in map {
            let file = file.as_str().ok_or_else(|| failed("a file in weight_map is not a name"))?;
            if Path::new(file).components().count() != 1 || file.starts_with('.') {
                return Err(failed(&format!("{file:?} in weight_map is not a file beside it")));
            }
            promised.entry(file.to_owned()).or_default().insert(tensor);
        }
        for (file, tensors) in promised {
            let Some(there) = self.add(&file, problems) else { continue };
            let absent = tensors.iter().filter(|tensor| !there.contains(**tensor));
            problems.extend(
                absent.map(|tensor| format!("{file}: the index says that {tensor} is in it, it is not")),
            );
            let extra = there.iter().filter(|tensor| map.get(*tensor).is_none());
            problems.extend(extra.map(|tensor| format!("{file}: {tensor} is in it, and not in the index")));
        }
        Ok(())
    }

    /// Adds a file and gives the names in it; none when it cannot be used.
    fn add(&mut self, name: &str, problems: &mut Vec<String>) -> Option<BTreeSet<String>> {
        let opened = MappedFile::open(&self.folder.join(name));
        let file = opened.map_err(|error| problems.push(error.to_string())).ok()?;
        let (header, metadata) = match SafeTensors::read_metadata(&file) {
            Ok(read) => read,
            Err(error) => {
                problems.push(format!("{name}: {}", in_words(&error, file.len())));
                return None;
            }
        };
        let names: BTreeSet<String> = metadata.tensors().into_keys().collect();
        for tensor in &names {
            if let Some(other) = self.places.insert(tensor.clone(), self.shards.len()) {
                let other = self.shards[other].file.path().display();
                problems.push(format!("{name}: {tensor} is in {other} too"));
            }
        }
        self.shards.push(Shard { file, start: header + 8, metadata });
        Some(names)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// The files.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.shards.iter().map(|shard| shard.file.path())
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Shape and type of a tensor, if it is there. The type is none when libtorch has no such type.
    pub fn info(&self, name: &str) -> Option<(Vec<i64>, Option<Kind>)> {
        let info = self.shards[*self.places.get(name)?].metadata.info(name)?;
        Some((info.shape.iter().map(|&size| size as i64).collect(), kind_of(info.dtype)))
    }

    /// The name of a tensor's type as its file has it, for messages.
    pub(super) fn type_name(&self, name: &str) -> String {
        let shard = self.places.get(name).map(|&place| &self.shards[place]);
        shard
            .and_then(|shard| shard.metadata.info(name))
            .map_or(String::new(), |info| format!("{:?}", info.dtype))
    }

    /// A copy of a tensor on the CPU, in the type it was written in.
    ///
    /// # Errors
    /// When there is none of that name, or libtorch has no such type.
    pub fn read(&self, name: &str) -> torch_bridge::Result<Tensor> {
        let failed =
            || Error::other(format!("{} has no tensor {name} that can be read", self.folder.display()));
        let shard = &self.shards[*self.places.get(name).ok_or_else(failed)?];
        let info = shard.metadata.info(name).ok_or_else(failed)?;
        let kind = kind_of(info.dtype).ok_or_else(failed)?;
        let (from, to) = info.data_offsets;
        let bytes = shard.file.get(shard.start + from..shard.start + to).ok_or_else(failed)?;
        let shape: Vec<i64> = info.shape.iter().map(|&size| size as i64).collect();
        torch_bridge::tensors::from_bytes(bytes, &shape, kind)
    }
}

fn nothing_there(folder: &Path) -> String {
    let pickled = std::fs::read_dir(folder).into_iter().flatten().flatten().find(|entry| {
        let path = entry.path();
        path.extension().is_some_and(|end| end == "bin" || end == "pt" || end == "pth")
    });
    match pickled {
        Some(entry) => format!(
            "there is {}, a pickle, which can run any code when it is opened; convert it to {SINGLE} first",
            entry.file_name().display()
        ),
        None => format!("there is neither {SINGLE} nor {INDEX}"),
    }
}

fn in_words(error: &SafeTensorError, length: usize) -> String {
    match error {
        SafeTensorError::MetadataIncompleteBuffer => {
            format!(
                "its {length} bytes are not as many as its header describes: it was cut short, or added to"
            )
        }
        SafeTensorError::HeaderTooSmall | SafeTensorError::InvalidHeaderLength => {
            format!("its {length} bytes end inside the header: it was cut short")
        }
        other => format!("not a safetensors file: {other}"),
    }
}
