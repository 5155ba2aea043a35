"""From text to tokens and back: tokenizers, chat formats, readers of answers."""
