"""The whole road on one machine: text of its own Python installation, tokens, a trained hybrid, text it writes."""
