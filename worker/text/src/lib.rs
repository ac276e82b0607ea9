//! Text to tokens and back: tokenizers, streaming detokenisation, stop strings, chat templates.
