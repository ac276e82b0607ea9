//! How much of a device a model takes, by the rules of the worker.

use flotilla_worker_core::batch::BatchSettings;
use flotilla_worker_core::ledger::PAGE_BYTES;
use flotilla_worker_core::residency::{Grant, KvBlock, ModelNeeds};

use crate::fleet::{DeviceSpec, ModelSpec};

/// Pages that a model needs: at least keys and values of one full context, at best those of every slot, but
/// no more than a part of the device.
pub(super) fn needs(model: &ModelSpec, device: &DeviceSpec, device_pages: u64) -> ModelNeeds {
    let kv_pages_min = kv_pages(model, 1);
    let kv_pages_all = kv_pages(model, slots(model, device));
    ModelNeeds {
        weights_pages: model.weights_bytes.div_ceil(PAGE_BYTES),
        workspace_pages: WORKSPACE_PAGES,
        kv_pages_min,
        kv_pages_wanted: kv_pages_all.min(device_pages / KV_DEVICE_PARTS).max(kv_pages_min),
        kv_block: Some(KvBlock {
            tokens: BLOCK_TOKENS,
            bytes: block_bytes(model),
        }),
    }
}

/// Pages without which a model does not run on a device.
pub(crate) fn pages_min(model: &ModelSpec, device: &DeviceSpec) -> u64 {
    let needs = needs(model, device, pages(device));
    needs.weights_pages + needs.workspace_pages + needs.kv_pages_min
}

/// Pages of the keys and values of one full context.
pub(crate) fn context_pages(model: &ModelSpec) -> u64 {
    kv_pages(model, 1)
}

/// Pages that a device gives out.
pub(crate) fn pages(device: &DeviceSpec) -> u64 {
    device.memory_bytes / PAGE_BYTES
}

/// Whether a device has room for a model, were it the only one.
pub(crate) fn can_hold(device: &DeviceSpec, model: &ModelSpec) -> bool {
    pages_min(model, device) <= pages(device)
}

/// The batch of a model in the pages that it got.
pub(super) fn batch_settings(model: &ModelSpec, device: &DeviceSpec, grant: Grant) -> BatchSettings {
    let blocks_total = grant.kv_pages.saturating_mul(PAGE_BYTES) / block_bytes(model);
    let in_usize = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    BatchSettings {
        batch_tokens_max: in_usize(u64::from(device.batch_tokens_max)),
        sequences_max: in_usize(slots(model, device)),
        block_tokens: in_usize(BLOCK_TOKENS),
        blocks_total: u32::try_from(blocks_total).unwrap_or(u32::MAX),
        context_tokens_max: in_usize(u64::from(model.context_tokens_max)),
    }
}

/// Pages of the keys and values of so many full contexts.
fn kv_pages(model: &ModelSpec, contexts: u64) -> u64 {
    let blocks = u64::from(model.context_tokens_max).div_ceil(BLOCK_TOKENS);
    let bytes = blocks.saturating_mul(contexts).saturating_mul(block_bytes(model));
    bytes.div_ceil(PAGE_BYTES)
}

fn slots(model: &ModelSpec, device: &DeviceSpec) -> u64 {
    let most = device.slots.max(1);
    u64::from(model.slots.unwrap_or(most).clamp(1, most))
}

fn block_bytes(model: &ModelSpec) -> u64 {
    model.kv_bytes_per_token.max(1).saturating_mul(BLOCK_TOKENS)
}

/// As the engine's.
const BLOCK_TOKENS: u64 = 16;
/// As the worker's: keys and values of one model take at most this part of a device, or one full context where
/// that is more.
const KV_DEVICE_PARTS: u64 = 4;
/// 64 MiB, about what a step of 512 tokens of an 8-billion-parameter model needs.
const WORKSPACE_PAGES: u64 = 32;
