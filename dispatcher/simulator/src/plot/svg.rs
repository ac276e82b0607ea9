//! Writes SVG: elements with attributes and text, nothing else.

use std::fmt::{Display, Write as _};

/// A picture under way.
#[derive(Debug)]
pub(super) struct Svg {
    text: String,
}

/// An attribute's name and value.
pub(super) type Attribute<'a> = (&'a str, &'a dyn Display);

impl Svg {
    /// An empty picture of so many pixels; `title` is what readers of screens are told.
    pub(super) fn new(width: f64, height: f64, title: &str) -> Self {
        let text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" role=\"img\" font-family=\"system-ui, sans-serif\" font-size=\"13\">\n\
             <title>{}</title>\n",
            escaped(title)
        );
        Self { text }
    }

    /// An element without content.
    pub(super) fn element(&mut self, name: &str, attributes: &[Attribute<'_>]) {
        self.open(name, attributes);
        self.text.push_str("/>\n");
    }

    /// An element with text.
    pub(super) fn labelled(&mut self, name: &str, attributes: &[Attribute<'_>], label: &str) {
        self.open(name, attributes);
        self.text.push('>');
        self.text.push_str(&escaped(label));
        self.text.push_str("</");
        self.text.push_str(name);
        self.text.push_str(">\n");
    }

    /// The whole picture.
    pub(super) fn finish(mut self) -> String {
        self.text.push_str("</svg>\n");
        self.text
    }

    fn open(&mut self, name: &str, attributes: &[Attribute<'_>]) {
        self.text.push('<');
        self.text.push_str(name);
        for (attribute, value) in attributes {
            write!(self.text, " {attribute}=\"{}\"", escaped(&value.to_string()))
                .expect("a string takes all that is written");
        }
    }
}

/// A length in pixels: tenths are finer than anybody sees.
pub(super) fn pixels(length: f64) -> String {
    format!("{length:.1}")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
