"""The student as a TorchScript program: normalised pixels in, logits out.

For other tools, which apply softmax themselves; edgelung never loads it. Operators are those of
older libtorch versions too: QuPath brings its own.
"""

import io
import warnings
import zipfile

import timm
import torch
from torch import Tensor, nn

from edgelung.export.student import Student

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
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the trace fixes the size of a tile, which is intended
        program = torch.jit.trace(divided, example)
    buffer = io.BytesIO()
    torch.jit.save(program, buffer)
    return _without_debug_records(buffer.getvalue())


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
