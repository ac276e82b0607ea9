//! What a device can do: memory in pages, and the operations that models are made of.
//!
//! Model code knows device memory only as [`Span`]s. Launches may be asynchronous; they take effect in the
//! order in which they were made, together with uploads. Only [`Backend::download`] and
//! [`Backend::synchronize`] wait. No operation allocates: everything it needs is a span of its arguments.

mod operations;

use std::io;
use std::ops::Range;

use crate::{BLOCK_TOKENS, WeightFormat};

pub use operations::{
    Activation, Attention, EditLogits, EmbedGather, Gated, LayerNorm, Linear, MaskLogits, PRODUCTS_MAX,
    PlaceRows, Pool, Pooling, Product, QkvPrep, RmsNorm, Rotations, Sample, VectorScale, Visible,
};

/// One model's place on a device: its regions of memory and its queue of work.
///
/// Dropping the value waits for the queue and gives all its memory back. Spans that do not fit an
/// operation's shapes, overlap where they must not, or reach into unmapped pages are bugs of the caller: the
/// operation panics.
pub trait Backend {
    /// A region's contents while they are not on the device, in host memory.
    type Image: Send + std::fmt::Debug;

    /// Reserves an address range of `len_bytes`, rounded up to whole pages, with no memory behind it.
    ///
    /// # Errors
    /// The device has no such range.
    fn reserve(&mut self, len_bytes: usize) -> Result<RegionId, DeviceError>;

    /// Puts memory behind these pages of a region, none of which has any; what they hold is undefined. What is
    /// mapped is taken from the device at once, not when it is first touched.
    ///
    /// # Errors
    /// The region has no such pages, or one of them is mapped, or the device has not that much memory; nothing is
    /// mapped then.
    fn map_pages(&mut self, region: RegionId, pages: Range<usize>) -> Result<(), DeviceError>;

    /// Takes the memory behind these pages of a region away, once queued work is done.
    ///
    /// # Errors
    /// One of them is not mapped, or the device refused.
    fn unmap_pages(&mut self, region: RegionId, pages: Range<usize>) -> Result<(), DeviceError>;

    /// How many pages of a region have memory behind them.
    fn mapped_pages(&self, region: RegionId) -> usize;

    /// Takes a region's contents off the device, once queued work is done; the region is empty afterwards and has
    /// no addresses.
    ///
    /// # Errors
    /// The device refused, or the host has not the memory.
    fn take_out(&mut self, region: RegionId) -> Result<Self::Image, DeviceError>;

    /// Brings contents that were taken out, of any model's place on this kind of device, back as a new region of the
    /// same length, mapped as it was.
    ///
    /// # Errors
    /// The device has not the memory; the contents are lost then.
    fn put_in(&mut self, image: Self::Image) -> Result<RegionId, DeviceError>;

