"""The resize kernels, run by their host twin, against the CPU tile reader: no pixel may differ."""

import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgelung.kernels import build, early_exit
from edgelung.kernels.resize import KERNELS, HostTwin, Plan, max_taps
from edgelung.tiles import reader
from edgelung.tiles.reader import ReaderSpec, read_pixels, read_tile, resize, resize_by_pillow

SIZE = 224
EXTREMES = [
    (1, 1),
    (1, 2000),
    (1500, 1),
    (2, 3),
    (223, 224),
    (224, 224),
    (225, 223),
    (224, 1999),
    (1500, 2000),
    (5, 1999),
    (1499, 7),
    (448, 448),
    (288, 288),
    (447, 449),
]


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> HostTwin:
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile the host twin")
    return HostTwin(build.build_host(tmp_path_factory.mktemp("twin") / "twin.so"))


def by_reader(tile: np.ndarray, size: int) -> np.ndarray:
    return resize_by_pillow(Image.fromarray(tile), size)


def random_tiles(count: int, seed: int) -> Iterator[np.ndarray]:
    """Noise, flat colour and steps (where rounding is decided) of sizes spread over magnitudes."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        if i < len(EXTREMES):
            height, width = EXTREMES[i]
        else:
            height = int(np.exp(rng.uniform(0, np.log(1501))))
            width = int(np.exp(rng.uniform(0, np.log(2001))))
        kind = i % 4
        if kind == 0:
            yield np.full((height, width, 3), rng.integers(0, 256, 3), np.uint8)
        elif kind == 1:
            yield (rng.random((height, width, 3)) < 0.5).astype(np.uint8) * np.uint8(255)
        else:
            yield rng.integers(0, 256, (height, width, 3), np.uint8)


def differing(twin: HostTwin, count: int, seed: int, batch: int = 7) -> int:
    """Differing values over `count` random tiles, resized in batches of differing sizes."""
    rng = np.random.default_rng(seed)
    wrong, held = 0, []
    for i, tile in enumerate(random_tiles(count, seed)):
        held.append(tile)
        if len(held) == batch or i == count - 1:
            size = SIZE if rng.random() < 0.8 else int(rng.integers(16, 400))
            found = twin.resize(held, size)
            wrong += sum(
                int((f != by_reader(t, size)).sum()) for f, t in zip(found, held, strict=True)
            )
            held = []
    return wrong


def test_no_pixel_differs_over_random_tiles(twin: HostTwin) -> None:
    assert differing(twin, 300, seed=0) == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_pixel_differs_over_ten_thousand_tiles(twin: HostTwin) -> None:
    assert differing(twin, 10_000, seed=1) == 0


@pytest.mark.data
def test_no_pixel_differs_on_real_tiles(twin: HostTwin, real_tiles: Path) -> None:
    """All tiles of 768 px, scaled while decoding as the reader does it."""
    spec = ReaderSpec()
    paths = sorted((real_tiles / "lc25000_768").rglob("*.jp*g"))
    assert len(paths) == 50
    found = twin.resize([read_pixels(path, spec) for path in paths], spec.size)
    expected = np.stack([by_reader(read_pixels(path, spec), spec.size) for path in paths])
    np.testing.assert_array_equal(np.stack([read_tile(path, spec) for path in paths]), expected)
    assert read_pixels(paths[0], spec).shape != expected[0].shape, "nothing was resized"
    assert int((found != expected).sum()) == 0


@pytest.fixture
def compiled() -> None:
    if reader.resize_rgb is None:
        flags = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
        if "avx2" in flags and shutil.which("g++"):
            pytest.fail("g++ is here, and the resize was not compiled: pip install -e . says why")
        pytest.skip("built without the compiled resize")


def test_the_compiled_resize_gives_pillows_pixels(compiled: None) -> None:
    rng = np.random.default_rng(2)
    for tile in random_tiles(400, seed=2):
        size = SIZE if rng.random() < 0.7 else int(rng.integers(16, 400))
        np.testing.assert_array_equal(resize(tile, size), by_reader(tile, size))


def test_the_compiled_resize_takes_what_numpy_and_pillow_hold(compiled: None) -> None:
    tile = np.random.default_rng(3).integers(0, 256, (300, 401, 3), np.uint8)
    expected = by_reader(tile, SIZE)
    mirrored = np.ascontiguousarray(tile[:, ::-1])[:, ::-1]  # the same pixels, backwards in memory
    frozen = tile.copy()
    frozen.flags.writeable = False
    for source in (mirrored, frozen, Image.fromarray(tile)):
        np.testing.assert_array_equal(resize(source, SIZE), expected)


def test_many_threads_resize_at_once(compiled: None) -> None:
    tiles = list(random_tiles(40, seed=4))
    expected = [by_reader(tile, SIZE) for tile in tiles]
    with ThreadPoolExecutor(8) as pool:
        for found, right in zip(
            pool.map(lambda t: resize(t, SIZE), tiles * 5), expected * 5, strict=True
        ):
            np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize(
    ("height", "width", "size"), [(4, 7, 16), (5, 6, 16), (4, 6, 17), (0, 6, 16), (4, 6, -16)]
)
def test_the_compiled_resize_never_leaves_its_buffers(
    compiled: None, height: int, width: int, size: int
) -> None:
    pixels, out = np.zeros((4, 6, 3), np.uint8), np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match="do not fit"):
        reader.resize_rgb(pixels, height, width, out, size)
    out.flags.writeable = False
    with pytest.raises((BufferError, TypeError, ValueError)):
        reader.resize_rgb(pixels, 4, 6, out, 16)


def test_the_largest_window_fits_its_table(twin: HostTwin) -> None:
    for size in (1, 16, 224, 4096):
        for length in (1, 2, 223, 224, 225, 448, 449, 1999, 10_000, 100_000_000):
            assert max_taps(length, size) == twin.max_taps(length, size)


def test_a_plan_refuses_what_it_was_not_made_for() -> None:
    plan = Plan([(4, 6)], 16)
    block = np.zeros(plan.upload_bytes, np.uint8)
    for wrong in (np.zeros((6, 4, 3), np.uint8), np.zeros((4, 6, 3), np.float32)):
        with pytest.raises(ValueError, match="planned"):
            plan.fill(block, [wrong], 0, 0)
    for shapes in ([], [(0, 4)], [(1, 1)] * 65_536):
        with pytest.raises(ValueError, match=r"tiles?"):
            Plan(shapes, 16)


def test_tall_tiles_fit_the_grid() -> None:
    """CUDA's grid ends at 65,535 in its second and third dimension."""
    plan = Plan([(3_000_000, 1), (1, 3_000_000)], 224)
    for _, grid, block, _ in plan.launches(0, 0):
        assert max(grid[1:]) <= 65_535
        assert np.prod(block) <= 1024


