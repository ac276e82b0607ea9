//! In which order a load wants the tensors of a model.

/// When a load wants a tensor; smaller is earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// Before any tensor: configuration, tokenizer, headers of files.
    Description,
    /// What the first layer takes its input from.
    Embeddings,
    /// A layer, by its number.
    Layer(u32),
    /// What comes after the last layer.
    Head,
}

/// When a load wants a tensor of this name. Names are those of Hugging Face: a layer's number is the first part
/// of the name that is one. It decides the pace of a load and nothing else, so a wrong guess costs time alone.
pub(crate) fn rank(tensor: &str) -> Rank {
    if let Some(layer) = tensor.split('.').find_map(|part| part.parse().ok()) {
        return Rank::Layer(layer);
    }
    if tensor
        .split('.')
        .any(|part| part.starts_with("embed") || matches!(part, "wte" | "wpe"))
    {
        return Rank::Embeddings;
    }
    Rank::Head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_come_in_the_order_of_a_pass() {
        let names = [
            "model.embed_tokens.weight",
            "model.layers.0.mlp.down_proj.weight",
            "model.layers.2.input_layernorm.weight",
            "model.layers.10.input_layernorm.weight",
            "lm_head.weight",
        ];
        assert!(names.is_sorted_by_key(|name| rank(name)));
        assert_eq!(rank("embeddings.word_embeddings.weight"), Rank::Embeddings);
        assert_eq!(rank("transformer.wte.weight"), Rank::Embeddings);
        assert_eq!(rank("encoder.layer.3.attention.self.query.bias"), Rank::Layer(3));
        assert_eq!(rank("model.norm.weight"), Rank::Head);
        assert!(Rank::Description < rank("embeddings.position_embeddings.weight"));
    }
}