    /// Copies host bytes to the device. They have been read when this returns; they may arrive later, but
    /// before any work launched after this call starts.
    ///
    /// # Errors
    /// The device refused.
    fn upload(&mut self, target: Span, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Copies device bytes to the host, after all work launched before.
    ///
    /// # Errors
    /// The device refused, or work before this failed.
    fn download(&mut self, source: Span, into: &mut [u8]) -> Result<(), DeviceError>;

    /// Waits until everything uploaded and launched so far is done.
    ///
    /// # Errors
    /// Some of that work failed.
    fn synchronize(&mut self) -> Result<(), DeviceError>;

    /// Copies `source` to `target` on the device; both have one length and do not overlap.
    ///
    /// # Errors
    /// The launch failed.
    fn copy(&mut self, source: Span, target: Span) -> Result<(), DeviceError>;

    /// Places rows of a weight matrix: the device keeps them in the matrix's format and in a layout of its own.
    /// The rows have been read when this returns; they are there before any work launched after this call.
    ///
    /// # Errors
    /// The device refused.
    fn place_rows(&mut self, operation: PlaceRows<'_>) -> Result<(), DeviceError>;

    /// Looks embeddings up and scales them.
    ///
    /// # Errors
    /// The launch failed.
    fn embed_gather(&mut self, operation: EmbedGather) -> Result<(), DeviceError>;

    /// Root-mean-square normalisation of rows, with the residual addition before it.
    ///
    /// # Errors
    /// The launch failed.
    fn rms_norm(&mut self, operation: RmsNorm) -> Result<(), DeviceError>;

    /// A linear layer, accumulated in f32.
    ///
    /// # Errors
    /// The launch failed.
    fn linear(&mut self, operation: Linear<'_>) -> Result<(), DeviceError>;

    /// Computes the sines and cosines by which a step's tokens rotate, once for all layers.
    ///
    /// # Errors
    /// The launch failed.
    fn rotations(&mut self, operation: Rotations) -> Result<(), DeviceError>;

    /// Normalises and rotates q and k, and writes k and v to the KV blocks.
    ///
    /// # Errors
    /// The launch failed.
    fn qkv_prep(&mut self, operation: QkvPrep) -> Result<(), DeviceError>;

    /// Attention of a batch over its KV blocks; serves decode, chunked prefill and encoders alike.
    ///
    /// # Errors
    /// The launch failed.
    fn attention(&mut self, operation: Attention) -> Result<(), DeviceError>;

    /// `x += add`, elementwise.
    ///
    /// # Errors
    /// The launch failed.
    fn add(&mut self, x: Span, add: Span) -> Result<(), DeviceError>;

    /// Normalisation of rows to mean 0 and variance 1, with the residual addition before it.
    ///
    /// # Errors
    /// The launch failed.
    fn layer_norm(&mut self, operation: LayerNorm) -> Result<(), DeviceError>;

    /// `x = activation(x)`, elementwise.
    ///
    /// # Errors
    /// The launch failed.
    fn activate(&mut self, activation: Activation, x: Span) -> Result<(), DeviceError>;

    /// Makes one vector of the rows of each sequence.
    ///
    /// # Errors
    /// The launch failed.
    fn pool(&mut self, operation: Pool) -> Result<(), DeviceError>;

    /// `gate = activation(gate) * up`, elementwise.
    ///
    /// # Errors
    /// The launch failed.
    fn gated(&mut self, operation: Gated) -> Result<(), DeviceError>;

    /// `out[i] = x[rows[i]]`; `rows` u32 \[n], `out` f32 \[n, columns] gives the row length.
    ///
    /// # Errors
    /// The launch failed.
    fn gather_rows(&mut self, x: Span, rows: Span, out: Span) -> Result<(), DeviceError>;

    /// Changes single logits, each at most once: see [`crate::LogitEdit::edited`].
    ///
    /// # Errors
    /// The launch failed.
    fn edit_logits(&mut self, operation: EditLogits) -> Result<(), DeviceError>;

    /// Makes the logits of tokens that may not be drawn [`crate::MASKED_LOGIT`]. All logits of a row that has one
    /// which is not finite become NaN, so that it is still found.
    ///
    /// # Errors
    /// The launch failed.
    fn mask_logits(&mut self, operation: MaskLogits) -> Result<(), DeviceError>;

    /// Draws one token from each row of logits, and tells its log-probability where that is asked for.
    ///
    /// # Errors
    /// The launch failed.
    fn sample(&mut self, operation: Sample) -> Result<(), DeviceError>;
}

/// The index that stands for "no element" in [`PlaceRows::non_finite`].
pub const NO_ELEMENT: u32 = u32::MAX;

/// A region of one backend; ids of another backend are meaningless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RegionId(pub usize);

/// A range of bytes in a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The region it lies in.
    pub region: RegionId,
    /// Where it starts in the region, in bytes.
    pub offset_bytes: usize,
    /// Its length in bytes.
    pub len_bytes: usize,
}

impl Span {
    /// The first `words` four-byte elements.
    ///
    /// # Panics
    /// The span is shorter.
    #[must_use]
    pub fn first_words(self, words: usize) -> Self {
        self.words(0, words)
    }

    /// `count` four-byte elements from element `start` on.
    ///
    /// # Panics
    /// The span ends before that.
    #[must_use]
    pub fn words(self, start: usize, count: usize) -> Self {
        assert!(
            (start + count) * WORD_BYTES <= self.len_bytes,
            "a part lies inside its span"
        );
        Self {
            region: self.region,
            offset_bytes: self.offset_bytes + start * WORD_BYTES,
            len_bytes: count * WORD_BYTES,
        }
    }
}

/// A weight matrix, in a layout that is the device's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Where it lies; its length is [`WeightFormat::matrix_bytes`].
    pub span: Span,
    /// How its elements are kept.
    pub format: WeightFormat,
    /// The number of rows: outputs of a linear layer.
    pub rows: usize,
    /// The number of columns: inputs of a linear layer.
    pub columns: usize,
}

/// The device-side description of a step's sequences; token `t` of a step is row `t` of every activation.
#[derive(Clone, Copy, Debug)]
pub struct BatchView {
    /// How many sequences take part.
    pub sequences: usize,
    /// u32 \[tokens]: each token's position in its sequence.
    pub positions: Span,
    /// u32 \[sequences + 1]: where each sequence's tokens start; the last entry is the number of tokens.
    pub starts: Span,
    /// u32 \[sequences, table_blocks]: where each KV block of each sequence starts, in order, in units of
    /// [`KV_UNIT_BYTES`]; unused entries are ignored.
    pub tables: Span,
    /// The row length of `tables`.
    pub table_blocks: usize,
}

/// How keys and values of a model lie in a KV block: for each layer f32 \[kv_heads, head_dim, BLOCK_TOKENS] of
/// keys, then f32 \[kv_heads, BLOCK_TOKENS, head_dim] of values. Keys are transposed so that a query meets all
/// positions of a block at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// The number of layers.
    pub layers: usize,
    /// The number of key and value heads.
    pub kv_heads: usize,
    /// The length of one head's vector.
    pub head_dim: usize,
}

