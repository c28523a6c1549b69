"""All objectives by their names in a recipe, and the making of a run's objective.

objective: prefix_lm                                         its defaults
objective: {name: span_corruption, noise_density: 0.3}       or with settings
objective: {name: mixture, parts: [{weight: 1, objective: ul2}, {weight: 3, objective: {name: prefix_lm, target_share: 0.5}}]}
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, field_validator, model_validator

from models.sizes import DECODER_ONLY, ENCODER_ONLY
from pipeline.objectives.causal_lm import CausalLM, CausalLMConfig, DecoderOnlyAdapter
from pipeline.objectives.interface import Form, Objective, ObjectiveConfig
from pipeline.objectives.masked_lm import MaskedLMConfig
from pipeline.objectives.mixture import Mixture, Part, PartConfig, shared_row_length, shares_of
from pipeline.objectives.prefix_lm import PrefixLMConfig
from pipeline.objectives.span_corruption import SpanCorruptionConfig
from pipeline.objectives.text_infilling import TextInfillingConfig
from pipeline.objectives.ul2 import UL2Config
from pipeline.objectives.vocabulary import Vocabulary


def named(value: Any) -> Any:
    """`ul2` is short for `{name: ul2}`; settings without a name belong to the default, prefix_lm."""
    if isinstance(value, str):
        return {"name": value}
    return {"name": "prefix_lm", **value} if isinstance(value, dict) else value


class MixturePartConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: PositiveFloat = 1.0
    """Share of samples, relative to the other parts' weights."""
    objective: PairObjective
    """An encoder-decoder objective: its name, or a mapping of `name` and its settings."""
    mode_token: str | None = None
    """Special token of the tokenizer that is put before the encoder's text. Default: none."""

    _short = field_validator("objective", mode="before")(named)


class MixtureConfig(ObjectiveConfig):
    name: Literal["mixture"] = "mixture"
    parts: tuple[MixturePartConfig, ...]
    """The objectives, one of which is drawn for each sample."""

    @field_validator("parts")
    @classmethod
    def _not_empty(cls, parts: tuple[MixturePartConfig, ...]) -> tuple[MixturePartConfig, ...]:
        if not parts:
            raise ValueError("a mixture without parts has nothing to train on: give at least one {weight, objective}")
        return parts

    def row_length(self, encoder_length: int, decoder_length: int) -> int:
        parts = [PartConfig(part.objective, part.mode_token is not None) for part in self.parts]
        return shared_row_length(parts, encoder_length, decoder_length)

    def default_decoder_length(self, encoder_length: int) -> int:
        """The decoder length of the part with the longest decoder, on rows that fit all parts."""
        return max(part.objective.default_decoder_length(encoder_length - (part.mode_token is not None)) for part in self.parts)

    def build(self, row_length: int, encoder_length: int, decoder_length: int, vocabulary: Vocabulary, seed: str) -> Objective:
        shares = shares_of([part.weight for part in self.parts])
        built = []
        for number, (part, share) in enumerate(zip(self.parts, shares, strict=True)):
            mode = None if part.mode_token is None else vocabulary.token(part.mode_token, self.name)
            room = encoder_length - (mode is not None)
            built.append(
                Part(part.objective.build(row_length, room, decoder_length, vocabulary, f"{seed}/{number}"), share, mode)
            )
        return Mixture(parts=tuple(built), encoder_length=encoder_length, decoder_length=decoder_length, seed=seed)


PairObjective = Annotated[
    PrefixLMConfig | SpanCorruptionConfig | TextInfillingConfig | UL2Config | MixtureConfig, Field(discriminator="name")
]
AnyObjective = Annotated[
    PrefixLMConfig | SpanCorruptionConfig | TextInfillingConfig | UL2Config | MixtureConfig | CausalLMConfig | MaskedLMConfig,
    Field(discriminator="name"),
]
MixturePartConfig.model_rebuild()
MixtureConfig.model_rebuild()
NAMES = ("prefix_lm", "causal_lm", "span_corruption", "text_infilling", "ul2", "masked_lm", "mixture")


def form_of(architecture: str) -> Form:
    """Whether an architecture (`model.architecture`) is an encoder-decoder, decoder-only or encoder-only."""
    if architecture in DECODER_ONLY:
        return "decoder_only"
    return "encoder_only" if architecture in ENCODER_ONLY else "encoder_decoder"


def check_form(config: ObjectiveConfig, architecture: str) -> None:
    """Raise ValueError if the architecture cannot be trained on the objective."""
    form = form_of(architecture)
    if config.form != form and not (config.form == "encoder_decoder" and form == "decoder_only"):
        fitting = {
            "encoder_decoder": "prefix_lm, span_corruption, text_infilling, ul2 or mixture",
            "decoder_only": "causal_lm, or any objective of encoder-decoders",
            "encoder_only": "masked_lm",
        }[form]
        raise ValueError(f"data.objective {config.name} cannot train model.architecture {architecture}: take {fitting}")


def build_objective(
    config: ObjectiveConfig,
    *,
    architecture: str,
    encoder_length: int,
    decoder_length: int,
    vocabulary: Vocabulary,
    seed: str,
) -> Objective:
    """The objective of a run in the form that the architecture takes, on rows of the longest length that always fits.

    `seed` names the stream of random numbers: the run's seed in training, a constant in evaluation. Raises ValueError if
    the architecture, the lengths or the vocabulary do not fit it.
    """
    check_form(config, architecture)
    row_length = config.row_length(encoder_length, decoder_length)
    objective = config.build(row_length, encoder_length, decoder_length, vocabulary, seed)
    if form_of(architecture) == "decoder_only" and not isinstance(objective, CausalLM):
        return DecoderOnlyAdapter(objective, vocabulary.start, bidirectional_prefix=architecture == "prefix_decoder")
    return objective


class ObjectiveField(BaseModel):
    """Reads one objective from a name or a mapping: for commands that take it outside a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    objective: AnyObjective

    @model_validator(mode="before")
    @classmethod
    def _short(cls, values: Any) -> Any:
        return {**values, "objective": named(values.get("objective"))} if isinstance(values, dict) else values
