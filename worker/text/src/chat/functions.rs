//! What `transformers` adds to Jinja for chat templates, and what must be bounded.

use std::fmt;
use std::time::SystemTime;

use minijinja::value::{Kwargs, StringInput};
use minijinja::{Environment, Error, ErrorKind, Value};

use crate::chat::json;
use crate::strftime::strftime;

/// The message of `raise_exception`, found again in the chain of a failed rendering.
#[derive(Debug)]
pub(crate) struct Raised(pub(crate) String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// Adds the functions and filters that need no argument of a rendering.
pub(crate) fn register(environment: &mut Environment<'static>) {
    environment.add_function("raise_exception", raise_exception);
    environment.add_filter("tojson", json::to_json);
    environment.add_filter("indent", indent);
}

/// The function `strftime_now` for a moment, with a bound on the format: one call is one step whatever it writes.
pub(crate) fn strftime_now(now: SystemTime) -> Value {
    Value::from_function(move |format: &str| {
        if format.len() > DATE_FORMAT_BYTES_MAX {
            let detail = format!("a date's format of more than {DATE_FORMAT_BYTES_MAX} bytes is not allowed");
            return Err(Error::new(ErrorKind::InvalidOperation, detail));
        }
        strftime(now, format).map_err(|source| {
            Error::new(ErrorKind::InvalidOperation, "the date cannot be shown").with_source(source)
        })
    })
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(
        Error::new(ErrorKind::InvalidOperation, "the template raised an exception")
            .with_source(Raised(message)),
    )
}

/// The engine's own filter, with a bound on the width: it would take any amount of memory.
fn indent(
    text: StringInput<'_>,
    width: Option<usize>,
    first: Option<bool>,
    blank: Option<bool>,
    options: Kwargs,
) -> Result<Value, Error> {
    let asked = match width {
        Some(width) => Some(width),
        None => options.get("width")?,
    };
    asked.map(checked_width).transpose()?;
    minijinja::filters::indent(text, width, first, blank, options)
}

pub(crate) fn checked_width(width: usize) -> Result<usize, Error> {
    if width > INDENT_MAX {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "the indentation is too wide",
        ));
    }
    Ok(width)
}

/// Spaces per level that a filter may ask for.
const INDENT_MAX: usize = 64;

/// Formats in use have some 10 bytes.
const DATE_FORMAT_BYTES_MAX: usize = 256;
