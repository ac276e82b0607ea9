//! How much of a device a model takes, by the rules of the worker.

use flotilla_worker_core::batch::BatchSettings;
use flotilla_worker_core::kv::KvBlock;
use flotilla_worker_core::ledger::PAGE_BYTES;
use flotilla_worker_core::residency::ModelNeeds;

use crate::fleet::{DeviceSpec, ModelSpec};

/// Pages that a model needs: its own, and a pool for one full context at least.
pub(super) fn needs(model: &ModelSpec) -> ModelNeeds {
    ModelNeeds {
        weights_pages: model.weights_bytes.div_ceil(PAGE_BYTES),
        workspace_pages: WORKSPACE_PAGES,
        kv_pages_min: context_pages(model),
        kv_block: Some(kv_block(model)),
        split: None,
    }
}

/// Pages without which a model does not run on a device.
pub(crate) fn pages_min(model: &ModelSpec) -> u64 {
    let needs = needs(model);
    needs.weights_pages + needs.workspace_pages + needs.kv_pages_min
}

/// Pages of the keys and values of one full context.
pub(crate) fn context_pages(model: &ModelSpec) -> u64 {
    kv_block(model).pages_for(model.context_tokens_max.into())
}

/// Pages that a device gives out.
pub(crate) fn pages(device: &DeviceSpec) -> u64 {
    device.memory_bytes / PAGE_BYTES
}

/// Whether a device has room for a model, were it the only one.
pub(crate) fn can_hold(device: &DeviceSpec, model: &ModelSpec) -> bool {
    pages_min(model) <= pages(device)
}

/// The batch of a model.
pub(super) fn batch_settings(model: &ModelSpec, device: &DeviceSpec) -> BatchSettings {
    let in_usize = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    BatchSettings {
        batch_tokens_max: in_usize(u64::from(device.batch_tokens_max)),
        sequences_max: in_usize(slots(model, device)),
        block_tokens: in_usize(BLOCK_TOKENS),
        slab: kv_block(model).slab(),
        context_tokens_max: in_usize(u64::from(model.context_tokens_max)),
    }
}

fn slots(model: &ModelSpec, device: &DeviceSpec) -> u64 {
    let most = device.slots.max(1);
    u64::from(model.slots.unwrap_or(most).clamp(1, most))
}

fn kv_block(model: &ModelSpec) -> KvBlock {
    KvBlock {
        tokens: BLOCK_TOKENS,
        bytes: model.kv_bytes_per_token.max(1).saturating_mul(BLOCK_TOKENS),
    }
}

/// As the engine's.
const BLOCK_TOKENS: u64 = 16;
/// 64 MiB, about what a step of 512 tokens of an 8-billion-parameter model needs.
const WORKSPACE_PAGES: u64 = 32;