def test_blocks_do_not_overlap() -> None:
    plan = Plan([(3, 5), (700, 2), (3, 5)], 24)
    spans = [
        (at, at + h * w * 3) for at, (h, w) in zip(plan._pixel_offsets, plan.shapes, strict=True)
    ]
    assert spans[-1][1] <= plan.upload_bytes
    for (_, end), (start, _) in pairwise(spans):
        assert end <= start
    assert all(start % 256 == 0 for start, _ in spans)
    assert plan._intermediate_offsets[-1] + 3 * 24 * 3 <= plan.scratch_bytes


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The kernels compiled from nothing."""
    if build.find_nvcc() is None:
        pytest.skip("no nvcc to compile the kernels")
    folder = tmp_path_factory.mktemp("kernels")
    for name in build.SOURCES:
        shutil.copy(build.HERE / name, folder / name)
    record = build.build(folder)
    assert record
    return {"folder": folder, **record}


def test_machine_code_for_every_architecture(built: dict) -> None:
    kernels = {(k["architecture"], k["name"]) for k in built["kernels"]}
    names = (*KERNELS, *early_exit.KERNELS)
    expected = {f"sm_{sm}" for sm in (75, 80, 86, 89, 90, 100, 120)}
    assert kernels == {(sm, name) for sm in expected for name in names}
    assert all(k["spilled_bytes"] == 0 and 0 < k["registers"] <= 64 for k in built["kernels"])
    text = build.describe(built)
    assert text.count("registers") == len(kernels)
    assert built["bytes"] < 1_000_000


def test_a_changed_source_or_binary_is_built_again(built: dict, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(built["folder"], tmp_path / "kernels"))
    assert build.read_record(folder)
    with (folder / "resize.h").open("a") as file:
        file.write("// changed\n")
    assert build.read_record(folder) is None
    shutil.copy(build.HERE / "resize.h", folder / "resize.h")
    assert build.read_record(folder)
    (folder / build.BINARY).write_bytes(b"damaged")
    assert build.read_record(folder) is None


def test_compilers_words_reach_the_builder(tmp_path: Path) -> None:
    if build.find_nvcc() is None:
        pytest.skip("no nvcc")
    for name in build.SOURCES:
        shutil.copy(build.HERE / name, tmp_path / name)
    (tmp_path / "resize.cu").write_text("not c++")
    with pytest.raises(RuntimeError, match="does not compile"):
        build.build(tmp_path)
    assert build.read_record(tmp_path) is None
    assert not list(tmp_path.glob(".resize*"))
