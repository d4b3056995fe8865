"""The student as a TorchScript program: normalised pixels in, logits out.

For other tools, which apply softmax themselves; edgelung loads it only to check it. Operators are
those of older libtorch versions too: QuPath brings its own.
"""

import importlib
import io
import warnings
import zipfile
from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn

from edgelung.export.student import Student

jit = importlib.import_module("torch.jit")  # torch does not type it
DEBUG_SUFFIX = ".debug_pkl"  # source lines of the Python code, with paths of this machine


class DividedLogits(nn.Module):
    """Mean logits of both heads, divided by the temperature."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) for normalised images float32 (N, 3, size, size)."""
        logits: Tensor = self.model(images)  # timm's mean of both heads, outside of training
        return logits / self.temperature


def build_torchscript(student: Student, temperature: float) -> bytes:
    """The file torchscript_model.pt of a student, for any batch size."""
    model = timm.create_model(
        student.architecture, num_classes=len(student.classes), img_size=student.size
    )
    model.load_state_dict({name: torch.from_numpy(w) for name, w in student.weights.items()})
    for block in model.blocks:
        block.attn.fused_attn = False  # scaled_dot_product_attention is not in older libtorch
    divided = DividedLogits(model, temperature).eval()
    example = torch.zeros(2, 3, student.size, student.size)
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # The trace fixes the size of a tile, as intended; TorchScript is old, but QuPath reads it.
        warnings.simplefilter("ignore")
        jit.save(jit.trace(divided, example, check_trace=False), buffer)
    return _without_debug_records(buffer.getvalue())


def load_torchscript(program: bytes) -> Callable[[Tensor], Tensor]:
    """Load a program that `build_torchscript` made, for the CPU: images → logits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, see above
        model = jit.load(io.BytesIO(program), map_location="cpu")

    def run(images: Tensor) -> Tensor:
        # Without the optimizer, whose first batches take seconds.
        with torch.inference_mode(), jit.optimized_execution(False):
            logits: Tensor = model(images)
        return logits

    return run


def _without_debug_records(archive: bytes) -> bytes:
    """The archive without records that name files of this machine; they are optional."""
    kept = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(archive)) as source,
        zipfile.ZipFile(kept, "w", zipfile.ZIP_STORED) as target,
    ):
        for entry in source.infolist():
            if not entry.filename.endswith(DEBUG_SUFFIX):
                target.writestr(zipfile.ZipInfo(entry.filename), source.read(entry))
    return kept.getvalue()
