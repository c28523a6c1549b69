"""Repeated and subsampled sources, compared with counts of the documents in the finished folder."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_prep.config import PrepareConfig, SourceMixtureConfig
from data_prep.dataset.indexed_dataset import TokenFile
from data_prep.dataset.manifest import SourceCounts, load_manifest, verify
from data_prep.files import sha256_file
from data_prep.filters import pile
from data_prep.prepare import prepare
from data_prep.tokenization.tokenizer import load_tokenizer
from data_prep.units.job import PrepareError
from data_prep.units.source_mixture import epochs_by_source


def _write(path: Path, source: str, num: int) -> None:
    records = [{"text": f"{source} number {i} " + "word " * (i % 7), "meta": {"pile_set_name": source}} for i in range(num)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(scope="module")
def components(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("components")
    for source, num in (("ArXiv", 300), ("Pile-CC", 200), ("Ours", 100)):
        _write(folder / f"{source}.jsonl", source, num)
    return folder


def _config(components: Path, output: Path, tokenizer_file: Path, **kwargs: object) -> PrepareConfig:
    fields = {"input": [f"{components}/*"], "output": output, "tokenizer": tokenizer_file, "val_share": 0.1}
    return PrepareConfig.model_validate({**fields, **kwargs})


def _texts(folder: Path, split: str) -> list[str]:
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    file = TokenFile(folder / split)
    return [tokenizer.decode(file[i].tolist()[:-1]) for i in range(len(file))]


@pytest.mark.usefixtures("ray")
def test_epochs_are_passes_in_order_and_every_record_is_accounted_for(
    components: Path, tokenizer_file: Path, tmp_path: Path
) -> None:
    prepare(_config(components, tmp_path / "once", tokenizer_file))
    once = _texts(tmp_path / "once", "train")
    mixture = {"epochs": {"ArXiv": 2.5, "Pile-CC": 0.25}}
    manifest = prepare(_config(components, tmp_path / "mixed", tokenizer_file, mixture=mixture))
    mixed = _texts(tmp_path / "mixed", "train")
    number = Counter(mixed)
    by_source = {source: [text for text in once if text.startswith(source)] for source in ("ArXiv", "Pile-CC", "Ours")}
    assert {number[text] for text in by_source["ArXiv"]} == {2, 3}
    assert {number[text] for text in by_source["Pile-CC"]} == {0, 1}
    assert {number[text] for text in by_source["Ours"]} == {1}
    for source, epochs in (("ArXiv", 2.5), ("Pile-CC", 0.25)):
        total = sum(number[text] for text in by_source[source])
        assert total == pytest.approx(epochs * len(by_source[source]), abs=4 * len(by_source[source]) ** 0.5 / 2)
    # One pass after another, each in the order of the corpus.
    passes = [[text for text in once if number[text] > i] for i in range(3)]
    assert mixed == [text for one in passes for text in one]
    assert _texts(tmp_path / "mixed", "val") == _texts(tmp_path / "once", "val")
    kept = sum(record.total.documents for record in manifest.splits.values())
    assert manifest.records == 600 == kept - manifest.repeated + manifest.dropped["below one epoch"]
    assert manifest.epochs == {"ArXiv": 2.5, "Pile-CC": 0.25, "Ours": 1.0}
    names = sorted(manifest.splits["train"].sources)
    source_of = [names[place] for place in np.load(tmp_path / "mixed" / "train.sources.npy").tolist()]
    assert source_of == [text.split(" number")[0] for text in mixed]
    assert verify(tmp_path / "mixed") == []


@pytest.mark.usefixtures("ray")
def test_a_mixture_changes_only_with_the_seed(components: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    def made(name: str, **kwargs: object) -> str:
        fields = {"mixture": {"epochs": {"ArXiv": 1.5}}, "deduplicate": True, "val": [f"{components}/Ours*"]}
        fields |= {"input": [f"{components}/[AP]*"]}
        prepare(_config(components, tmp_path / name, tokenizer_file, **fields, **kwargs))
        return sha256_file(tmp_path / name / "train.bin")

    assert made("a", workers=2, unit_bytes=2000) == made("b", workers=1) != made("c", seed=1)


@pytest.mark.usefixtures("ray")
def test_a_missing_weight_is_named_and_can_be_given_without_tokenizing_again(
    components: Path, tokenizer_file: Path, tmp_path: Path
) -> None:
    weights = {"ArXiv": 3.0, "Pile-CC": 1.0}
    with pytest.raises(PrepareError, match="no weight for 'Ours'"):
        prepare(_config(components, tmp_path / "data", tokenizer_file, mixture={"weights": weights}))
    manifest = prepare(_config(components, tmp_path / "data", tokenizer_file, mixture={"weights": {**weights, "Ours": 1.0}}))
    assert manifest.retokenized_units == 0
    counts = manifest.splits["train"].sources
    total = sum(count.bytes for count in counts.values())
    shares = {source: count.bytes / total for source, count in counts.items()}
    assert shares == pytest.approx({"ArXiv": 0.6, "Pile-CC": 0.2, "Ours": 0.2}, abs=0.04)


def test_weights_become_shares_of_bytes_and_nothing_is_repeated_too_often() -> None:
    sizes = {"a": 100, "b": 300, "c": 50}
    sources = {source: SourceCounts(documents=1, tokens=1, bytes=size) for source, size in sizes.items()}
    for max_epochs in (4.0, 100.0):
        weights = {"a": 1.0, "b": 1.0, "c": 2.0}
        epochs = epochs_by_source(SourceMixtureConfig(weights=weights, max_epochs=max_epochs), sources)
        read = {source: epochs[source] * size for source, size in sizes.items()}
        assert {source: size / sum(read.values()) for source, size in read.items()} == pytest.approx(
            {source: weight / 4 for source, weight in weights.items()}
        )
        assert max(epochs.values()) == pytest.approx(min(max_epochs, 12.0))


def test_the_official_table_equals_the_published_table() -> None:
    # Gao et al. 2020, table 1: 22 components; 825.18 GiB raw become 1254.20 GiB after epochs.
    assert len(pile.COMPONENTS) == 22
    assert sum(pile.WEIGHTS.values()) == pytest.approx(100, abs=0.05)
    assert sum(component.available for component in pile.COMPONENTS.values()) == 17


@pytest.mark.parametrize("mixture", [{"weights": "pile"}, {"epochs": "pile"}])
def test_the_official_mixture_is_refused_on_mixed_files(mixture: dict[str, str], tokenizer_file: Path, tmp_path: Path) -> None:
    lines = [
        json.dumps({"text": f"text {i}", "meta": {"pile_set_name": source}})
        for i, source in enumerate(["Pile-CC", "ArXiv", "Github"] * 9)
    ]
    (tmp_path / "00.jsonl").write_text("\n".join(lines))
    config = PrepareConfig.model_validate(
        {"input": [f"{tmp_path}/00.jsonl"], "output": tmp_path / "out", "tokenizer": tokenizer_file, "mixture": mixture}
    )
    with pytest.raises(PrepareError, match=r"00\.jsonl: its first documents come from 3 components .* mixed by"):
        prepare(config)


@pytest.mark.usefixtures("ray")
def test_unknown_sources_are_read_once_under_their_own_name(components: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    manifest = prepare(_config(components, tmp_path / "data", tokenizer_file, mixture={"epochs": "pile"}))
    assert manifest.epochs == {"ArXiv": 2.0, "Pile-CC": 1.0, "Ours": 1.0}
    assert load_manifest(tmp_path / "data").splits["train"].sources["Ours"].documents > 80


@pytest.mark.parametrize("fields", [{}, {"epochs": {"a": 1.0}, "weights": {"a": 1.0}}, {"weights": {"a": 0}}])
def test_a_mixture_has_one_table_of_positive_numbers(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"epochs or weights|greater than 0"):
        SourceMixtureConfig.model_validate(fields)


@pytest.mark.usefixtures("ray")
def test_source_names_that_no_document_has_are_reported(components: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    fields = {"exclude_sources": ["Arxiv", "Books3"], "mixture": {"epochs": {"Pile-C": 2, "Ours": 2}}}
    manifest = prepare(_config(components, tmp_path / "data", tokenizer_file, **fields))
    assert manifest.notes == [
        "exclude_sources: no document has source 'Arxiv'; did you mean 'ArXiv'?",
        "mixture.epochs: no document has source 'Pile-C'; did you mean 'Pile-CC'?",
    ]
    with pytest.raises(PrepareError, match=r"train split; relax the settings that left documents out \(300 source ArXiv, 200"):
        prepare(_config(components, tmp_path / "none", tokenizer_file, include_sources=["Nobody"]))
