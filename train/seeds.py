"""Seeds: every random number of a run is a function of a key, such as (seed, stage, step).

No generator state has to be saved, so a resumed run draws what an undisturbed one would.
"""

import hashlib

import torch


def derive_seed(*key: object) -> int:
    """A 63-bit seed from any key; the same key gives the same seed on every machine."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8]) >> 1


def seed_weights(seed: int, stage: str) -> None:
    """Fix the random initial weights of the model that is created next."""
    torch.manual_seed(derive_seed(seed, stage, "weights"))
