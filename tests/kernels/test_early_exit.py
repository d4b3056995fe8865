"""The kernels that pick the tiles that continue, run by their host twin, against NumPy."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from edgelung.engines.exit_rule import ExitRule
from edgelung.kernels import build
from edgelung.kernels.early_exit import continue_on_host, launches
from edgelung.kernels.resize import HostTwin

RULE = ExitRule(confidence=0.9, known_up_to=1.5)


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> HostTwin:
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile the host twin")
    folder: Path = tmp_path_factory.mktemp("twin")
    return HostTwin(build.build_host(folder / "twin.so"))


def batch(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, scores and tokens, some exactly at a threshold, some not a number."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet((0.3, 0.3, 0.3), count).astype(np.float32)
    scores = rng.uniform(0, 2, count).astype(np.float32)
    probabilities[::7, 0] = RULE.confidence
    scores[::5] = RULE.known_up_to
    probabilities[3::11] = (0.95, np.nan, 0.05)
    scores[4::13] = np.nan
    return probabilities, scores, rng.normal(size=(count, 18, 12)).astype(np.float32)


@pytest.mark.parametrize("count", [1, 2, 31, 128, 300])
def test_the_tiles_that_continue_are_those_of_the_rule(twin: HostTwin, count: int) -> None:
    probabilities, scores, tokens = batch(count)
    continues = ~RULE.leaves(probabilities, scores)
    positions, rest = continue_on_host(
        twin, probabilities, scores, tokens, RULE.confidence, RULE.known_up_to
    )
    np.testing.assert_array_equal(positions >= 0, continues)
    np.testing.assert_array_equal(positions[continues], np.arange(continues.sum()))
    np.testing.assert_array_equal(rest, tokens[continues])


@pytest.mark.parametrize("confidence", [0.0, 2.0])
def test_all_or_none_may_continue(twin: HostTwin, confidence: float) -> None:
    probabilities, scores, tokens = (np.nan_to_num(values) for values in batch(9))
    positions, rest = continue_on_host(twin, probabilities, scores, tokens, confidence, 3.0)
    if confidence > 1:
        np.testing.assert_array_equal(rest, tokens)
    else:
        assert positions.tolist() == [-1] * 9
        assert not len(rest)


def test_a_tile_is_decided_by_its_own_numbers(twin: HostTwin) -> None:
    probabilities, scores, tokens = batch(40)
    thresholds = (RULE.confidence, RULE.known_up_to)
    together, _ = continue_on_host(twin, probabilities, scores, tokens, *thresholds)
    for i in range(40):
        part = slice(i, i + 1)
        alone, _ = continue_on_host(
            twin, probabilities[part], scores[part], tokens[part], *thresholds
        )
        assert (alone[0] >= 0) == (together[i] >= 0)


@pytest.mark.parametrize(("count", "row_bytes"), [(0, 4), (70_000, 4), (3, 6)])
def test_a_batch_that_no_launch_fits_is_refused(count: int, row_bytes: int) -> None:
    addresses = dict.fromkeys(("probs", "scores", "tokens", "positions", "out"), 0)
    thresholds = {"confidence": 0.9, "known_up_to": 1.0}
    with pytest.raises(ValueError, match=r"expected a multiple of 4|a batch holds 1 to 65535"):
        launches(**addresses, count=count, classes=3, row_bytes=row_bytes, **thresholds)
