"""`build_model`: the whole model of a configuration on one process, for every architecture."""

from __future__ import annotations

from models.architectures.decoder_only import DecoderOnly
from models.architectures.encoder_only import EncoderOnly
from models.architectures.seq2seq import Seq2Seq
from models.architectures.single_process import SingleProcessModel
from models.config import ModelConfig


def build_model(config: ModelConfig) -> SingleProcessModel:
    """Seq2Seq, DecoderOnly or EncoderOnly; its parameters have no values yet (see `initialization.initialize`)."""
    if config.is_decoder_only:
        return DecoderOnly(config)
    return EncoderOnly(config) if config.is_encoder_only else Seq2Seq(config)
