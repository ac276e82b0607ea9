//! What the operations of a [`Backend`] are given.

use super::{BatchView, KvLayer, Matrix, Span};
use crate::Dtype;
#[cfg(doc)]
use crate::WeightFormat;
#[cfg(doc)]
use crate::backend::Backend;

/// Arguments of [`Backend::embed_gather`].
#[derive(Clone, Copy, Debug)]
pub struct EmbedGather {
    /// One row for each token id.
    pub table: Matrix,
    /// u32 \[n].
    pub tokens: Span,
    /// What the embeddings are multiplied by.
    pub scale: f32,
    /// f32 \[n, columns]: receives `table[tokens[i]] * scale`.
    pub out: Span,
}

/// Arguments of [`Backend::linear`].
#[derive(Clone, Copy, Debug)]
pub struct Linear<'a> {
    /// f32 \[n, columns].
    pub x: Span,
    /// Undefined before and after: room for `x` as products read it, see [`WeightFormat::input_words`].
    pub inputs: Span,
    /// What `x` is multiplied with, at most [`PRODUCTS_MAX`]; all of one format and with as many columns.
    pub products: &'a [Product],
}

/// One product of [`Linear`].
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// One row for each output.
    pub weights: Matrix,
    /// f32 \[rows].
    pub bias: Option<Span>,
    /// f32 \[n, rows]: receives `x * weights^T + bias`, accumulated in f32.
    pub out: Span,
}

/// How many products share their inputs in the layers of any family: queries, keys and values.
pub const PRODUCTS_MAX: usize = 3;

/// Arguments of [`Backend::place_rows`].
#[derive(Clone, Copy, Debug)]
pub struct PlaceRows<'a> {
    /// The matrix.
    pub matrix: Matrix,
    /// The first of the rows, a multiple of [`crate::PANEL_ROWS`].
    pub first_row: usize,
    /// How their elements are stored.
    pub stored: Dtype,
    /// The rows, one after the other, little-endian: a multiple of [`crate::PANEL_ROWS`], or all that follow.
    pub bytes: &'a [u8],
    /// u32 \[1]: if an element is NaN or infinite, becomes the lowest such index in the matrix seen so far.
    pub non_finite: Span,
}

/// Arguments of [`Backend::rotations`].
#[derive(Clone, Copy, Debug)]
pub struct Rotations {
    /// u32 \[tokens].
    pub positions: Span,
    /// f32 \[head_dim / 2]: by how much each pair turns from one position to the next, in radians.
    pub inverse_frequencies: Span,
    /// What sines and cosines are multiplied by.
    pub attention_factor: f32,
    /// f32 \[tokens, 2, head_dim / 2]: receives the cosines, then the sines, of position times frequency.
    pub out: Span,
}

/// Arguments of [`Backend::rms_norm`].
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm {
    /// f32 \[n, columns]: the residual stream, updated in place when `add` is given.
    pub x: Span,
    /// f32 \[n, columns]: added to `x` first.
    pub add: Option<Span>,
    /// f32 \[columns].
    pub weight: Span,
    /// Added to each weight.
    pub weight_offset: f32,
    /// Added to the mean square.
    pub epsilon: f32,
    /// f32 \[n, columns]: receives `x / sqrt(mean(x^2) + epsilon) * (weight + weight_offset)`.
    pub out: Span,
}

/// Arguments of [`Backend::layer_norm`].
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm {
    /// f32 \[n, columns]: updated in place.
    pub x: Span,
    /// f32 \[n, columns]: added to `x` first.
    pub add: Span,
    /// f32 \[columns].
    pub weight: Span,
    /// f32 \[columns].
    pub bias: Span,
    /// Added to the variance.
    pub epsilon: f32,
    /// f32 \[n, columns]: receives `(x - mean(x)) / sqrt(variance(x) + epsilon) * weight + bias`.
    pub out: Span,
}

/// Arguments of [`Backend::pool`].
#[derive(Clone, Copy, Debug)]
pub struct Pool {
    /// f32 \[tokens, columns].
    pub x: Span,
    /// u32 \[sequences + 1]: where each sequence's rows start; at least one row each.
    pub starts: Span,
    /// What becomes of them.
    pub pooling: Pooling,
    /// Whether vectors are then divided by their length, or by 1e-12 where that is larger.
    pub scale: VectorScale,
    /// f32 \[sequences, columns].
    pub out: Span,
}

/// What becomes of the rows of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first one.
    First,
}

/// How long a vector is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VectorScale {
    /// As it comes.
    Free,
    /// 1, in the sense of the Euclidean norm.
    Unit,
}

