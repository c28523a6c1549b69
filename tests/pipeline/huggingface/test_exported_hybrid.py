"""The exported hybrid behaves as transformers' own models do: the properties that its common model tests check.

Outputs are compared with those of the same weights by another way (padding, batching, attention kernel), and with what
transformers' documentation of a method promises.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.pipeline.huggingface.conftest import LENGTH, VOCABULARY, Load

Batch = dict[str, Tensor]


@pytest.fixture
def model(folder: Path, load: Load) -> Any:
    return load(folder)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.detach().abs().max()))


# --- loading and saving ---


def test_every_auto_class_loads_all_its_weights(folder: Path, load: Load, batch: Batch) -> None:
    whole, loading = load(folder, "AutoModelForSeq2SeqLM", output_loading_info=True)
    assert not any(loading.values())
    for auto in ("AutoModel", "AutoModelForTextEncoding", "AutoModelForPreTraining"):
        _, loading = load(folder, auto, output_loading_info=True)
        assert not any(loading.values()), auto
    stacks, encoder = load(folder, "AutoModel"), load(folder, "AutoModelForTextEncoding")
    with torch.no_grad():
        expected = whole.eval()(**batch)
        found = stacks(**batch)
        scale = 64**-0.5 if whole.config.scale_decoder_outputs else 1.0
        close(whole.get_output_embeddings()(found.last_hidden_state * scale), expected.logits)
        close(encoder(batch["input_ids"]).last_hidden_state, expected.encoder_last_hidden_state)
    assert not stacks.can_generate()


def test_saved_again_it_has_the_same_weights_and_all_auto_classes(
    folder: Path, model: Any, load: Load, tmp_path: Path, batch: Batch
) -> None:
    model.save_pretrained(tmp_path)
    kept, saved = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert kept.keys() == saved.keys()
    assert all(torch.equal(kept[name], saved[name]) for name in kept)
    assert torch.equal(load(tmp_path)(**batch).logits, model(**batch).logits)
    assert load(tmp_path, "AutoModel").config.to_dict().keys() == model.config.to_dict().keys()
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert torch.equal(load(tmp_path / "shards")(**batch).logits, model(**batch).logits)


def test_a_setting_of_the_configuration_is_honoured_under_either_name(tied_folder: Path, load: Load, tmp_path: Path) -> None:
    model = load(tied_folder, dropout_rate=0.25)
    assert model.config.dropout == model.decoder.dropout == model.encoder.layers[0].feed_forward.dropout == 0.25
    model.config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_bytes())["fnet_t5"]["dropout"] == 0.25
    with pytest.raises(TypeError, match="dropot"):
        load(tied_folder, dropot=0.25)
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = 3
    assert (config.num_decoder_layers, model.config.num_decoder_layers) == (3, 2)
    assert len(type(model)(config).decoder.layers) == 3
    with pytest.raises(ValueError, match=r"fnet_t5\.colour is not known"):
        type(config)(fnet_t5={"colour": 1})


def test_the_configuration_has_the_names_that_transformers_reads(tied_folder: Path, load: Load, tmp_path: Path) -> None:
    model = load(tied_folder)
    kind = type(model.config)
    config = kind(hidden_size=48, num_attention_heads=3, num_hidden_layers=5, vocab_size=99, tie_word_embeddings=False)
    assert (config.d_model, config.num_heads, config.num_decoder_layers, config.vocab_size) == (48, 3, 5, 99)
    assert not config.scale_decoder_outputs
    for name in ("hidden_size", "num_attention_heads", "num_hidden_layers", "head_dim", "vocab_size"):
        setattr(config, name, 7)
        assert getattr(config, name) == 7
    config.save_pretrained(tmp_path)
    assert kind.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert copy.deepcopy(config).to_dict() == config.to_dict()
    assert kind().to_dict()["fnet_t5"]["num_encoder_layers"] == 8
    with torch.device("meta"):
        assert all(parameter.is_meta for parameter in type(model)(model.config).parameters())


def test_stacks_can_be_on_different_devices(folder: Path, load: Load, batch: Batch, tmp_path: Path) -> None:
    model = load(folder)
    places = {"embedding": "cpu", "relative_bias": "disk", "encoder": "disk", "decoder": "cpu", "head": "cpu"}
    for name in ("encoder", "decoder"):
        apart = load(folder, device_map={**places, name: "cpu"}, offload_folder=str(tmp_path / name))
        with torch.no_grad():
            close(apart(**batch).logits, model(**batch).logits)
        options = {"max_new_tokens": 4, "do_sample": False}
        assert torch.equal(apart.generate(batch["input_ids"], **options), model.generate(batch["input_ids"], **options))


def test_a_copy_shares_nothing_with_its_model(tied_folder: Path, load: Load, batch: Batch) -> None:
    """The encoder refers to the embedding of its own model, when it is called by itself too."""
    model = load(tied_folder)
    expected = model.get_encoder()(batch["input_ids"])[0]
    other = copy.deepcopy(model)
    other.get_input_embeddings().weight.data.mul_(2)
    assert not torch.equal(other.get_encoder()(batch["input_ids"])[0], expected)
    assert torch.equal(model.get_encoder()(batch["input_ids"])[0], expected)
    assert torch.equal(model(**batch).encoder_last_hidden_state, expected)


@pytest.mark.slow
def test_it_can_be_exported_as_a_graph(model: Any, batch: Batch) -> None:
    inputs = {**batch, "attention_mask": torch.ones_like(batch["input_ids"]), "use_cache": False}
    graph = torch.export.export(model, (), inputs, strict=False).module()
    close(graph(**inputs).logits, model(**inputs).logits)


# --- tied weights and the vocabulary ---


def test_the_head_is_the_embedding_only_if_it_is_tied(model: Any) -> None:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert isinstance(head, nn.Linear)
    assert isinstance(embedding, nn.Embedding)
    assert (head.weight is embedding.weight) == model.config.tie_word_embeddings
    names = dict(model.named_parameters(remove_duplicate=False))
    assert model.config.tie_word_embeddings == (len(names) == len(dict(model.named_parameters())) + 1)


def test_an_untied_head_computes_what_the_tied_one_did(tied_folder: Path, load: Load, tmp_path: Path, batch: Batch) -> None:
    """The scale before the head is a setting of its own: it does not vanish when the head is untied."""
    model = load(tied_folder)
    with torch.no_grad():
        expected = model(**batch).logits
        model.config.tie_word_embeddings = False
        model.head.projection.weight = nn.Parameter(model.head.projection.weight.clone())
        model.save_pretrained(tmp_path)
        again = load(tmp_path)
        assert again.head.projection.weight is not again.embedding.tokens.weight
        assert torch.equal(again(**batch).logits, expected)


@pytest.mark.parametrize("mean_resizing", [True, False])
def test_tokens_can_be_added_and_removed(model: Any, load: Load, tmp_path: Path, batch: Batch, mean_resizing: bool) -> None:
    with torch.no_grad():
        expected = model(**batch).logits
        model.resize_token_embeddings(VOCABULARY + 10, mean_resizing=mean_resizing)
        assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == VOCABULARY + 10
        assert model.get_output_embeddings().out_features == VOCABULARY + 10
        assert (model.head.projection.weight is model.embedding.tokens.weight) == model.config.tie_word_embeddings
        found = model(**batch).logits
        assert found.shape[-1] == VOCABULARY + 10
        assert found.isfinite().all()
        close(found[..., :VOCABULARY], expected)
        new = torch.full_like(batch["decoder_input_ids"], VOCABULARY + 9)
        assert model(input_ids=batch["input_ids"], labels=new).loss.isfinite()
        model.save_pretrained(tmp_path)
        assert torch.equal(load(tmp_path)(**batch).logits, found)
        model.resize_token_embeddings(VOCABULARY - 20)
        few = {name: ids.clamp(max=VOCABULARY - 21) for name, ids in batch.items()}
        assert model(**few).logits.shape[-1] == VOCABULARY - 20
        model.resize_token_embeddings(pad_to_multiple_of=64)
        assert model(**few).logits.shape[-1] == 384


# --- initial values ---


def test_every_weight_that_a_folder_lacks_is_initialised_and_no_other(
    folder: Path, model: Any, load: Load, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    kept = load_file(tmp_path / "model.safetensors")
    lost = [name for name in kept if ".0." in name or "relative_bias" in name or "encoder.input" in name]
    save_file(
        {name: value for name, value in kept.items() if name not in lost}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    again, loading = load(tmp_path, output_loading_info=True)
    assert set(loading["missing_keys"]) == set(lost)
    for name, value in again.state_dict().items():
        assert value.isfinite().all(), name
        if name in kept and name not in lost:
            assert torch.equal(value, kept[name]), name
        elif name in lost and value.ndim == 2:
            assert 0.5 < float(value.std() / kept[name].std()) < 2, name  # drawn from the distribution of this project
        elif name in lost:
            assert float(value.unique()) in (0.0, 1.0), name  # norms and biases


def test_initial_values_are_those_of_this_project(model: Any) -> None:
    """`kept` was drawn by models/layers/initialization.py. The two draws differ, their standard deviations do not."""
    kept = model.state_dict()
    fresh = type(model)(model.config).state_dict()
    assert fresh.keys() == kept.keys()
    for name, value in fresh.items():
        assert not torch.equal(value, kept[name]) or value.unique().numel() == 1, name
        torch.testing.assert_close(value.std(), kept[name].std(), rtol=0.35, atol=1e-6, msg=name)
    config = copy.deepcopy(model.config)
    config.initializer_factor = 1e-10
    for name, parameter in type(model)(config).named_parameters():
        assert round(float(parameter.detach().mean()), 8) in (0.0, 1.0), name


# --- inputs ---


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_a_batch_with_padding_equals_its_rows(folder: Path, load: Load, batch: Batch, side: str, kernel: str) -> None:
    model = load(folder, attn_implementation=kernel)
    lengths = [9, 5, 2]
    ids, mask = torch.full((3, 12), 0), torch.zeros(3, 12, dtype=torch.long)
    for row, length in enumerate(lengths):
        place = slice(12 - length, 12) if side == "left" else slice(0, length)
        ids[row, place], mask[row, place] = batch["input_ids"][row, :length], 1
    ids[mask == 0] = 7  # what stands at padding must not matter
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask, decoder_input_ids=batch["decoder_input_ids"])
        hidden = found.encoder_last_hidden_state
        for row, length in enumerate(lengths):
            alone = model(batch["input_ids"][row : row + 1, :length], decoder_input_ids=batch["decoder_input_ids"][row][None])
            close(found.logits[row], alone.logits[0])
            close(hidden[row][mask[row] == 1], alone.encoder_last_hidden_state[0])
            generated = model.generate(batch["input_ids"][row : row + 1, :length], max_new_tokens=5, do_sample=False)
            whole = model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
            assert torch.equal(whole[row, : generated.shape[1]], generated[0])


def test_padding_of_the_decoder_is_masked(model: Any, batch: Batch) -> None:
    source, ids = batch["input_ids"], batch["decoder_input_ids"]
    padded = torch.cat([torch.full((3, 4), 9), ids], 1)
    mask = torch.cat([torch.zeros(3, 4, dtype=torch.long), torch.ones_like(ids)], 1)
    with torch.no_grad():
        expected = model(source, decoder_input_ids=ids).logits
        close(model(source, decoder_input_ids=padded, decoder_attention_mask=mask).logits[:, 4:], expected)
        first = model(source, decoder_input_ids=padded[:, :6], decoder_attention_mask=mask[:, :6], use_cache=True)
        rest = model(
            source,
            decoder_input_ids=padded[:, 6:],
            decoder_attention_mask=mask,
            past_key_values=first.past_key_values,
        )
        close(rest.logits, expected[:, 2:])
        four = mask.bool()[:, None, None, :]
        close(model(source, decoder_input_ids=padded, decoder_attention_mask=four).logits[:, 4:], expected)
        additive = (1.0 - four.float()) * torch.finfo(torch.float32).min
        close(model(source, decoder_input_ids=padded, decoder_attention_mask=additive).logits[:, 4:], expected)


def test_embeddings_can_be_given_in_place_of_ids(model: Any, batch: Batch) -> None:
    embed = model.get_input_embeddings()
    with torch.no_grad():
        expected = model(**batch).logits
        given = {
            "inputs_embeds": embed(batch["input_ids"]),
            "decoder_inputs_embeds": embed(batch["decoder_input_ids"]),
        }
        assert torch.equal(model(**given).logits, expected)
        encoded = model.get_encoder()(batch["input_ids"])
        for outputs in (encoded, encoded.to_tuple()):
            found = model(encoder_outputs=outputs, decoder_input_ids=batch["decoder_input_ids"])
            assert torch.equal(found.logits, expected)
        generated = model.generate(batch["input_ids"], max_new_tokens=4, do_sample=False)
        for main in ({"inputs_embeds": given["inputs_embeds"]}, {"encoder_outputs": encoded}):
            assert torch.equal(model.generate(**main, max_new_tokens=4, do_sample=False), generated)


def test_the_longest_input_is_accepted_and_a_longer_one_refused(model: Any) -> None:
    start = torch.zeros(1, 1, dtype=torch.long)
    assert model(torch.ones(1, LENGTH, dtype=torch.long), decoder_input_ids=start).logits.isfinite().all()
    with pytest.raises(ValueError, match=rf"25 tokens, the model was trained on {LENGTH}"):
        model(torch.ones(1, LENGTH + 1, dtype=torch.long), decoder_input_ids=start)
    empty = torch.zeros(1, 5, dtype=torch.long)
    assert model(empty, attention_mask=empty, decoder_input_ids=start).logits.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"head_mask": torch.ones(2, 4)}, TypeError, "head_mask"),
        ({"decoder_position_ids": torch.zeros(3, 7, dtype=torch.long)}, TypeError, "decoder_position_ids"),
        ({"labls": torch.ones(3, 7, dtype=torch.long)}, TypeError, "labls"),
        ({"attention_mask": torch.ones(3, 8)}, ValueError, r"attention_mask has shape \(3, 8\).*\(3, 9\)"),
        ({"attention_mask": torch.ones(3, 1, 9, 9)}, ValueError, "attention_mask has shape"),
        ({"decoder_attention_mask": torch.ones(3, 9)}, ValueError, r"decoder_attention_mask has shape.*\(3, 7\)"),
        ({"inputs_embeds": torch.ones(3, 9, 64)}, ValueError, "exactly one of input_ids and inputs_embeds"),
        ({"decoder_inputs_embeds": torch.ones(3, 7, 64)}, ValueError, "exactly one of decoder_input_ids"),
        ({"encoder_outputs": (torch.ones(3, 9, 64),)}, ValueError, "encoder_outputs, or input_ids"),
        ({"past_key_values": ()}, ValueError, "past_key_values is a tuple: give transformers.EncoderDecoderCache"),
        ({"output_hidden_states": [0, 1]}, ValueError, r"output_hidden_states is \[0, 1\]"),
        ({"decoder_input_ids": None}, ValueError, "labels"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_argument_that_is_not_honoured_is_refused(
    tied_folder: Path, load: Load, batch: Batch, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load(tied_folder)(**{**batch, **arguments})


def test_attention_kernels_that_have_no_bias_are_refused(tied_folder: Path, load: Load) -> None:
    with pytest.raises((ValueError, ImportError), match=r"[Ff]lash"):
        load(tied_folder, attn_implementation="flash_attention_2")
    with pytest.raises(ValueError, match="flex"):
        load(tied_folder, attn_implementation="flex_attention")


# --- outputs ---


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_attention_weights_are_those_that_were_used(folder: Path, load: Load, batch: Batch, kernel: str) -> None:
    """They sum to 1 over the keys that may be read, and the two implementations of transformers agree."""
    model = load(folder, attn_implementation=kernel)
    mask = torch.ones_like(batch["input_ids"])
    mask[1, 6:] = 0
    with torch.no_grad():
        found = model(**batch, attention_mask=mask, output_attentions=True)
        close(found.logits, load(folder)(**batch, attention_mask=mask).logits)
    attending = [layer for layer in range(2) if model.config.layer_attends(layer)]
    assert [tuple(weights.shape) for weights in found.encoder_attentions] == [(3, 4, 9, 9)] * len(attending)
    assert [tuple(weights.shape) for weights in found.decoder_attentions] == [(3, 4, 7, 7)] * 2
    assert [tuple(weights.shape) for weights in found.cross_attentions] == [(3, 4, 7, 9)] * 2
    for weights in (*found.encoder_attentions, *found.decoder_attentions, *found.cross_attentions):
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert all(float(weights.triu(1).abs().max()) == 0 for weights in found.decoder_attentions)
    assert all(float(weights[1, ..., 6:].abs().max()) == 0 for weights in found.cross_attentions)


def test_hidden_states_begin_with_the_embedding_and_end_with_the_output(model: Any, batch: Batch) -> None:
    with torch.no_grad():
        found = model(**batch, output_hidden_states=True)
        encoder = model.encoder
        assert len(found.encoder_hidden_states) == len(encoder.layers) + 1
        assert len(found.decoder_hidden_states) == 3
        embedded = model.embedding.tokens(batch["input_ids"])
        assert torch.equal(found.encoder_hidden_states[0], embedded if encoder.input is None else encoder.input(embedded, None))
        assert torch.equal(found.encoder_hidden_states[-1], found.encoder_last_hidden_state)
        assert torch.equal(found.decoder_hidden_states[0], model.embedding.tokens(batch["decoder_input_ids"]))
        hidden = found.decoder_hidden_states[-1]
        scale = 64**-0.5 if model.config.scale_decoder_outputs else 1.0
        close(model.head.projection(hidden * scale), found.logits)
        assert all(state.shape == (3, 9, 64) for state in found.encoder_hidden_states)


def test_gradients_can_be_kept_at_hidden_states_and_attentions(tied_folder: Path, load: Load, batch: Batch) -> None:
    model = load(tied_folder)
    found = model(**batch, output_hidden_states=True, output_attentions=True)
    kept = [
        *found.encoder_hidden_states,
        *found.decoder_hidden_states,
        *found.encoder_attentions,
        *found.decoder_attentions,
        *found.cross_attentions,
    ]
    for tensor in kept:
        tensor.retain_grad()
    found.logits.square().sum().backward()
    assert all(tensor.grad is not None and float(tensor.grad.abs().max()) > 0 for tensor in kept)


def test_tuples_have_the_fields_of_the_dictionary(folder: Path, load: Load, batch: Batch) -> None:
    for auto in ("AutoModelForSeq2SeqLM", "AutoModel"):
        model = load(folder, auto)
        with torch.no_grad():
            named = model(**batch, output_hidden_states=True, output_attentions=True, use_cache=False)
            plain = model(**batch, output_hidden_states=True, output_attentions=True, use_cache=False, return_dict=False)
        assert len(plain) == len(named.to_tuple()) == len(named)
        for found, expected in zip(plain, named.to_tuple(), strict=True):
            for one, other in zip(*((x,) if isinstance(x, Tensor) else x for x in (found, expected)), strict=True):
                assert torch.equal(one, other)
    model.config.output_hidden_states = True
    assert model(**batch).decoder_hidden_states is not None


def test_half_precision_computes_nearly_the_same(folder: Path, load: Load, batch: Batch) -> None:
    model = load(folder, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    with torch.no_grad():
        found, expected = model(**batch).logits, load(folder)(**batch).logits
    assert found.dtype == torch.float32
    assert float((found - expected).norm() / expected.norm()) < 0.05
