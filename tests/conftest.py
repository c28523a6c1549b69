"""For all tests: the folder of real test data, the settings of Hypothesis, one seed for every test, and a small dataset."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from tests.helpers.datasets import write_python_topics

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
    """Rows of 24 tokens (16 + 8) from the documentation that comes with Python."""
    return write_python_topics(tmp_path_factory.mktemp("corpus") / "data")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """No test's numbers depend on the tests before it."""
    if "torch" in sys.modules:  # tests of data preparation never import it
        sys.modules["torch"].manual_seed(0)
