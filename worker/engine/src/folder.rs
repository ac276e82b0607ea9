//! A model's folder: its files are opened and checked, and read when somebody wants the weights.

mod file;
mod incoming;
mod reading;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use self::file::WeightsFile;
pub use self::incoming::{AllHere, Incoming};
pub use self::reading::{Piece, Pieces};
use crate::weights::{Required, TensorsError};
use crate::{ConfigError, EncoderConfig, Header, HeaderError, ModelConfig, TensorInfo, decoder, encoder};

/// A model's files, checked: every tensor that the model needs is there, with a supported element type, the
/// right shape, and bytes that lie inside its file.
#[derive(Debug)]
pub struct ModelFolder<C = ModelConfig> {
    config: C,
    files: Vec<WeightsFile>,
    tensors: Vec<Placed>,
    revision: u64,
}

/// One tensor of a folder.
#[derive(Clone, Copy, Debug)]
pub struct FolderTensor<'a> {
    /// What it is.
    pub info: &'a TensorInfo,
    file: &'a WeightsFile,
    file_offset: usize,
    len_bytes: usize,
}

impl FolderTensor<'_> {
    /// How many bytes its elements are.
    pub const fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// All of its elements as stored: row-major, little-endian. Of files that are all there.
    ///
    /// # Errors
    /// The file cannot be read, or is shorter than it was.
    pub fn read(&self) -> Result<Vec<u8>, ModelError> {
        let mut bytes = vec![0; self.len_bytes];
        self.read_at(0, &mut bytes, &AllHere)?;
        Ok(bytes)
    }

    /// Fills a buffer with what begins `offset_bytes` into the tensor and lies within it.
    fn read_at(
        &self,
        offset_bytes: usize,
        into: &mut [u8],
        incoming: &dyn Incoming,
    ) -> Result<(), ModelError> {
        self.file.read_at(self.file_offset + offset_bytes, into, incoming)
    }

    /// When a part of it will be there.
    fn turn(&self, offset_bytes: usize, len_bytes: usize, incoming: &dyn Incoming) -> usize {
        self.file
            .turn(self.file_offset + offset_bytes, len_bytes, incoming)
    }
}

#[derive(Debug)]
struct Placed {
    info: TensorInfo,
    file: usize,
    range: Range<usize>,
}

impl ModelFolder {
    /// Opens a decoder's folder with `config.json` and `model.safetensors`, or `model.safetensors.index.json` and the
    /// files it names; `generation_config.json` is optional. Other files are ignored.
    ///
    /// The files stay open. Replacing them by renaming changes nothing for this value; what is written into them
    /// shows in weights that are read later, and one that gets shorter cannot be read any more.
    ///
    /// # Errors
    /// The first fault found, with its file and tensor or field.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        Self::open_incoming(folder, &AllHere)
    }

    /// The same of a folder whose weights are still on their way; everything else is there. Waits for the headers.
    ///
    /// # Errors
    /// The first fault found, or that the headers do not come.
    pub fn open_incoming(folder: &Path, incoming: &dyn Incoming) -> Result<Self, ModelError> {
        let config_path = folder.join("config.json");
        let config_bytes = read(&config_path)?;
        let generation_bytes = read_if_there(&folder.join("generation_config.json"))?;
        let config =
            ModelConfig::from_json(&config_bytes, generation_bytes.as_deref()).map_err(|source| {
                ModelError::Config {
                    path: config_path,
                    source,
                }
            })?;
        Self::open_tensors(
            folder,
            incoming,
            config,
            &[&config_bytes],
            decoder::weights::is_ignored,
            |config, _| decoder::weights::required(config),
        )
    }
}

impl ModelFolder<EncoderConfig> {
    /// Opens an encoder's folder: the same files, and those that sentence-transformers puts beside them:
    /// `modules.json` with what it names, and `sentence_bert_config.json`, all optional.
    ///
    /// The files stay open, as those of a decoder do.
    ///
    /// # Errors
    /// The first fault found, with its file and tensor or field.
    pub fn open_encoder(folder: &Path) -> Result<Self, ModelError> {
        Self::open_encoder_incoming(folder, &AllHere)
    }

    /// The same of a folder whose weights are still on their way; everything else is there. Waits for the headers.
    ///
    /// # Errors
    /// The first fault found, or that the headers do not come.
    pub fn open_encoder_incoming(folder: &Path, incoming: &dyn Incoming) -> Result<Self, ModelError> {
        let (config, contents) = EncoderConfig::read(folder)?;
        let contents: Vec<&[u8]> = contents.iter().map(Vec::as_slice).collect();
        Self::open_tensors(
            folder,
            incoming,
            config,
            &contents,
            encoder::weights::is_ignored,
            |config, is_there| encoder::weights::required(config, is_there),
        )
    }
}

