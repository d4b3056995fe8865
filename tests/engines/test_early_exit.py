"""A model with an early exit: each tile decided by itself, the same in any batch."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from engine_helpers import noise

from edgelung.artifacts.bundle import Bundle, Variant, open_bundle
from edgelung.core.errors import EdgelungError
from edgelung.core.precision import Precision
from edgelung.engines import choose
from edgelung.engines.base import Engine, EngineUnavailableError, Floats, GraphBytes, Output, Tiles
from edgelung.engines.choose import load_variant, open_engine
from edgelung.engines.early_exit import EarlyExitEngine, ExitPlan, load_model
from edgelung.engines.exit_rule import ExitRule
from edgelung.engines.onnxruntime import OnnxRuntimeEngine
from edgelung.engines.openvino import OpenVinoEngine
from edgelung.tiles.reader import read_tile

EARLY = Precision.INT8_EARLY_EXIT
RULE = ExitRule(confidence=0.8, known_up_to=1.0)
INT8_ENGINES = [OnnxRuntimeEngine, pytest.param(OpenVinoEngine, marks=pytest.mark.vnni)]


class Stage:
    """A stage that answers with fixed numbers, and remembers what it was given."""

    name, device, concurrency, float_type = "stand-in", "CPU", 1, "fp32"

    def __init__(self, *outputs: object) -> None:
        self.outputs = [np.array(values, np.float32) for values in outputs]
        self.given: list[np.ndarray] = []
        self.closed = False

    def run(self, batch: Tiles | Floats) -> list[Floats]:
        self.given.append(batch)
        return [values[: len(batch)].copy() for values in self.outputs]

    def infer(self, tiles: Tiles) -> Output:
        pytest.fail("a stage is run; only a whole model infers")

    def close(self) -> None:
        self.closed = True


def test_sure_tiles_leave_and_all_others_continue_in_their_order() -> None:
    probabilities = [[0.9, 0.1], [0.5, 0.5], [0.95, 0.05], [np.nan, 0.9], [0.8, 0.2]]
    scores = [0.5, 0.5, 1.5, 0.5, 1.0]  # the third is sure, but unlike the training tiles
    first = Stage(probabilities, scores, np.arange(5).reshape(5, 1, 1))
    second = Stage([[0.3, 0.7], [0.2, 0.8], [0.1, 0.9]], [7, 8, 9])
    output = EarlyExitEngine(first, second, RULE).infer(noise(5))
    assert output.stage.tolist() == [1, 2, 2, 2, 1]
    assert second.given[0].ravel().tolist() == [1, 2, 3]
    np.testing.assert_allclose(output.probabilities[:, 0], [0.9, 0.3, 0.2, 0.1, 0.8])
    np.testing.assert_allclose(output.ood, [0.5, 7, 8, 9, 1.0])


def test_the_second_stage_rests_if_all_leave_and_gets_the_tokens_uncopied_if_none_does() -> None:
    second = Stage([[0.5, 0.5]] * 2, [3, 3])
    tokens = np.zeros((2, 1, 1))
    EarlyExitEngine(Stage([[0.9, 0.1]] * 2, [0, 0], tokens), second, RULE).infer(noise(2))
    assert not second.given
    first = Stage([[0.6, 0.4]] * 2, [0, 0], tokens)
    first.run = lambda batch: first.outputs  # its own array, to be recognised
    EarlyExitEngine(first, second, RULE).infer(noise(2))
    assert second.given[0] is first.outputs[2]


def test_closing_closes_both() -> None:
    first, second = Stage(), Stage()
    EarlyExitEngine(first, second, RULE).close()
    assert first.closed
    assert second.closed


def test_an_engine_that_runs_no_stages_is_unavailable_and_closed() -> None:
    closed = []
    engine = SimpleNamespace(name="tensorrt", device="GPU", close=lambda: closed.append(True))
    with pytest.raises(EngineUnavailableError, match="tensorrt runs no model with an early exit"):
        load_model(
            lambda *words, **options: engine,
            GraphBytes(b""),
            ExitPlan(RULE, GraphBytes(b"")),
            1,
        )
    assert closed


@pytest.fixture
def early(early_exit_bundle: Path) -> Bundle:
    return open_bundle(early_exit_bundle)


@pytest.fixture
def some(early: Bundle, tiles: Path) -> np.ndarray:
    """70 real tiles of the run, (70, 64, 64, 3)."""
    paths = sorted(tiles.glob("*/*.jpeg"))[:70]
    return np.stack([read_tile(path, early.reader) for path in paths])


def loaded(factory: type, variant: Variant) -> Engine:
    return load_variant(factory, variant, 1)


@pytest.mark.parametrize("factory", INT8_ENGINES)
def test_a_tile_has_the_same_answer_in_any_batch(
    early: Bundle, some: np.ndarray, factory: type
) -> None:
    """Batches of 1, 7, 16 and 64."""
    engine = loaded(factory, early.variants[EARLY])
    alone = [engine.infer(some[i : i + 1]) for i in range(len(some))]
    stages = np.concatenate([output.stage for output in alone])
    assert set(stages.tolist()) == {1, 2}
    for size in (7, 16, 64):
        parts = [engine.infer(some[i : i + size]) for i in range(0, len(some), size)]
        for column, tolerance in ((0, 2e-6), (1, 2e-5), (2, 0)):
            found, expected = (np.concatenate([o[column] for o in x]) for x in (parts, alone))
            np.testing.assert_allclose(found, expected, atol=tolerance)


@pytest.mark.parametrize("factory", INT8_ENGINES)
def test_a_tile_that_continues_has_the_answer_of_int8(
    early: Bundle, some: np.ndarray, factory: type
) -> None:
    output = loaded(factory, early.variants[EARLY]).infer(some)
    whole = loaded(factory, early.variants[Precision.INT8]).infer(some)
    rest = output.stage == 2
    # The runtimes fuse operators at the cut otherwise than within one graph.
    np.testing.assert_allclose(output.probabilities[rest], whole.probabilities[rest], atol=5e-3)
    np.testing.assert_allclose(output.ood[rest], whole.ood[rest], rtol=0.02)


def test_auto_takes_what_passed_its_gate(early: Bundle) -> None:
    chosen = open_engine(early, threads=1)
    assert chosen.variant.precision is EARLY
    assert isinstance(chosen.engine, EarlyExitEngine)


def test_a_wrong_second_graph_is_noticed_on_the_golden_tiles(
    early: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = OnnxRuntimeEngine.run

    def wrong(self: OnnxRuntimeEngine, batch: np.ndarray) -> list[np.ndarray]:
        outputs = run(self, batch)
        return outputs if batch.dtype == np.uint8 else [1 - outputs[0], outputs[1]]

    monkeypatch.setattr(OnnxRuntimeEngine, "run", wrong)
    monkeypatch.setattr(choose, "CPU_ENGINES", ("onnxruntime",))
    with pytest.raises(EdgelungError, match="golden tiles"):
        open_engine(early, precision=EARLY, threads=1)


def test_the_hand_over_is_checked_before_a_runtime_sees_it(
    early_exit_bundle: Path, tmp_path: Path
) -> None:
    """Graphs of other tokens than bundle.json names are refused."""
    import shutil

    from edgelung.artifacts.bundle import MANIFEST, write_bundle
    from edgelung.artifacts.manifest import BundleManifest
    from edgelung.core.typed_json import convert

    folder = Path(shutil.copytree(early_exit_bundle, tmp_path / "bundle"))
    content = json.loads((folder / MANIFEST).read_text())
    content["variants"][EARLY]["early_exit"]["width"] += 1
    for key in ("schema_version", "files"):
        del content[key]
    write_bundle(folder, convert(content, BundleManifest))
    with pytest.raises(EdgelungError, match=r"tokens float32 \[N, 18, 192\]; expected .*193"):
        open_bundle(folder)
