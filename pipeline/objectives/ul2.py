"""UL2's mixture of denoisers: mild (R) and extreme (X) span corruption and prefix-LM (S), each with a mode token.

(Tay et al. 2022, arXiv:2205.05131: R has spans of 3 and 8 tokens at 15 %; X of 3, 8 and 64 at 50 %, and of 64 at 15 %; S a
suffix of a quarter. Their tokens are [NLU], [NLG], [S2S].) All seven are equally likely by default.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.objectives.interface import Objective, ObjectiveConfig
from pipeline.objectives.mixture import Mixture, Part, PartConfig, shared_row_length, shares_of
from pipeline.objectives.prefix_lm import PrefixLMConfig
from pipeline.objectives.span_corruption import SpanCorruptionConfig
from pipeline.objectives.vocabulary import Vocabulary

_REGULAR, _EXTREME, _SEQUENTIAL = "[NLU]", "[NLG]", "[S2S]"
_SPANS = (
    (3, 0.15, _REGULAR),
    (8, 0.15, _REGULAR),
    (3, 0.5, _EXTREME),
    (8, 0.5, _EXTREME),
    (64, 0.15, _EXTREME),
    (64, 0.5, _EXTREME),
)


class UL2Config(ObjectiveConfig):
    name: Literal["ul2"] = "ul2"
    prefix_weight: float = Field(default=1.0, ge=0)
    """Weight of prefix-LM relative to each of the six span denoisers, which have 1. Ports that give prefix-LM half of all
    samples have 6."""
    target_share: float = Field(default=0.25, gt=0, lt=1)
    """Share of the row that the decoder writes under prefix-LM."""
    mode_tokens: bool = True
    """Whether the encoder's text begins with the mode's token: [NLU], [NLG] or [S2S]."""
    repeat_sentinels: bool = False
    """If a row has more spans than the tokenizer has sentinels (50 % in spans of 3), start again from the first."""

    def row_length(self, encoder_length: int, decoder_length: int) -> int:
        parts = [PartConfig(config, self.mode_tokens) for config, _, _ in self._parts()]
        return shared_row_length(parts, encoder_length, decoder_length)

    def default_decoder_length(self, encoder_length: int) -> int:
        """The encoder length: a denoiser moves text from the encoder to the decoder."""
        return encoder_length

    def build(self, row_length: int, encoder_length: int, decoder_length: int, vocabulary: Vocabulary, seed: str) -> Objective:
        parts = self._parts()
        shares = shares_of([weight for _, weight, _ in parts])
        built = [
            Part(
                config.build(row_length, encoder_length - self.mode_tokens, decoder_length, vocabulary, f"{seed}/{number}"),
                share,
                vocabulary.token(mode, self.name) if self.mode_tokens else None,
            )
            for number, ((config, _, mode), share) in enumerate(zip(parts, shares, strict=True))
        ]
        return Mixture(parts=tuple(built), encoder_length=encoder_length, decoder_length=decoder_length, seed=seed)

    def _parts(self) -> list[tuple[ObjectiveConfig, float, str]]:
        spans: list[tuple[ObjectiveConfig, float, str]] = [
            (
                SpanCorruptionConfig(noise_density=rate, mean_span_length=mean, repeat_sentinels=self.repeat_sentinels),
                1.0,
                mode,
            )
            for mean, rate, mode in _SPANS
        ]
        return [*spans, (PrefixLMConfig(target_share=self.target_share), self.prefix_weight, _SEQUENTIAL)]
