"""The deadline for loading: from the environment, and only in a command."""

import time
from pathlib import Path

import pytest

from edgelung.core.deadlines import ENVIRONMENT, ending_on_deadlines, loading
from edgelung.core.errors import EdgelungError


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf", "1e300"])
def test_a_deadline_that_is_no_time_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(ENVIRONMENT, text)
    with (
        pytest.raises(EdgelungError, match=ENVIRONMENT),
        loading(Path("bundle"), builds_gpu_engines=True),
    ):
        pass


def test_loading_in_time_leaves_the_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "0.05")
    with ending_on_deadlines(), loading(Path("bundle"), builds_gpu_engines=False):
        pass
    time.sleep(0.1)


def test_another_program_is_never_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "0.01")
    with loading(Path("bundle"), builds_gpu_engines=False):
        time.sleep(0.05)
