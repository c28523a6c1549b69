"""One entry for all architectures: the whole model of a configuration on one process."""

from __future__ import annotations

from models.config import ModelConfig
from models.decoder_only import DecoderOnly
from models.encoder_only import EncoderOnly
from models.piecewise import Piecewise
from models.seq2seq import Seq2Seq


def build_model(config: ModelConfig) -> Piecewise:
    """Seq2Seq, DecoderOnly or EncoderOnly; its parameters hold nothing yet (see `initialization.initialize`)."""
    if config.is_decoder_only:
        return DecoderOnly(config)
    return EncoderOnly(config) if config.is_encoder_only else Seq2Seq(config)
