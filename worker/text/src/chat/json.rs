//! The filter `tojson`, which `transformers` replaces by Python's `json.dumps`.

use std::io;

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

use crate::chat::OUTPUT_BYTES_MAX;
use crate::chat::bounded::BoundedWriter;
use crate::chat::functions::checked_width;

/// `json.dumps(value, ensure_ascii=False)`: nothing is escaped for HTML, keys keep their order. The parameters
/// have the order and the defaults that `transformers` gives them.
pub(crate) fn to_json(
    value: &Value,
    ensure_ascii: Option<Value>,
    indent: Option<usize>,
    options: Kwargs,
) -> Result<Value, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get("indent")?,
    };
    let ensure_ascii = match ensure_ascii {
        Some(ensure_ascii) => Some(ensure_ascii),
        None => options.get("ensure_ascii")?,
    };
    let separators: Option<Value> = options.get("separators")?;
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let item = if indent.is_some() { "," } else { ", " };
    let (item, key) = match separators {
        Some(pair) if !pair.is_none() => separator_pair(&pair)?,
        Some(_) | None => (item.to_owned(), ": ".to_owned()),
    };
    let formatter = PythonFormatter {
        item: item.as_bytes(),
        key: key.as_bytes(),
        indent: indent.map(checked_width).transpose()?,
        ensure_ascii: ensure_ascii.is_some_and(|wanted| wanted.is_true()),
        depth: 0,
        is_empty: true,
    };
    let text = match sort_keys {
        true => sorted(value).and_then(|value| write(&value, formatter)),
        false => write(value, formatter),
    };
    let failed =
        |source| Error::new(ErrorKind::BadSerialization, "cannot be written as JSON").with_source(source);
    text.map(Value::from_safe_string).map_err(failed)
}

fn write(value: &impl Serialize, formatter: impl Formatter) -> Result<String, serde_json::Error> {
    let mut output = BoundedWriter::new(OUTPUT_BYTES_MAX);
    value.serialize(&mut Serializer::with_formatter(&mut output, formatter))?;
    Ok(output.into_text())
}

/// Between items, and between a key and its value.
fn separator_pair(pair: &Value) -> Result<(String, String), Error> {
    let parts: Vec<Value> = pair.try_iter()?.take(3).collect();
    match parts.as_slice() {
        [item, key] => Ok((item.to_string(), key.to_string())),
        _ => Err(Error::new(
            ErrorKind::InvalidOperation,
            "separators are a pair of texts",
        )),
    }
}

/// The value with its keys in order, at every level.
fn sorted(value: &Value) -> Result<serde_json::Value, serde_json::Error> {
    let mut value = serde_json::to_value(value)?;
    value.sort_all_objects();
    Ok(value)
}

/// Writes as Python does: its separators, its line breaks and its numbers.
struct PythonFormatter<'a> {
    item: &'a [u8],
    key: &'a [u8],
    /// Spaces a level; `None` writes one line.
    indent: Option<usize>,
    ensure_ascii: bool,
    depth: usize,
    /// Whether nothing was written into the array or object.
    is_empty: bool,
}

impl PythonFormatter<'_> {
    fn begin<W: ?Sized + io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.is_empty = true;
        writer.write_all(bracket)
    }

    fn begin_item<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(self.item)?;
        }
        self.is_empty = false;
        self.break_line(writer)
    }

    fn end<W: ?Sized + io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if !self.is_empty {
            self.break_line(writer)?;
        }
        self.is_empty = false;
        writer.write_all(bracket)
    }

    fn break_line<W: ?Sized + io::Write>(&self, writer: &mut W) -> io::Result<()> {
        match self.indent {
            None => Ok(()),
            Some(width) => write!(writer, "\n{:1$}", "", width * self.depth),
        }
    }
}

impl Formatter for PythonFormatter<'_> {
    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin(writer, b"[")
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.begin_item(writer, first)
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.end(writer, b"]")
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin(writer, b"{")
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.begin_item(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key)
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.end(writer, b"}")
    }

    /// The fewest digits that tell the number, as `repr` writes them.
    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        let scientific = format!("{value:e}");
        let (mantissa, exponent) = scientific.split_once('e').expect("the format has an exponent");
        let exponent: i32 = exponent.parse().expect("the exponent of a float is small");
        match exponent {
            -4..16 => write!(writer, "{value:?}"),
            ..-4 => write!(writer, "{mantissa}e-{:02}", exponent.unsigned_abs()),
            16.. => write!(writer, "{mantissa}e+{exponent:02}"),
        }
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if !self.ensure_ascii {
            return writer.write_all(fragment.as_bytes());
        }
        let mut units = [0; 2];
        for character in fragment.chars() {
            match character {
                ' '..='~' => writer.write_all(&[character as u8])?,
                other => {
                    for unit in other.encode_utf16(&mut units) {
                        write!(writer, "\\u{unit:04x}")?;
                    }
                }
            }
        }
        Ok(())
    }
}
