"""Which GPU a process uses, where a computer has several."""

import os

from edgelung.core.errors import EdgelungError

VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"


def select_gpu(number: int) -> None:
    """Hide all GPUs of this process but one. Of use only before CUDA is first used.

    `number`: as nvidia-smi counts; among those that CUDA_VISIBLE_DEVICES names, if that is set (as
    SLURM does). Raises EdgelungError if it names fewer.
    """
    named = os.environ.get(VISIBLE)
    if named is None:
        os.environ[ORDER] = "PCI_BUS_ID"  # the order of nvidia-smi
        os.environ[VISIBLE] = str(number)
        return
    names = [name.strip() for name in named.split(",") if name.strip()]
    if number >= len(names):
        allowed = f"expected 0 to {len(names) - 1}" if names else "it hides all GPUs"
        raise EdgelungError(
            f"--device {number}: {VISIBLE} is {named!r}, a list of {len(names)}; {allowed}"
        )
    os.environ[VISIBLE] = names[number]
