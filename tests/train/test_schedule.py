"""Learning rates over a stage."""

import pytest

from edgelung.errors import EdgelungError
from edgelung.train.fit import learning_rate
from edgelung.train.recipe import Recipe, load_recipe

STEPS = 10  # an epoch


def student(*overrides: str) -> Recipe:
    fixed = ["epochs=8", "low_epochs=6", "warmup_epochs=1", "lr=1.0", "high_lr=0"]
    return load_recipe("quick", [f"student.{text}" for text in (*fixed, *overrides)])


def rates(recipe: Recipe) -> list[float]:
    return [learning_rate(recipe.student, step, STEPS) for step in range(8 * STEPS)]


def test_warm_up_then_one_cosine_to_the_floor() -> None:
    found = rates(student("min_lr=0.2"))
    assert found[:STEPS] == pytest.approx([(i + 1) / STEPS for i in range(STEPS)])
    assert found[STEPS] == pytest.approx(1.0)
    assert found[(STEPS + 8 * STEPS) // 2] == pytest.approx(0.6)  # half way down
    assert all(a > b for a, b in zip(found[STEPS:], found[STEPS + 1 :], strict=False))
    assert 0.2 < found[-1] < 0.205


def test_full_size_begins_at_its_own_rate() -> None:
    found = rates(student("high_lr=0.3"))
    change = 6 * STEPS
    assert found[change - 1] == pytest.approx(0.3, abs=0.01)  # no jump at the change of size
    assert found[change] == pytest.approx(0.3)
    assert found[change + STEPS] == pytest.approx(0.15)
    assert found[-1] < 0.01


def test_constant_stays() -> None:
    assert set(rates(student("schedule=constant", "warmup_epochs=0"))) == {1.0}


@pytest.mark.parametrize("other", ["schedule=constant", "low_epochs=0"])
def test_high_rate_without_two_cosines_is_refused(other: str) -> None:
    with pytest.raises(EdgelungError, match="high_lr needs schedule cosine"):
        student("high_lr=0.3", other)