/// Arguments of [`Backend::qkv_prep`].
#[derive(Clone, Copy, Debug)]
pub struct QkvPrep {
    /// f32 \[tokens, heads, head_dim]: normalised and rotated in place.
    pub q: Span,
    /// f32 \[tokens, kv_heads, head_dim]: normalised and rotated in place, then written to the KV blocks.
    pub k: Span,
    /// f32 \[tokens, kv_heads, head_dim]: written to the KV blocks.
    pub v: Span,
    /// f32 \[head_dim]: each head of q is normalised as [`RmsNorm`] does; none leaves q as it is.
    pub q_norm: Option<Span>,
    /// The same for k.
    pub k_norm: Option<Span>,
    /// Added to each weight of both.
    pub norm_weight_offset: f32,
    /// Added to the mean square of each head.
    pub norm_epsilon: f32,
    /// f32 \[tokens, 2, head_dim / 2], from [`Backend::rotations`]: element `i` of a head turns with element
    /// `i + head_dim / 2`; none turns nothing.
    pub rotations: Option<Span>,
    /// Which token belongs where.
    pub batch: BatchView,
    /// Where keys and values go.
    pub kv: KvLayer,
}

/// Arguments of [`Backend::attention`].
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// f32 \[tokens, heads, head_dim].
    pub q: Span,
    /// f32 \[tokens, heads, head_dim]: receives the weighted values.
    pub out: Span,
    /// The number of query heads, a multiple of the KV heads.
    pub heads: usize,
    /// What products of queries and keys are multiplied by.
    pub scale: f32,
    /// Which positions of its sequence a token sees.
    pub visible: Visible,
    /// Which token belongs where.
    pub batch: BatchView,
    /// Where keys and values are.
    pub kv: KvLayer,
}

/// Which positions of its sequence a token sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visible {
    /// Its own and all before it.
    Causal,
    /// Its own and those before it, so many in all; at least 1.
    Window(usize),
    /// All that the step brings; each sequence starts at position 0 then.
    All,
}

/// What a feed-forward layer does between its linear layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// The Gaussian error linear unit in its tanh form:
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))`.
    GeluTanh,
    /// The Gaussian error linear unit itself: `x / 2 * (1 + erf(x / sqrt(2)))`.
    Gelu,
    /// `x` where it is positive, else 0.
    Relu,
}

/// Arguments of [`Backend::gated`].
#[derive(Clone, Copy, Debug)]
pub struct Gated {
    /// What the gate goes through.
    pub activation: Activation,
    /// f32 \[n]: receives the product.
    pub gate: Span,
    /// f32 \[n].
    pub up: Span,
}

/// Arguments of [`Backend::edit_logits`].
#[derive(Clone, Copy, Debug)]
pub struct EditLogits {
    /// f32 \[rows, vocab_size]: edited in place.
    pub logits: Span,
    /// The row length of `logits`.
    pub vocab_size: usize,
    /// u32 \[n, EDIT_WORDS]: see [`crate::LogitEdit::to_words`].
    pub edits: Span,
}

/// Arguments of [`Backend::mask_logits`].
#[derive(Clone, Copy, Debug)]
pub struct MaskLogits {
    /// f32 \[rows, vocab_size]: masked in place.
    pub logits: Span,
    /// The row length of `logits`.
    pub vocab_size: usize,
    /// u32 \[n, mask_words(vocab_size)], each row of logits at most once: see [`crate::TokenMask::to_words`].
    pub masks: Span,
}

/// Arguments of [`Backend::sample`].
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// f32 \[n, vocab_size].
    pub logits: Span,
    /// The row length of `logits`.
    pub vocab_size: usize,
    /// u32 \[n, PARAMETER_WORDS]: see [`crate::Sampling::to_words`].
    pub parameters: Span,
    /// u32 \[n, vocab_size]: undefined before and after.
    pub scratch: Span,
    /// u32 \[n]: receives token ids, [`crate::NO_TOKEN`] where a logit is not finite, or where the parameters say
    /// that the row has a mask, and it has left no finite one.
    pub out: Span,
    /// u32 \[n, LOGPROB_WORDS]: each row whose parameters ask for log-probabilities receives the bits of the
    /// drawn token's, the number of alternatives, then id and log-probability bits of each, likeliest first; all
    /// zero where there is no token. They are of the logits as given: the softmax without temperature and cuts.
    /// Masked tokens are no alternatives.
    /// Other rows and what is beyond the last alternative are undefined.
    pub logprobs: Span,
}
