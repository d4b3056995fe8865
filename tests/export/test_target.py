"""`export --target-…`: which variant is chosen, what the bundle says, what `auto` then takes."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from msgspec import UNSET

from edgelung.artifacts.bundle import MANIFEST, open_bundle, write_bundle
from edgelung.artifacts.manifest import BundleManifest, Target, VariantSpeed
from edgelung.artifacts.trust import OWN_WORK
from edgelung.cli.target import goal_of
from edgelung.core.precision import Precision
from edgelung.core.typed_json import convert, plain
from edgelung.engines.choose import open_engine
from edgelung.engines.names import EngineName
from edgelung.export.target import Goal, latency_ms, select

SPEEDS = {
    "fp32": VariantSpeed(engine="openvino", tiles_per_second=60.0, latency_ms=16.0),
    "int8": VariantSpeed(engine="openvino", tiles_per_second=180.0, latency_ms=6.0),
    "int8-early-exit": VariantSpeed(engine="openvino", tiles_per_second=380.0, latency_ms=7.0),
}
AGREEMENT = {"fp32": 1.0, "int8": 0.999, "int8-early-exit": 0.996}


@pytest.mark.parametrize(
    ("goal", "variant"),
    [
        (Goal(latency_ms=20), "fp32"),
        (Goal(latency_ms=16.0), "fp32"),
        (Goal(latency_ms=10), "int8"),
        (Goal(tiles_per_second=100), "int8"),
        (Goal(tiles_per_second=200), "int8-early-exit"),
        (Goal(latency_ms=10, tiles_per_second=200), "int8-early-exit"),
    ],
)
def test_the_variant_nearest_to_full_precision_that_reaches_the_target(
    goal: Goal, variant: str
) -> None:
    target = select(goal, SPEEDS, AGREEMENT)
    assert (target.variant, target.reached) == (variant, True)
    assert (target.latency_ms, target.tiles_per_second) == (goal.latency_ms, goal.tiles_per_second)


def test_of_variants_with_the_same_labels_the_fastest_is_chosen() -> None:
    same = dict.fromkeys(SPEEDS, 1.0)
    assert select(Goal(latency_ms=20), SPEEDS, same).variant == "int8"
    by_rate = {
        name: VariantSpeed(engine="openvino", tiles_per_second=s.tiles_per_second)
        for name, s in SPEEDS.items()
    }
    assert select(Goal(tiles_per_second=1), by_rate, same).variant == "int8-early-exit"


def test_without_options_there_is_no_goal() -> None:
    assert goal_of(1.0, None) == Goal(latency_ms=1.0)
    assert goal_of(None, None) is None


def test_a_target_that_none_reaches_names_the_fastest() -> None:
    target = select(Goal(latency_ms=1), SPEEDS, AGREEMENT)
    assert (target.variant, target.reached) == ("int8", False)
    target = select(Goal(latency_ms=6.5, tiles_per_second=200), SPEEDS, AGREEMENT)
    assert not target.reached, "no single variant reaches both"


def test_the_latency_is_that_of_the_slow_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten tiles two continue at an early exit: nine of ten have to be in time."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("edgelung.export.target.time.perf_counter", lambda: clock.now)

    def infer(tile: np.ndarray) -> None:
        assert tile.shape == (1, 4, 4, 3)
        clock.now += 0.010 if tile.any() else 0.002

    tiles = np.zeros((100, 4, 4, 3), np.uint8)
    tiles[::5] = 1
    assert latency_ms(SimpleNamespace(infer=infer), tiles) == pytest.approx(10)
    tiles[::5] = 0
    assert latency_ms(SimpleNamespace(infer=infer), tiles) == pytest.approx(2)


def with_target(folder: Path, variant: str, *, reached: bool = True) -> str:
    """Write a target into a bundle; the variant that `auto` takes in it, and the reason."""
    content = json.loads((folder / MANIFEST).read_text("utf-8"))
    content["variants"]["int8"]["gate"] |= {"verdict": "pass", "reasons": []}
    content["variants"]["fp16"]["gate"] |= {"verdict": "fail", "reasons": ["a reason"]}
    target = Target(
        variant=variant, reached=reached, latency_ms=20.0, tiles_per_second=None, measured=SPEEDS
    )
    content["target"] = plain(target)
    for key in ("schema_version", "files"):
        del content[key]
    write_bundle(folder, convert(content, BundleManifest))
    chosen = open_engine(open_bundle(folder, OWN_WORK), EngineName.ONNXRUNTIME)
    chosen.engine.close()
    return f"{chosen.variant.precision}: {chosen.reason}"


def test_auto_takes_what_export_chose(copied_bundle: Path) -> None:
    expected = "fp32: auto: export chose fp32 for at most 20 ms for a single tile; fp16 not offered"
    assert with_target(copied_bundle, "fp32").startswith(expected)


@pytest.mark.parametrize("variant", ["fp16", "int8-fp16", "of-a-newer-edgelung"])
def test_auto_takes_no_target_that_did_not_pass_or_is_not_for_cpus(
    copied_bundle: Path, variant: str
) -> None:
    assert with_target(copied_bundle, variant).startswith("int8: auto: first of")


def test_a_target_that_was_not_reached_changes_nothing(copied_bundle: Path) -> None:
    assert with_target(copied_bundle, "fp32", reached=False).startswith("int8: auto: first of")


def test_a_named_variant_is_taken_whatever_the_target(copied_bundle: Path) -> None:
    with_target(copied_bundle, "fp32")
    bundle = open_bundle(copied_bundle, OWN_WORK)
    chosen = open_engine(bundle, EngineName.ONNXRUNTIME, Precision.INT8)
    chosen.engine.close()
    assert chosen.variant.precision is Precision.INT8


def test_nobody_is_told_to_add_what_is_there() -> None:
    from edgelung.cli.target import target_in_words

    target = select(Goal(latency_ms=1), SPEEDS, AGREEMENT)
    assert target_in_words(target).endswith("Ask for less.")


def test_the_command_measures_and_says_what_it_chose(run: Path, tmp_path: Path, cli) -> None:
    done = cli("export", run, "--out", tmp_path / "b", "--target-latency", "60000")
    assert done.returncode == 0, done.stderr
    assert "Target, at most 60000 ms for a single tile: fp32 reaches it" in done.stderr
    target = open_bundle(tmp_path / "b", OWN_WORK).manifest.target
    assert target is not UNSET
    assert (target.variant, target.reached) == ("fp32", True)
    assert target.measured["fp32"].latency_ms > 0
    for name in ("report.html", "MODEL_CARD.md"):
        page = (tmp_path / "b" / name).read_text("utf-8")
        assert "Target at export, at most 60000 ms for a single tile" in page, name
        assert "fp32 reached it" in page, name


def test_a_target_out_of_reach_is_exit_code_4_and_the_bundle_is_there(
    run: Path, tmp_path: Path, cli
) -> None:
    words = ["--target-speed", "1e12", "--allow-drop"]
    done = cli("export", run, "--out", tmp_path / "b", *words)
    assert done.returncode == 4, done.stderr
    assert "no variant that passed its gate reaches it on this machine" in done.stderr
    assert "The fastest is fp32" in done.stderr
    assert "Ask for less, or add faster variants (--int8 --early-exit)." in done.stderr
    target = open_bundle(tmp_path / "b", OWN_WORK).manifest.target
    assert target is not UNSET
    assert not target.reached
    assert target.measured["fp32"].latency_ms is None, "no latency was asked for"
