//! The weights of a loaded model as one region that lies beside the device, and the way back.
//!
//! What a device does for it is its own: one that computes in host memory hands the region over as it is, one that
//! does not copies it to memory that it can read fast.

use crate::PAGE_BYTES;
use crate::backend::Backend;
use crate::decoder::KvSpace;
use crate::loader::LoadError;
use crate::plan::{ModelPlan, ModelRegions};

/// Makes a model again of the weights that [`crate::DecoderModel::into_images`] or
/// [`crate::EncoderModel::into_image`] took out, by the plan that it was loaded with. Addresses are
/// reserved for keys and values, where the model has such.
///
/// That the image is of the same files and precision is the caller's to know; only its size is checked.
///
/// # Errors
/// The image is not as large as the plan's weights, or the device has not the memory; the image is lost then.
pub fn load_image<B: Backend, P: ModelPlan>(
    mut backend: B,
    plan: P,
    image: B::Image,
    kv_space: KvSpace,
) -> Result<P::Model<B>, LoadError> {
    let weights = backend.put_in(image)?;
    let (pages, planned_pages) = (backend.mapped_pages(weights), plan.weights().pages());
    if pages != planned_pages {
        return Err(LoadError::OtherImage { pages, planned_pages });
    }
    let kv_bytes = kv_space.len_bytes().ok_or(LoadError::KvTooLarge { kv_space })?;
    let workspace = backend.reserve(plan.workspace_bytes())?;
    backend.map_pages(workspace, 0..plan.workspace_pages())?;
    // A range of addresses is never empty.
    let kv = backend.reserve(kv_bytes.max(PAGE_BYTES))?;
    let regions = ModelRegions {
        weights,
        workspace,
        kv,
        kv_space,
    };
    Ok(plan.into_model(backend, regions)?)
}