/// What the starts of KV blocks are counted in. Every block's length is a multiple of it, and u32 counts reach
/// through 512 GiB.
pub const KV_UNIT_BYTES: usize = BLOCK_TOKENS * 2 * WORD_BYTES;

/// The f32 elements of [`KV_UNIT_BYTES`].
pub(crate) const KV_UNIT_ELEMENTS: usize = KV_UNIT_BYTES / WORD_BYTES;

impl KvLayout {
    /// The number of [`KV_UNIT_BYTES`] of one block.
    pub const fn block_units(&self) -> usize {
        self.block_elements() / KV_UNIT_ELEMENTS
    }

    /// The number of f32 elements of one block.
    pub const fn block_elements(&self) -> usize {
        self.layers * 2 * self.head_elements() * self.kv_heads
    }

    /// The number of f32 elements that one head's keys (or values) take in a block.
    pub const fn head_elements(&self) -> usize {
        BLOCK_TOKENS * self.head_dim
    }

    /// Where the keys of a head start within a block, in elements.
    pub const fn key_start(&self, layer: usize, head: usize) -> usize {
        (layer * 2 * self.kv_heads + head) * self.head_elements()
    }

    /// Where the values of a head start within a block, in elements.
    pub const fn value_start(&self, layer: usize, head: usize) -> usize {
        ((layer * 2 + 1) * self.kv_heads + head) * self.head_elements()
    }
}

/// One layer's share of the KV blocks.
#[derive(Clone, Copy, Debug)]
pub struct KvLayer {
    /// A range of addresses in which all blocks lie. Of its pages, those may lack memory that hold no block of a
    /// step's tables.
    pub blocks: Span,
    /// What lies where in a block.
    pub layout: KvLayout,
    /// Which layer.
    pub layer: usize,
}

/// Why a device could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No address range of that length is to be had.
    #[error("cannot reserve {len_bytes} bytes of addresses")]
    Reserve {
        /// The length asked for, in bytes.
        len_bytes: usize,
        /// What the system said.
        source: io::Error,
    },
    /// A region is shorter than what should be mapped.
    #[error("cannot map pages up to {end}: the region has {reserved}")]
    RegionFull {
        /// The end of the range asked for.
        end: usize,
        /// The length of the region in pages.
        reserved: usize,
    },
    /// A page that should be mapped is.
    #[error("page {page} is mapped already")]
    Mapped {
        /// The page.
        page: usize,
    },
    /// A page that should be unmapped is not mapped.
    #[error("page {page} is not mapped")]
    NotMapped {
        /// The page.
        page: usize,
    },
    /// The system gave no memory.
    #[error("cannot get memory for {pages} pages")]
    Map {
        /// The pages asked for.
        pages: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The system did not take pages back.
    #[error("cannot give {pages} pages back")]
    Unmap {
        /// The pages asked for.
        pages: usize,
        /// What the system said.
        source: io::Error,
    },
}

/// The size of an f32 or u32 in bytes.
pub(crate) const WORD_BYTES: usize = 4;
