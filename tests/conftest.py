"""For every floor: where real test data lies, how Hypothesis runs, one seed for every test, and a small dataset."""

import os
import sys
from pathlib import Path

import orjson
import pytest
from hypothesis import settings

# First examples import Megatron or fill caches, and shared machines stall: a time limit on each would only flake.
settings.register_profile("fnet-t5", deadline=None)
settings.load_profile("fnet-t5")

_REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real test data, from FNET_T5_TEST_DATA or `../shared/data`; skips where it is absent."""
    folder = Path(os.environ.get("FNET_T5_TEST_DATA", _REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real test data in {folder}; set FNET_T5_TEST_DATA to the folder that holds minipile/")
    return folder


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared rows of 24 tokens (16 + 8) from the documentation that comes with Python."""
    from pydoc_data.topics import topics

    from data_prep.config import PrepareConfig
    from data_prep.prepare import prepare

    folder = tmp_path_factory.mktemp("corpus")
    names = sorted(topics)
    for split, chosen in (("train", names[:-12]), ("val", names[-12:])):
        sources = ("Python documentation", "Python topics")  # by turns
        lines = [
            orjson.dumps({"text": topics[name], "meta": {"pile_set_name": sources[number % 2]}})
            for number, name in enumerate(chosen)
        ]
        (folder / f"{split}.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    prepare(
        PrepareConfig(
            input=[str(folder / "train.jsonl")],
            val=[str(folder / "val.jsonl")],
            output=folder / "data",
            vocab_size=600,
            workers=1,
            packing={"lengths": [24]},
        )
    )
    return folder / "data"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """No test's numbers depend on the tests before it."""
    if "torch" in sys.modules:  # tests of data preparation never import it
        sys.modules["torch"].manual_seed(0)
