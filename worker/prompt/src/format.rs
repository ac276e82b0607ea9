//! The shape that a request wants its answer to have, as a grammar, or the reason why it cannot have it.

use flotilla_protocol::event::{ErrorCode, RequestError};
use flotilla_protocol::request::{InferenceRequest, ResponseFormat};
use flotilla_text::{GrammarError, JsonGrammar, OneOf};

use crate::invalid;

/// Finds out whether answers of the request's schema can be made at all, whatever the model. Compiles the schema,
/// which takes up to half a second: it belongs on a thread for blocking work.
///
/// # Errors
/// A [`RequestError`] that names the field.
pub fn check_format(request: &InferenceRequest) -> Result<(), RequestError> {
    match &request.response_format {
        ResponseFormat::Text | ResponseFormat::JsonObject => Ok(()),
        ResponseFormat::JsonSchema(_) => grammar(&request.response_format)
            .map_or(Ok(()), |grammar| grammar.check())
            .map_err(|error| refused(&request.response_format, &error)),
    }
}

/// What the answer must be; none for any text.
pub(crate) fn grammar(format: &ResponseFormat) -> Option<JsonGrammar> {
    match format {
        ResponseFormat::Text => None,
        ResponseFormat::JsonObject => Some(JsonGrammar::any_object()),
        ResponseFormat::JsonSchema(described) => {
            let one_of = match described.strict {
                true => OneOf::Exact,
                false => OneOf::Any,
            };
            Some(JsonGrammar::of_schema(described.schema.clone(), one_of))
        }
    }
}

/// What a client is told whose answer cannot be made, or cannot go on.
#[must_use]
pub fn refused(format: &ResponseFormat, error: &GrammarError) -> RequestError {
    let param = match (format, error) {
        (_, GrammarError::Tokenizer) | (ResponseFormat::Text | ResponseFormat::JsonObject, _) => FORMAT,
        (ResponseFormat::JsonSchema(_), _) => SCHEMA,
    };
    match error {
        GrammarError::Schema { .. }
        | GrammarError::Tokenizer
        | GrammarError::NoToken
        | GrammarError::TooComplex { .. } => invalid(param, error.to_string()),
        GrammarError::Refused { .. } => RequestError {
            code: ErrorCode::Internal,
            message: error.to_string(),
            param: Some(param.to_owned()),
        },
    }
}

const FORMAT: &str = "response_format";
const SCHEMA: &str = "response_format.json_schema.schema";
