"""What `Classifier` does with bytes and with short lists: with the starter, so nothing trains."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import edgelung
from edgelung.artifacts.bundle import Bundle, open_bundle, starter_bundle
from edgelung.classifier import Classifier
from edgelung.core.precision import Precision
from edgelung.engines.base import Output, Tiles
from edgelung.engines.choose import Chosen
from edgelung.inference.record import LabelRule
from edgelung.tiles import files
from edgelung.tiles.reader import TileError, decode_file

TISSUE = Path(__file__).parents[1] / "examples" / "tissue"


@pytest.fixture(scope="module")
def starter() -> Bundle:
    return open_bundle(starter_bundle())


class Recorder:
    """An engine for the CPU with several threads, which records the sizes of its batches."""

    name, device, float_type, concurrency = "onnxruntime", "CPU", "fp32", 4

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self._lock = threading.Lock()

    def infer(self, tiles: Tiles) -> Output:
        with self._lock:
            self.sizes.append(len(tiles))
        return Output(np.full((len(tiles), 3), 1 / 3, np.float32))

    def close(self) -> None:
        pass


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def classifier(starter: Bundle, recorder: Recorder) -> Iterator[Classifier]:
    chosen = Chosen(recorder, starter.variants[Precision.INT8], "", 0.0)
    with Classifier(starter, chosen, LabelRule()) as made:
        yield made


def test_bytes_give_what_their_file_gives() -> None:
    paths = sorted(TISSUE.glob("*.jpeg"))
    with edgelung.load(engine="onnxruntime", threads=1) as classifier:
        of_files = list(classifier.classify(paths))
        of_bytes = list(classifier.classify([path.read_bytes() for path in paths]))
    assert {prediction.status for prediction in of_files} == {"ok", "truncated"}
    for one, other in zip(of_files, of_bytes, strict=True):
        assert other.path == ""
        assert (one.status, one.label, one.error) == (other.status, other.label, other.error)
        assert (one.probabilities, one.ood) == (other.probabilities, other.ood)


def test_bytes_that_are_no_image_have_the_status_of_such_a_file(classifier: Classifier) -> None:
    found = classifier.classify([b"", b"no image", b"\xff\xd8\xff\xe0"])
    assert [prediction.status for prediction in found] == ["empty", "unsupported", "truncated"]


def test_one_image_in_bytes_is_no_list_of_images(classifier: Classifier) -> None:
    with pytest.raises(TypeError, match="found one bytes"):
        list(classifier.classify(b"image"))  # type: ignore[arg-type]


def test_too_many_bytes_are_refused(starter: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 10)
    with pytest.raises(TileError, match="11 bytes; the limit is 10") as caught:
        decode_file(b"\xff\xd8\xff" + bytes(8), starter.reader)
    assert caught.value.status == "too-large"


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [1]), (6, [2, 2, 2]), (64, [16] * 4), (100, [16] * 6 + [4])]
)
def test_a_short_list_is_spread_over_the_threads_of_the_engine(
    count: int, sizes: list[int], classifier: Classifier, recorder: Recorder
) -> None:
    tile = np.zeros((8, 8, 3), np.uint8)
    assert len(list(classifier.classify([tile] * count))) == count
    assert sorted(recorder.sizes) == sorted(sizes)


def test_images_without_a_length_come_in_whole_batches(
    classifier: Classifier, recorder: Recorder
) -> None:
    tiles = (np.zeros((8, 8, 3), np.uint8) for _ in range(20))
    assert len(list(classifier.classify(tiles))) == 20
    assert sorted(recorder.sizes) == [4, 16]