impl<C> ModelFolder<C> {
    /// Opens the tensors of a model whose configuration is made of `contents`.
    fn open_tensors<R>(
        folder: &Path,
        incoming: &dyn Incoming,
        config: C,
        contents: &[&[u8]],
        is_ignored: fn(&str) -> bool,
        required: impl FnOnce(&C, &dyn Fn(&str) -> bool) -> Vec<Required<R>>,
    ) -> Result<Self, ModelError> {
        let shards = Shards::open(folder, incoming)?;
        let mut revision = Revision::new();
        contents.iter().for_each(|bytes| revision.add(bytes));
        shards.files.iter().for_each(|shard| revision.add_shard(shard));
        let required = required(&config, &|tensor| shards.file_of.contains_key(tensor));
        let tensors = shards.resolve(required, is_ignored)?;
        Ok(Self {
            config,
            files: shards.files.into_iter().map(|shard| shard.file).collect(),
            tensors,
            revision: revision.0,
        })
    }

    /// The model's configuration.
    pub const fn config(&self) -> &C {
        &self.config
    }

    /// The tensors that the model needs, in load order: embeddings, layers ascending, norm, head.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = FolderTensor<'_>> {
        self.tensors.iter().map(|tensor| FolderTensor {
            info: &tensor.info,
            file: &self.files[tensor.file],
            file_offset: tensor.range.start,
            len_bytes: tensor.range.len(),
        })
    }

    /// Their descriptions, in the same order.
    pub fn tensor_infos(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.tensors.iter().map(|tensor| &tensor.info)
    }

    /// How many bytes the weights are.
    pub fn weights_bytes(&self) -> usize {
        self.tensors.iter().map(|tensor| tensor.range.len()).sum()
    }

    /// A cheap fingerprint of the configuration and the tensors' names, shapes, element types and places.
    ///
    /// It does not read the weights, so it tells a changed architecture from the same one, not changed weights.
    pub const fn revision(&self) -> u64 {
        self.revision
    }
}

struct Shards {
    /// Where an error about the set as a whole points.
    path: PathBuf,
    files: Vec<Shard>,
    /// The file of each tensor.
    file_of: HashMap<String, usize>,
}

struct Shard {
    file: WeightsFile,
    /// The file up to its header's end.
    start: Vec<u8>,
    header: Header,
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: BTreeMap<String, String>,
}

impl Shards {
    fn open(folder: &Path, incoming: &dyn Incoming) -> Result<Self, ModelError> {
        let path = folder.join("model.safetensors");
        let index_path = folder.join("model.safetensors.index.json");
        if path.exists() || !index_path.exists() {
            let shard = Shard::open(path.clone(), incoming)?;
            let file_of = shard
                .header
                .tensors()
                .keys()
                .map(|name| (name.clone(), 0))
                .collect();
            return Ok(Self {
                path,
                files: vec![shard],
                file_of,
            });
        }
        Self::open_index(folder, index_path, incoming)
    }

    fn open_index(folder: &Path, path: PathBuf, incoming: &dyn Incoming) -> Result<Self, ModelError> {
        let index: RawIndex =
            serde_json::from_slice(&read(&path)?).map_err(|source| ModelError::IndexJson {
                path: path.clone(),
                source,
            })?;
        let mut files: Vec<Shard> = Vec::new();
        let mut file_indexes = HashMap::new();
        let mut file_of = HashMap::new();
        for (tensor, file) in index.weight_map {
            let file_index = match file_indexes.get(&file) {
                Some(file_index) => *file_index,
                None => {
                    if !is_plain_file_name(&file) {
                        return Err(ModelError::IndexFileName {
                            path,
                            tensor,
                            found: file,
                        });
                    }
                    files.push(Shard::open(folder.join(&file), incoming)?);
                    file_indexes.insert(file, files.len() - 1);
                    files.len() - 1
                }
            };
            let shard = &files[file_index];
            if !shard.header.tensors().contains_key(&tensor) {
                return Err(ModelError::NotInShard {
                    path,
                    tensor,
                    shard: shard.file.path().to_owned(),
                });
            }
            file_of.insert(tensor, file_index);
        }
        Ok(Self { path, files, file_of })
    }

    fn resolve<R>(
        &self,
        required: Vec<Required<R>>,
        is_ignored: fn(&str) -> bool,
    ) -> Result<Vec<Placed>, ModelError> {
        let placed = self.resolve_required(required)?;
        let known: HashSet<&str> = placed.iter().map(|placed| placed.info.name.as_str()).collect();
        // The first in order, so that the same folder gives the same error.
        let unexpected = self
            .file_of
            .iter()
            .filter(|(tensor, _)| !known.contains(tensor.as_str()) && !is_ignored(tensor))
            .min();
        match unexpected {
            None => Ok(placed),
            Some((tensor, file)) => Err(ModelError::Tensors {
                path: self.files[*file].file.path().to_owned(),
                source: TensorsError::Unexpected {
                    tensor: tensor.clone(),
                },
            }),
        }
    }

