//! A profile's grid as a picture: throughput and time as heat maps with their numbers, in SVG.

use std::fmt::Write as _;

use flotilla_profile::DeviceProfile;
use flotilla_protocol::ModelName;

/// Draws the throughput and the times of a whole request.
pub(super) fn svg(model: &ModelName, profile: &DeviceProfile) -> String {
    let document = profile.document();
    let (outputs, inputs) = (&document.indexes[0], &document.indexes[1]);
    let maps = [
        HeatMap {
            title: "Sustained throughput, requests/s",
            matrix: &document.tputs,
        },
        HeatMap {
            title: "Mean time of a request there, s",
            matrix: document
                .e2e
                .as_ref()
                .expect("the check refuses a profile without e2e"),
        },
    ];
    let [columns, rows] = [inputs.len(), outputs.len()].map(pixels);
    let map_width = (LEFT + columns * CELL_WIDTH + RIGHT).max(MAP_WIDTH_MIN);
    let [width, height] = [map_width * pixels(maps.len()), TOP + rows * CELL_HEIGHT + BOTTOM];
    let title = format!(
        "{model} on {} ({}{})",
        profile.kind(),
        profile.source(),
        profile
            .samples()
            .map_or(String::new(), |samples| format!(", {samples} requests")),
    );
    let mut picture = Picture::new(width, height, &title);
    for (index, map) in maps.iter().enumerate() {
        map.draw(&mut picture, map_width * pixels(index), outputs, inputs);
    }
    picture.finish()
}

/// A matrix over lengths of answers (rows, the longest on top) and prompts (columns).
struct HeatMap<'a> {
    title: &'static str,
    matrix: &'a [Vec<f64>],
}

impl HeatMap<'_> {
    fn draw(&self, picture: &mut Picture, left: f64, outputs: &[f64], inputs: &[f64]) {
        let (x, rows) = (left + LEFT, pixels(outputs.len()));
        let bottom = TOP + rows * CELL_HEIGHT;
        picture.text(x, TOP - 14.0, Anchor::Start, INK, self.title);
        let scale = Scale::of(self.matrix);
        for (output, answer) in outputs.iter().enumerate() {
            let y = bottom - pixels(output + 1) * CELL_HEIGHT;
            picture.text(
                x - 8.0,
                y + CELL_HEIGHT / 2.0 + 4.0,
                Anchor::End,
                INK,
                &answer.to_string(),
            );
            for (input, &figure) in self.matrix[output].iter().enumerate() {
                let at = x + pixels(input) * CELL_WIDTH;
                picture.cell(at, y, &scale.tone(figure), &figure_text(figure));
            }
        }
        for (input, prompt) in inputs.iter().enumerate() {
            let at = x + (pixels(input) + 0.5) * CELL_WIDTH;
            picture.text(at, bottom + 18.0, Anchor::Middle, INK, &prompt.to_string());
        }
        let middle = x + pixels(inputs.len()) * CELL_WIDTH / 2.0;
        picture.text(middle, bottom + 38.0, Anchor::Middle, INK, "prompt, tokens");
        picture.upright_text(left + 18.0, TOP + rows * CELL_HEIGHT / 2.0, "answer, tokens");
    }
}

/// The span of a matrix's figures above 0, by their logarithms: they differ by orders of magnitude.
struct Scale {
    least: f64,
    span: f64,
}

/// Colours of a cell.
struct Tone {
    fill: String,
    ink: &'static str,
}

impl Scale {
    fn of(matrix: &[Vec<f64>]) -> Self {
        let logs = || matrix.iter().flatten().filter(|it| **it > 0.0).map(|it| it.ln());
        let least = logs().fold(f64::INFINITY, f64::min);
        let most = logs().fold(f64::NEG_INFINITY, f64::max);
        Self {
            least,
            span: most - least,
        }
    }

    /// From pale to dark blue; grey where there is nothing.
    fn tone(&self, figure: f64) -> Tone {
        if figure <= 0.0 {
            let fill = "#dddddd".to_owned();
            return Tone { fill, ink: INK };
        }
        let part = match self.span > 0.0 {
            true => (figure.ln() - self.least) / self.span,
            false => 0.5,
        };
        let channel = |pale: f64, dark: f64| pale + (dark - pale) * part;
        let [red, green, blue] = [channel(230.0, 0.0), channel(242.0, 82.0), channel(250.0, 140.0)];
        Tone {
            fill: format!("rgb({red:.0},{green:.0},{blue:.0})"),
            ink: if part > 0.5 { "#ffffff" } else { INK },
        }
    }
}

enum Anchor {
    Start,
    Middle,
    End,
}

/// An SVG under way.
struct Picture {
    text: String,
}

