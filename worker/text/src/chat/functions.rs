//! What `transformers` adds to Jinja for chat templates, and what must be bounded.

use std::fmt;
use std::io;
use std::time::SystemTime;

use minijinja::value::{Kwargs, StringInput};
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::chat::OUTPUT_BYTES_MAX;
use crate::chat::bounded::BoundedWriter;
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
    environment.add_filter("tojson", to_json);
    environment.add_filter("indent", indent);
}

/// The function `strftime_now` for a moment.
pub(crate) fn strftime_now(now: SystemTime) -> Value {
    Value::from_function(move |format: &str| {
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

/// `json.dumps(value, ensure_ascii=False)`: nothing is escaped for HTML, keys keep their order.
fn to_json(value: &Value, indent: Option<usize>, options: Kwargs) -> Result<Value, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get("indent")?,
    };
    if options.get::<Option<bool>>("ensure_ascii")? == Some(true) {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "tojson writes UTF-8: remove ensure_ascii=true",
        ));
    }
    options.assert_all_used()?;
    let output = BoundedWriter::new(OUTPUT_BYTES_MAX);
    let text = match indent {
        None => write_json(value, output, PythonFormatter),
        Some(width) => {
            let indentation = " ".repeat(checked_width(width)?);
            write_json(
                value,
                output,
                PrettyFormatter::with_indent(indentation.as_bytes()),
            )
        }
    };
    let failed =
        |source| Error::new(ErrorKind::BadSerialization, "cannot be written as JSON").with_source(source);
    text.map(Value::from_safe_string).map_err(failed)
}

fn write_json(
    value: &Value,
    mut output: BoundedWriter,
    formatter: impl Formatter,
) -> Result<String, serde_json::Error> {
    value.serialize(&mut Serializer::with_formatter(&mut output, formatter))?;
    Ok(output.into_text())
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

fn checked_width(width: usize) -> Result<usize, Error> {
    if width > INDENT_MAX {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "the indentation is too wide",
        ));
    }
    Ok(width)
}

/// Python's separators: `, ` between values and `: ` after a key.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// Spaces per level that a filter may ask for.
const INDENT_MAX: usize = 64;
