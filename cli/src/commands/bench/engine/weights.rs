//! Random weights as a real model folder: `config.json` and one `model.safetensors` in bf16.

use std::fs::{self, File};
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::Path;
use std::thread;

use anyhow::Context as _;
use serde_json::{Map, Value, json};

use super::shape::Shape;

/// Name of the file with the weights.
pub(crate) const WEIGHTS_FILE: &str = "model.safetensors";

/// Bytes of one parameter.
pub(crate) const BF16_BYTES: usize = 2;

/// Writes the folder, unless it is there from an earlier run; all runs write the same weights.
///
/// # Errors
/// When files cannot be written.
pub(crate) fn write(shape: &Shape, folder: &Path, threads: NonZeroUsize) -> anyhow::Result<()> {
    let config = serde_json::to_vec_pretty(&shape.config())?;
    let config_path = folder.join("config.json");
    // The configuration is written last: where it is, the weights are whole.
    if fs::read(&config_path).is_ok_and(|found| found == config) {
        return Ok(());
    }
    remake(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join(WEIGHTS_FILE);
    write_weights(shape, &path, threads).with_context(|| format!("cannot write {}", path.display()))?;
    fs::write(&config_path, config).with_context(|| format!("cannot write {}", config_path.display()))
}

/// What was made of other weights goes with them.
fn remake(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    fs::create_dir_all(folder)
}

fn write_weights(shape: &Shape, path: &Path, threads: NonZeroUsize) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(&header(shape))?;
    let mut bytes = vec![0; BUFFER_BYTES];
    let mut written = 0;
    for (_, tensor) in shape.tensors() {
        let elements = tensor.iter().product::<usize>();
        let kind = match tensor.len() {
            1 => Kind::Norm,
            _ => Kind::Matrix,
        };
        let mut left = elements;
        while left > 0 {
            let count = left.min(BUFFER_BYTES / BF16_BYTES);
            let part = &mut bytes[..count * BF16_BYTES];
            fill(part, kind, written as u64, threads);
            file.write_all(part)?;
            written += count;
            left -= count;
        }
    }
    Ok(())
}

/// The header of a safetensors file: its length, then JSON with every tensor's place.
fn header(shape: &Shape) -> Vec<u8> {
    let mut tensors = Map::new();
    let mut end = 0;
    for (name, shape) in shape.tensors() {
        let start = end;
        end += shape.iter().product::<usize>() * BF16_BYTES;
        tensors.insert(
            name,
            json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}),
        );
    }
    let mut json = Value::Object(tensors).to_string();
    // Blanks at the end align what follows.
    json.push_str(&" ".repeat(json.len().next_multiple_of(8) - json.len()));
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json.into_bytes());
    header
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Ones, as a normalisation that changes nothing.
    Norm,
    /// Close to normal, mean 0, standard deviation 0.02.
    Matrix,
}

/// Fills `bytes` with elements `first..` of the file, a share for each thread.
fn fill(bytes: &mut [u8], kind: Kind, first: u64, threads: NonZeroUsize) {
    let (elements, _) = bytes.as_chunks_mut::<BF16_BYTES>();
    let share = elements.len().div_ceil(threads.get());
    thread::scope(|scope| {
        for (index, part) in elements.chunks_mut(share).enumerate() {
            let first = first + (index * share) as u64;
            scope.spawn(move || {
                for (element, bytes) in (first..).zip(part) {
                    *bytes = match kind {
                        Kind::Norm => bf16(1.0),
                        Kind::Matrix => bf16(random(element)),
                    };
                }
            });
        }
    });
}

/// The element with this index, whichever thread asks: the sum of four uniform numbers.
fn random(index: u64) -> f32 {
    let bits = mix(index);
    let quarter = |at: u32| (bits >> at) & 0xffff;
    let sum = quarter(0) + quarter(16) + quarter(32) + quarter(48);
    let sum = u32::try_from(sum).expect("four numbers of 16 bits");
    #[expect(clippy::cast_precision_loss, reason = "18 bits fit an f32 exactly")]
    let centred = sum as f32 - 2.0 * 65_535.0;
    // The standard deviation of the sum of four uniform numbers is 65536 / sqrt(3).
    centred * (0.02 / 37_837.22)
}

/// The finalizer of SplitMix64: every bit of the index changes half of the result's.
const fn mix(index: u64) -> u64 {
    let mut bits = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// The upper half of the number: exact enough for weights that nobody trained.
const fn bf16(value: f32) -> [u8; 2] {
    let [_, _, low, high] = value.to_le_bytes();
    [low, high]
}

/// Large enough for the threads to be worth their start.
const BUFFER_BYTES: usize = 32 << 20;

#[cfg(test)]
mod tests {
    use flotilla_worker_engine::ModelFolder;

    use super::super::shape::ShapeName;
    use super::*;

    #[test]
    fn weights_have_the_deviation_of_a_fresh_model() {
        let count = 100_000u32;
        let values = (0..u64::from(count)).map(random);
        let (mut sum, mut squares) = (0.0, 0.0);
        for value in values.map(f64::from) {
            sum += value;
            squares += value * value;
        }
        let (mean, deviation) = (sum / f64::from(count), (squares / f64::from(count)).sqrt());
        assert!(
            mean.abs() < 5e-4 && (deviation - 0.02).abs() < 5e-4,
            "{mean} {deviation}"
        );
    }

    #[test]
    fn a_folder_is_a_model_and_its_bytes_do_not_depend_on_the_threads() {
        let shape = ShapeName::Tiny.shape();
        let folder = tempfile::tempdir().unwrap();
        let paths = [1, 3].map(|threads| {
            let path = folder.path().join(threads.to_string());
            write(&shape, &path, NonZeroUsize::new(threads).unwrap()).unwrap();
            path
        });
        let [one, three] = paths
            .each_ref()
            .map(|path| fs::read(path.join(WEIGHTS_FILE)).unwrap());
        assert_eq!(one, three);
        let opened = ModelFolder::open(&paths[0]).unwrap();
        assert_eq!(opened.weights_bytes(), shape.parameters() * BF16_BYTES);
        assert!(opened.config().tied_embeddings);
    }

    #[test]
    fn a_folder_of_an_earlier_run_is_kept_and_one_without_its_configuration_is_not() {
        let shape = ShapeName::Tiny.shape();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny");
        write(&shape, &path, NonZeroUsize::MIN).unwrap();
        fs::write(path.join("derived"), "x").unwrap();
        write(&shape, &path, NonZeroUsize::MIN).unwrap();
        assert!(path.join("derived").exists());
        fs::remove_file(path.join("config.json")).unwrap();
        write(&shape, &path, NonZeroUsize::MIN).unwrap();
        assert!(!path.join("derived").exists());
        ModelFolder::open(&path).unwrap();
    }
}
