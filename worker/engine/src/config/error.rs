//! Why a configuration cannot be used.

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not the JSON it should be.
    #[error("not a model configuration in JSON")]
    Json(#[source] serde_json::Error),
    /// The file beside it is not the JSON it should be.
    #[error("generation_config.json is not a generation configuration in JSON")]
    GenerationJson(#[source] serde_json::Error),
    /// A field without a default is not there.
    #[error("field {field} is missing")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// A field asks for something that the engine does not do.
    #[error("field {field}: expected {expected}, found {found}")]
    Unsupported {
        /// The field.
        field: &'static str,
        /// What the engine can do.
        expected: &'static str,
        /// What the file says.
        found: String,
    },
    /// A size is zero or absurd.
    #[error("field {field}: expected 1 to {max}, found {found}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// What the file says.
        found: u64,
        /// The largest value that is believed.
        max: u64,
    },
    /// A size is not a multiple of another.
    #[error("field {field}: expected a multiple of {divisor_found} ({divisor}), found {found}")]
    NotDivisible {
        /// The field.
        field: &'static str,
        /// What the file says.
        found: usize,
        /// The field that must divide it.
        divisor: &'static str,
        /// What the file says there.
        divisor_found: usize,
    },
    /// A number must be positive and finite as an f32.
    #[error("field {field}: expected a positive number, found {found}")]
    NotPositive {
        /// The field.
        field: &'static str,
        /// What the file says.
        found: f64,
    },
    /// A number must be larger than another.
    #[error("field {field}: expected more than {floor} ({floor_field}), found {found}")]
    TooSmall {
        /// The field.
        field: &'static str,
        /// What the file says.
        found: f64,
        /// The field that it must exceed.
        floor_field: &'static str,
        /// What the file says there.
        floor: f64,
    },
    /// A list has not one entry for each layer.
    #[error("field {field}: expected an entry for each of {layers} layers, found {found}")]
    LayerCount {
        /// The field.
        field: &'static str,
        /// How many entries there are.
        found: usize,
        /// How many layers there are.
        layers: usize,
    },
    /// A token id lies outside the vocabulary.
    #[error("field {field}: expected a token id below {vocab_size}, found {found}")]
    TokenId {
        /// The field.
        field: &'static str,
        /// What the file says.
        found: u64,
        /// How many ids there are.
        vocab_size: usize,
    },
}