impl Picture {
    fn new(width: f64, height: f64, title: &str) -> Self {
        let title = escaped(title);
        let mut picture = Self {
            text: format!(
                "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
                 viewBox=\"0 0 {width} {height}\" role=\"img\" font-family=\"system-ui, sans-serif\" \
                 font-size=\"13\">\n<title>{title}</title>\n\
                 <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
            ),
        };
        let line = format!("<text x=\"{LEFT}\" y=\"26\" font-size=\"16\" fill=\"{INK}\">{title}</text>\n");
        picture.text.push_str(&line);
        picture
    }

    fn cell(&mut self, x: f64, y: f64, tone: &Tone, figure: &str) {
        let Tone { fill, ink } = tone;
        self.push(format_args!(
            "<rect x=\"{x}\" y=\"{y}\" width=\"{CELL_WIDTH}\" height=\"{CELL_HEIGHT}\" fill=\"{fill}\" \
             stroke=\"#ffffff\"/>"
        ));
        let (middle, line) = (x + CELL_WIDTH / 2.0, y + CELL_HEIGHT / 2.0 + 4.0);
        self.text(middle, line, Anchor::Middle, ink, figure);
    }

    fn text(&mut self, x: f64, y: f64, anchor: Anchor, ink: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = escaped(text);
        self.push(format_args!(
            "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\" fill=\"{ink}\">{text}</text>"
        ));
    }

    fn upright_text(&mut self, x: f64, y: f64, text: &str) {
        let text = escaped(text);
        self.push(format_args!(
            "<text transform=\"translate({x} {y}) rotate(-90)\" text-anchor=\"middle\" fill=\"{INK}\">{text}</text>"
        ));
    }

    fn push(&mut self, element: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{element}").expect("a string takes all that is written");
    }

    fn finish(self) -> String {
        self.text + "</svg>\n"
    }
}

/// Three digits that count; a dash for nothing.
fn figure_text(figure: f64) -> String {
    match figure {
        it if it <= 0.0 => "-".to_owned(),
        it if it >= 100.0 => format!("{it:.0}"),
        it if it >= 10.0 => format!("{it:.1}"),
        it if it >= 1.0 => format!("{it:.2}"),
        it if it >= 0.001 => format!("{it:.3}"),
        it => format!("{it:.1e}"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// A number of cells as a factor of lengths.
fn pixels(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::MAX, f64::from)
}

const INK: &str = "#222222";
/// Wide enough for four digits and a unit's worth of space.
const CELL_WIDTH: f64 = 76.0;
const CELL_HEIGHT: f64 = 34.0;
/// Room for the names and ticks of the axes, and for titles.
const LEFT: f64 = 84.0;
const RIGHT: f64 = 28.0;
/// A title has room, and so has the picture's own above two maps.
const MAP_WIDTH_MIN: f64 = 340.0;
const TOP: f64 = 78.0;
const BOTTOM: f64 = 56.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(kind: &str) -> String {
        let json = format!(
            r#"{{"gpu": "{kind}", "cost": 1.0, "created": 1.0, "indexes": [[16, 64], [128, 512, 2048]],
                "tputs": [[12.5, 3.25, 0.5], [4.0, 1.5, 0]], "e2e": [[0.5, 0.75, 1.5], [2, 3, 123.4]]}}"#
        );
        let profile = DeviceProfile::from_json(json.as_bytes(), None).unwrap();
        svg(&ModelName::new("org/m:1").unwrap(), &profile)
    }

    #[test]
    fn every_figure_and_tick_stands_in_the_picture_with_its_unit() {
        let drawn = drawn("GPU");
        for text in [
            "12.5",
            "3.25",
            "0.500",
            ">-<",
            "0.750",
            "123",
            ">16<",
            ">64<",
            ">128<",
            ">2048<",
            "prompt, tokens",
            "answer, tokens",
            "requests/s",
            "there, s",
            "org/m:1 on GPU (imported)",
        ] {
            assert!(drawn.contains(text), "{text}: {drawn}");
        }
        assert_eq!(drawn.matches("<rect").count(), 1 + 2 * 6);
    }

    #[test]
    fn a_name_cannot_become_markup() {
        let drawn = drawn("<b>&");
        assert!(
            drawn.contains("&lt;b&gt;&amp;") && !drawn.contains("<b>"),
            "{drawn}"
        );
    }

    #[test]
    fn larger_figures_are_darker_and_none_is_grey() {
        let scale = Scale::of(&[vec![1.0, 10.0, 100.0, 0.0]]);
        assert_eq!(scale.tone(1.0).fill, "rgb(230,242,250)");
        assert_eq!(scale.tone(10.0).fill, "rgb(115,162,195)");
        assert_eq!(scale.tone(100.0).fill, "rgb(0,82,140)");
        assert_eq!(scale.tone(0.0).fill, "#dddddd");
        assert_eq!(Scale::of(&[vec![5.0]]).tone(5.0).fill, "rgb(115,162,195)");
    }
}
