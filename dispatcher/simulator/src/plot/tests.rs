use std::time::Duration;

use super::*;
use crate::trace::{BuiltinTrace, Recipe};

/// Every policy on some seconds of a built-in trace, with the bound.
fn drawn(built_in: BuiltinTrace) -> Vec<Plot> {
    let recipe = Recipe {
        seed: 1,
        rate: 0.5,
        duration: Duration::from_secs(20),
    };
    let scenario = Scenario::new(built_in.make(&recipe), built_in.fleet()).unwrap();
    let runs: Vec<_> = PolicyName::ALL
        .map(|policy| {
            let outcome = policy.simulate(&scenario, 1);
            let figures = Figures::of(&scenario, &outcome);
            (policy, outcome, figures)
        })
        .into();
    let compared: Vec<_> = runs
        .iter()
        .map(|(policy, outcome, figures)| Compared {
            policy: *policy,
            outcome,
            figures,
        })
        .collect();
    plots(&scenario, &compared, Some(&Bound::of(&scenario)))
}

#[test]
fn every_picture_is_well_formed_and_shows_every_policy() {
    for built_in in [BuiltinTrace::Composite, BuiltinTrace::Overload] {
        let plots = drawn(built_in);
        assert_eq!(plots.len(), 6);
        for plot in plots {
            assert_well_formed(&plot.svg);
            for policy in PolicyName::ALL {
                let mark = format!("data-policy=\"{policy}\"");
                assert!(plot.svg.contains(&mark), "{} lacks {policy}", plot.file);
                let named = [format!(">{policy}</text>"), format!(">{policy}: ")];
                assert!(
                    named.iter().any(|name| plot.svg.contains(name)),
                    "{} does not name {policy}",
                    plot.file
                );
            }
            assert!(
                !plot.svg.contains("NaN") && !plot.svg.contains("inf"),
                "{}",
                plot.file
            );
        }
    }
}

#[test]
fn the_target_and_the_bound_are_marked_where_there_is_one() {
    let composite = drawn(BuiltinTrace::Composite);
    let svg = |plots: &[Plot], file| plots.iter().find(|plot| plot.file == file).unwrap().svg.clone();
    assert!(svg(&composite, "latency-per-token.svg").contains("target 50 ms"));
    assert!(svg(&composite, "goodput.svg").contains("nobody exceeds"));
    let overload = drawn(BuiltinTrace::Overload);
    assert!(
        !svg(&overload, "latency-per-token.svg").contains("target"),
        "its requests have several"
    );
}

#[test]
fn everything_is_drawn_inside_the_picture() {
    for plot in drawn(BuiltinTrace::Bursts) {
        for attribute in ["x", "y", "x1", "x2", "y1", "y2", "cx", "cy"] {
            let mark = format!(" {attribute}=\"");
            for rest in plot.svg.split(&mark).skip(1) {
                let value: f64 = rest.split('"').next().unwrap().parse().unwrap();
                assert!(
                    (0.0..=1_010.0).contains(&value),
                    "{}: {attribute} is {value}",
                    plot.file
                );
            }
        }
    }
}

#[test]
fn what_is_written_cannot_be_taken_for_markup() {
    let mut svg = svg::Svg::new(10.0, 10.0, "a < b & \"c\"");
    svg.labelled("text", &[("x", &"\"><script>")], "<b>");
    let svg = svg.finish();
    assert_well_formed(&svg);
    assert!(svg.contains("<title>a &lt; b &amp; &quot;c&quot;</title>"));
    assert!(!svg.contains("<script>") && svg.contains("&lt;b&gt;"));
}

/// Every tag is closed in its order, attributes have names and quoted values, and no bare `&` or `<` stands
/// in text.
fn assert_well_formed(svg: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = svg;
    while let Some(at) = rest.find('<') {
        assert_entities(&rest[..at]);
        let end = rest[at..].find('>').expect("a tag ends") + at;
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "in {tag}");
            continue;
        }
        let (content, is_closed) = match tag.strip_suffix('/') {
            Some(content) => (content, true),
            None => (tag, false),
        };
        let (name, mut attributes) = content.split_once(' ').unwrap_or((content, ""));
        assert!(name.chars().all(char::is_alphanumeric), "{name}");
        while !attributes.trim().is_empty() {
            let (attribute, value) = attributes.split_once("=\"").expect("a value is quoted");
            let attribute = attribute.trim();
            assert!(
                attribute.chars().all(|c| c.is_alphanumeric() || c == '-'),
                "{attribute}"
            );
            let (value, left) = value.split_once('"').expect("a value ends");
            assert_entities(value);
            attributes = left;
        }
        if !is_closed {
            open.push(name);
        }
    }
    assert_entities(rest);
    assert!(open.is_empty(), "{open:?} stay open");
}

fn assert_entities(text: &str) {
    assert!(!text.contains('>'), "{text}");
    for rest in text.split('&').skip(1) {
        let entity = rest.split_once(';').map(|(entity, _)| entity);
        assert!(matches!(entity, Some("amp" | "lt" | "gt" | "quot")), "{rest}");
    }
}
