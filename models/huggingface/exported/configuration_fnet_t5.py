"""Configuration of an exported FNet-T5 hybrid. This file is stored with the weights and imports transformers only."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

_MIXINGS = ("fourier", "hartley", "identity")
_DEFAULTS: dict[str, Any] = {
    "d_ff": 1024,
    "d_kv": 64,
    "num_encoder_layers": 8,
    "num_decoder_layers": 8,
    "mixing": "fourier",
    "num_attention_layers": 0,
    "attention_layout": "top",
    "feed_forward": "gated_gelu",
    "num_buckets": 32,
    "max_distance": 128,
    "norm_eps": 1e-6,
    "encoder_d_ff": 0,
    "fourier_norm": "ortho",
    "dropout": 0.0,
    "encoder_block": "same",
    "num_positions": 512,
    "init_std": 0.0,
}


class FNetT5Config(PretrainedConfig):
    """`fnet_t5` holds the settings of the layers under the names of the FNet-T5 project. Each is an attribute too
    (`config.dropout`), also under the name that transformers uses (`config.dropout_rate`), and can be changed there.

    `encoder_length` is the length of the Fourier transform: shorter inputs are padded to it, longer ones are refused.
    `scale_decoder_outputs`: whether the head's input is multiplied by d_model**-0.5; by default if the head is tied and
    the embedding has T5's N(0, 1). It is stored, so that a head that is untied later keeps it.
    """

    model_type = "fnet_t5"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012
    attribute_map = {  # noqa: RUF012
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_decoder_layers",  # read by transformers to make caches
        "num_layers": "num_encoder_layers",
        "head_dim": "d_kv",
        "intermediate_size": "d_ff",
        "dropout_rate": "dropout",
        "layer_norm_epsilon": "norm_eps",
    }

    def __init__(
        self,
        vocab_size: int = 32128,
        d_model: int = 512,
        num_heads: int = 6,
        encoder_length: int = 512,
        fnet_t5: dict[str, Any] | None = None,
        scale_decoder_outputs: bool | None = None,
        use_cache: bool = True,
        initializer_factor: float = 1.0,
        **options: Any,
    ) -> None:
        given = dict(fnet_t5 or {})
        unknown = sorted(set(given) - set(_DEFAULTS))
        if unknown:
            raise ValueError(f"config.json: fnet_t5.{unknown[0]} is not known: known are {', '.join(_DEFAULTS)}")
        for name in list(options):  # a setting may be given outside of `fnet_t5`
            if self.attribute_map.get(name, name) in _DEFAULTS:
                given[self.attribute_map.get(name, name)] = options.pop(name)
        self.fnet_t5 = {**_DEFAULTS, **given}
        self.vocab_size, self.d_model, self.num_heads = vocab_size, d_model, num_heads
        self.encoder_length, self.use_cache, self.initializer_factor = encoder_length, use_cache, initializer_factor
        if self.mixing not in _MIXINGS:
            raise ValueError(f"config.json: fnet_t5.mixing is {self.mixing!r}: known are {', '.join(_MIXINGS)}")
        options.setdefault("is_encoder_decoder", True)
        options.setdefault("tie_word_embeddings", True)
        if scale_decoder_outputs is None:
            scale_decoder_outputs = options["tie_word_embeddings"] and not self.init_std
        self.scale_decoder_outputs = bool(scale_decoder_outputs)
        super().__init__(**options)

    def __getattr__(self, name: str) -> Any:
        settings = self.__dict__.get("fnet_t5") or {}
        key = type(self).attribute_map.get(name, name)
        if key not in settings:
            raise AttributeError(f"FNetT5Config has no attribute {name!r}")
        return settings[key]

    def __setattr__(self, name: str, value: Any) -> None:
        settings = self.__dict__.get("fnet_t5") or {}
        key = type(self).attribute_map.get(name, name)
        if key in settings:
            settings[key] = value
        else:
            super().__setattr__(name, value)

    def layer_attends(self, layer: int) -> bool:
        """Whether an encoder layer has attention, by the rules of FNet's hybrids (google-research/f_net)."""
        total, attending = self.num_encoder_layers, self.num_attention_layers
        if attending == 0:
            return False
        if self.attention_layout == "bottom":
            return layer < attending
        if self.attention_layout == "middle":
            return total - attending <= 2 * layer < total + attending
        if self.attention_layout == "mixed":
            return layer % (total // attending) == 0
        return layer >= total - attending

    @property
    def encoder_attends(self) -> bool:
        """Whether any encoder layer has attention. FNet's own blocks have none."""
        return self.encoder_block != "fnet" and any(map(self.layer_attends, range(self.num_encoder_layers)))

    def std(self, by_fan_in: float) -> float:
        """Standard deviation of an initial weight: `init_std`, or T5's rule if that is 0."""
        return self.initializer_factor * (self.init_std or by_fan_in)
