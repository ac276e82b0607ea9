//! `{% generation %}`: marks the assistant's text for training, unknown to the template engine.

/// Replaces the tags by an `if` that always holds, so that their trimming of white space stays as it was.
pub(crate) fn without_generation_tags(template: &str) -> String {
    let mut replaced = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        replaced.push_str(before);
        let Some(end) = tag[2..].find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end + 4);
        let inside = &tag[2..end + 2];
        match inside.trim_matches(['-', '+']).trim() {
            "generation" => replaced.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => replaced.push_str(&tag.replace("endgeneration", "endif")),
            _ => replaced.push_str(tag),
        }
        rest = after;
    }
    replaced.push_str(rest);
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_become_a_condition_that_trims_alike() {
        assert_eq!(
            without_generation_tags("a {%- generation %}{{ x }}{% endgeneration -%} b {% if generation %}"),
            "a {%- if true %}{{ x }}{% endif -%} b {% if generation %}"
        );
    }

    #[test]
    fn unclosed_tag_is_left_to_the_engine() {
        assert_eq!(without_generation_tags("x {% generation"), "x {% generation");
        assert_eq!(without_generation_tags("x {%}"), "x {%}");
    }
}
