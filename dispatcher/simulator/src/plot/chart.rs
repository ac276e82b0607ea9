//! A picture with two axes: its frame, its legend, and what is drawn in it.

use super::scale::{Scale, written};
use super::style::{Marker, Style};
use super::svg::{Svg, pixels};
use crate::policy::PolicyName;

/// What stands at a picture.
#[derive(Debug, Clone, Copy)]
pub(super) struct Titles<'a> {
    /// Above it.
    pub(super) title: &'a str,
    /// Below the title: of which trace and fleet.
    pub(super) subtitle: &'a str,
    /// Below it, with its unit.
    pub(super) across: &'a str,
    /// Left of it, with its unit; empty where rows have names.
    pub(super) up: &'a str,
}

/// A picture under way.
#[derive(Debug)]
pub(super) struct Chart {
    svg: Svg,
    across: Scale,
    up: Scale,
}

impl Chart {
    /// A frame with both axes.
    pub(super) fn new(titles: &Titles<'_>, across: Scale, up: Scale) -> Self {
        let mut chart = Self::bare(titles, across, up);
        for tick in up.ticks() {
            let y = pixels(chart.y(tick));
            chart.grid_line(pixels(LEFT), y.clone(), pixels(RIGHT), y);
            chart.note(LEFT - 8.0, chart.y(tick) + 4.0, "end", &written(tick));
        }
        let middle = (TOP + BOTTOM) / 2.0;
        chart.svg.labelled(
            "text",
            &[
                ("transform", &format!("translate(22 {middle}) rotate(-90)")),
                ("text-anchor", &"middle"),
            ],
            titles.up,
        );
        chart
    }

    /// A frame whose rows have names, one below the other.
    pub(super) fn of_rows(titles: &Titles<'_>, across: Scale, rows: &[&str]) -> Self {
        let to = rows.len().max(1) as f64;
        let up = Scale::Linear {
            from: to,
            to: 0.0,
            step: 1.0,
        };
        let mut chart = Self::bare(titles, across, up);
        for (index, row) in rows.iter().enumerate() {
            chart.note(LEFT - 8.0, chart.y(index as f64 + 0.5) + 4.0, "end", row);
        }
        chart
    }

    fn bare(titles: &Titles<'_>, across: Scale, up: Scale) -> Self {
        let mut chart = Self {
            svg: Svg::new(WIDTH, HEIGHT, titles.title),
            across,
            up,
        };
        let background = [("width", "100%"), ("height", "100%"), ("fill", "#ffffff")];
        let background = background.each_ref().map(|(name, value)| (*name, value as _));
        chart.svg.element("rect", &background);
        let bold: &[super::svg::Attribute<'_>] = &[
            ("x", &LEFT),
            ("y", &24.0),
            ("font-size", &17.0),
            ("font-weight", &"600"),
        ];
        chart.svg.labelled("text", bold, titles.title);
        chart.coloured(LEFT, 43.0, "start", "#555555", titles.subtitle);
        for tick in across.ticks() {
            let x = pixels(chart.x(tick));
            chart.grid_line(x.clone(), pixels(TOP), x, pixels(BOTTOM));
            chart.note(chart.x(tick), BOTTOM + 18.0, "middle", &written(tick));
        }
        chart.note((LEFT + RIGHT) / 2.0, BOTTOM + 42.0, "middle", titles.across);
        chart
    }

    /// A line through points in the units of the axes.
    pub(super) fn line(&mut self, policy: PolicyName, points: &[(f64, f64)]) {
        let style = Style::of(policy);
        let places = points.iter();
        let places = places.map(|(x, y)| format!("{},{}", pixels(self.x(*x)), pixels(self.y(*y))));
        let places = places.collect::<Vec<_>>().join(" ");
        self.svg.element(
            "polyline",
            &[
                ("data-policy", &policy),
                ("points", &places),
                ("fill", &"none"),
                ("stroke", &style.colour),
                ("stroke-width", &2.0),
                ("stroke-dasharray", &style.dash),
                ("stroke-linejoin", &"round"),
            ],
        );
    }

    /// A point in the units of the axes.
    pub(super) fn point(&mut self, policy: PolicyName, (x, y): (f64, f64)) {
        let (x, y) = (self.x(x), self.y(y));
        self.marker(policy, x, y);
    }

    /// A bar in a row, from the left to a value, and what is written at its end.
    pub(super) fn bar(&mut self, policy: PolicyName, row: usize, value: f64, label: &str) {
        let style = Style::of(policy);
        let (top, end) = (self.y(row as f64 + 0.15), self.x(value));
        let height = self.y(row as f64 + 0.85) - top;
        self.svg.element(
            "rect",
            &[
                ("data-policy", &policy),
                ("x", &pixels(LEFT)),
                ("y", &pixels(top)),
                ("width", &pixels((end - LEFT).max(1.0))),
                ("height", &pixels(height)),
                ("fill", &style.colour),
            ],
        );
        self.note(end + 6.0, top + height / 2.0 + 4.0, "start", label);
    }

