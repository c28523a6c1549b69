"""End-to-end demo on one machine: text of its Python installation, tokens, a trained hybrid, generated text."""
