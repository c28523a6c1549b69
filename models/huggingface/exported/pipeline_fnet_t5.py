"""The `text-generation` pipeline for the FNet-T5 hybrid. Stored with exported weights; imports transformers only."""

from __future__ import annotations

from typing import Any

from transformers import TextGenerationPipeline


class FNetT5TextGenerationPipeline(TextGenerationPipeline):
    """Transformers' own pipeline cuts the prompt off the generated tokens. A decoder's output does not repeat the prompt, so
    that would lose its beginning."""

    def check_model_type(self, supported_models: Any) -> None:
        """Transformers' list has decoder-only models."""

    def _forward(self, model_inputs: Any, **generate_kwargs: Any) -> dict[str, Any]:
        return {**super()._forward(model_inputs, **generate_kwargs), "input_ids": None}