    /// A line from bottom to top at a value, and what is written at it.
    pub(super) fn upright(&mut self, value: f64, label: &str) {
        let x = self.x(value);
        self.svg.element(
            "line",
            &[
                ("x1", &pixels(x)),
                ("y1", &pixels(TOP)),
                ("x2", &pixels(x)),
                ("y2", &pixels(BOTTOM)),
                ("stroke", &"#000000"),
                ("stroke-width", &1.5),
                ("stroke-dasharray", &"2 3"),
            ],
        );
        self.note(x, TOP - 5.0, "middle", label);
    }

    /// Policies and what is said of them beside the picture, in this order.
    pub(super) fn legend(&mut self, entries: impl Iterator<Item = (PolicyName, String)>, mark: Mark) {
        for (index, (policy, entry)) in entries.enumerate() {
            let (x, y) = (RIGHT + 20.0, TOP + 10.0 + 22.0 * index as f64);
            match mark {
                Mark::Line => {
                    let style = Style::of(policy);
                    self.svg.element(
                        "line",
                        &[
                            ("x1", &x),
                            ("y1", &y),
                            ("x2", &(x + 26.0)),
                            ("y2", &y),
                            ("stroke", &style.colour),
                            ("stroke-width", &2.5),
                            ("stroke-dasharray", &style.dash),
                        ],
                    );
                }
                Mark::Point => self.marker(policy, x + 13.0, y),
            }
            self.note(x + 34.0, y + 4.0, "start", &entry);
        }
    }

    /// The whole picture.
    pub(super) fn finish(self) -> String {
        self.svg.finish()
    }

    fn marker(&mut self, policy: PolicyName, x: f64, y: f64) {
        let style = Style::of(policy);
        let common: [super::svg::Attribute<'_>; 3] = [
            ("data-policy", &policy),
            ("fill", &style.colour),
            ("stroke", &"#ffffff"),
        ];
        let (size, turn) = (MARKER * 1.8, format!("rotate(45 {} {})", pixels(x), pixels(y)));
        let corner = [x, y].map(|centre| pixels(centre - size / 2.0));
        let square: [super::svg::Attribute<'_>; 4] = [
            ("x", &corner[0]),
            ("y", &corner[1]),
            ("width", &size),
            ("height", &size),
        ];
        match style.marker {
            Marker::Circle => {
                let (x, y) = (pixels(x), pixels(y));
                let circle: [super::svg::Attribute<'_>; 3] = [("cx", &x), ("cy", &y), ("r", &MARKER)];
                self.svg.element("circle", &[&common[..], &circle].concat());
            }
            Marker::Square => self.svg.element("rect", &[&common[..], &square].concat()),
            Marker::Diamond => {
                let turned: [super::svg::Attribute<'_>; 1] = [("transform", &turn)];
                self.svg
                    .element("rect", &[&common[..], &square, &turned].concat());
            }
        }
    }

    fn note(&mut self, x: f64, y: f64, anchor: &str, label: &str) {
        self.coloured(x, y, anchor, "#222222", label);
    }

    fn coloured(&mut self, x: f64, y: f64, anchor: &str, colour: &str, label: &str) {
        let place = [x, y].map(pixels);
        self.svg.labelled(
            "text",
            &[
                ("x", &place[0]),
                ("y", &place[1]),
                ("text-anchor", &anchor),
                ("fill", &colour),
            ],
            label,
        );
    }

    fn grid_line(&mut self, x1: String, y1: String, x2: String, y2: String) {
        self.svg.element(
            "line",
            &[
                ("x1", &x1),
                ("y1", &y1),
                ("x2", &x2),
                ("y2", &y2),
                ("stroke", &"#dddddd"),
            ],
        );
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + (RIGHT - LEFT) * self.across.place(value)
    }

    fn y(&self, value: f64) -> f64 {
        BOTTOM - (BOTTOM - TOP) * self.up.place(value)
    }
}

/// What stands for a policy in a legend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Line,
    Point,
}

// A picture in pixels: room for numbers on the left, for the legend on the right.
const WIDTH: f64 = 1_010.0;
const HEIGHT: f64 = 540.0;
const LEFT: f64 = 110.0;
const RIGHT: f64 = 770.0;
const TOP: f64 = 76.0;
const BOTTOM: f64 = 476.0;
/// Radius of a point.
const MARKER: f64 = 6.0;