    fn resolve_required<R>(&self, required: Vec<Required<R>>) -> Result<Vec<Placed>, ModelError> {
        required
            .into_iter()
            .map(|weight| {
                let Some(file) = self.file_of.get(&weight.name).copied() else {
                    let source = TensorsError::Missing {
                        tensor: weight.name,
                        shape: weight.shape,
                    };
                    return Err(ModelError::Tensors {
                        path: self.path.clone(),
                        source,
                    });
                };
                let shard = &self.files[file];
                shard.resolve(weight, file).map_err(|source| ModelError::Tensors {
                    path: shard.file.path().to_owned(),
                    source,
                })
            })
            .collect()
    }
}

impl Shard {
    fn open(path: PathBuf, incoming: &dyn Incoming) -> Result<Self, ModelError> {
        let file = WeightsFile::open(path)?;
        let (start, header) = file.header(incoming)?;
        Ok(Self { file, start, header })
    }

    fn resolve<R>(&self, weight: Required<R>, file: usize) -> Result<Placed, TensorsError> {
        let tensor = &self.header.tensors()[&weight.name];
        let info = match tensor.info(&weight.name) {
            Ok(info) => info,
            Err(dtype) => {
                return Err(TensorsError::Dtype {
                    tensor: weight.name,
                    found: dtype.to_owned(),
                });
            }
        };
        if info.shape != weight.shape {
            return Err(TensorsError::Shape {
                tensor: weight.name,
                expected: weight.shape,
                found: info.shape,
            });
        }
        Ok(Placed {
            info,
            file,
            range: tensor.file_range.clone(),
        })
    }
}

/// 64 bits of FNV-1a.
struct Revision(u64);

impl Revision {
    const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn add_shard(&mut self, shard: &Shard) {
        self.add(&shard.start);
    }
}

pub(crate) fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let only = (components.next(), components.next());
    matches!(only, (Some(Component::Normal(file)), None) if file == name) && !name.contains('\\')
}

/// A file of text, which comes from outside: of any kind and length.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, ModelError> {
    read_bounded(path, TEXT_BYTES_MAX).map_err(|source| ModelError::Read {
        path: path.to_owned(),
        source,
    })
}

pub(crate) fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, ModelError> {
    match read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(ModelError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn read_bounded(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    // One byte more than allowed, because a file can grow while it is read.
    regular(path)?.take(bytes_max + 1).read_to_end(&mut content)?;
    if content.len() as u64 > bytes_max {
        let message =
            format!("it has more than {bytes_max} bytes and is not this model's file: fetch it again");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(content)
}

fn regular(path: &Path) -> io::Result<File> {
    // Asked before opening: opening a pipe would wait for its writer.
    match path.metadata()?.is_file() {
        true => File::open(path),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file: replace it with the model's own file",
        )),
    }
}

/// Longest configuration or index: that of a model with a million tensors.
const TEXT_BYTES_MAX: u64 = 64 << 20;

/// Why a folder holds no model that the engine can run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file cannot be read.
    #[error("{path}: cannot be read", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of weights ends before where it ended when it was opened.
    #[error("{path}: is shorter than the {len_bytes} bytes that it was opened with", path = .path.display())]
    Shrunk {
        /// The file.
        path: PathBuf,
        /// Its length when it was opened.
        len_bytes: usize,
    },
    /// The system has no thread to read files with.
    #[error("the system has no thread to read files with")]
    NoThread {
        /// What the system said.
        source: io::Error,
    },
    /// The configuration cannot be used.
    #[error("{path}: configuration is not usable", path = .path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The field and why.
        source: ConfigError,
    },
    /// A file's header lies.
    #[error("{path}: not a valid safetensors file", path = .path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: HeaderError,
    },
    /// The index is not the JSON it should be.
    #[error("{path}: not an index of tensors in JSON", path = .path.display())]
    IndexJson {
        /// The index.
        path: PathBuf,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
    /// The index names something that is not a file of the folder.
    #[error("{path}: tensor {tensor}: expected the name of a file in the folder, found {found:?}", path = .path.display())]
    IndexFileName {
        /// The index.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What the index says.
        found: String,
    },
    /// A tensor is not in the file that the index names.
    #[error("{path}: tensor {tensor} is not in {shard}", path = .path.display(), shard = .shard.display())]
    NotInShard {
        /// The index.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The file that the index names.
        shard: PathBuf,
    },
    /// The tensors are not those of the configured model.
    #[error("{path}: not the tensors of the configured model", path = .path.display())]
    Tensors {
        /// The file, or the index if a tensor is in none.
        path: PathBuf,
        /// The tensor and why.
        source: TensorsError,
    },
}
