"""Quantization-aware distillation: train the weights of an INT8 student to match full precision.

For a student that passes the gate with no calibration. It runs in torch, with the inputs and
weights of its linears and the queries and keys rounded as in the graph, and learns to reproduce the
class tokens and probabilities of full precision on training tiles. Gradients pass straight through
the rounding (Bengio et al. 2013) and stop where a value is clipped. The input steps stay those of
the plan. Labels are not used: the result shall be the same model.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from msgspec import structs
from torch import Tensor
from torch.nn import functional as F

from edgelung.artifacts.manifest import QatRecord
from edgelung.core.terminal import progress
from edgelung.engines.base import Tiles
from edgelung.export.calibrate import MIGRATION_TILES, collect_tile_stats
from edgelung.export.graph import EPSILON, PIXEL_OFFSET, PIXEL_STEP, SCORES
from edgelung.export.plan import Plan
from edgelung.export.student import Student
from edgelung.export.tiles import TileReader, TileSet

STEPS = 256  # one batch each; the training set is repeated if it is smaller
BATCH = 32
LEARNING_RATE = 1e-4  # of AdamW, decayed to zero by a cosine schedule


def refine(plan: Plan, tiles: TileSet, calibration: TileSet, reader: TileReader) -> Plan:
    """Return the plan with weights trained for its INT8 on `tiles` of the training set.

    The peak is measured again on the calibration tiles.
    """
    reader.keep(tiles, "decode training tiles")
    with progress("quantization-aware distillation", STEPS) as advance:
        trained = distill(plan, _shuffled_batches(tiles, reader), STEPS, lambda n: advance(1))
    few = calibration.every(MIGRATION_TILES)
    stats = collect_tile_stats(trained.student, few, reader, "activations")
    return replace(trained, peak=max(stats.peak, plan.peak))


def distill(
    plan: Plan,
    batches: Iterable[Tiles],
    steps: int,
    on_batch: Callable[[int], None] = lambda n: None,
    learning_rate: float = LEARNING_RATE,
) -> Plan:
    """Train the weights of a plan.

    The loss is the mean squared error of the class tokens plus the Kullback-Leibler divergence of
    the probabilities, both from the plan's own student in full precision.

    Args:
        plan: its student is not changed.
        batches: uint8 (N, size, size, 3), at least `steps` of them.
        steps: optimizer steps, one per batch.
        on_batch: called with the number of tiles after each step.
        learning_rate: of the first step.
    """
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    exact = Network(plan.student, {}, device)
    rounded = Network(plan.student, dict(plan.scales), device)
    parameters = [w.requires_grad_() for w in rounded.weights.values()]
    optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses, tiles_used = [], 0
    for tiles in islice(batches, steps):
        pixels = _augment(torch.from_numpy(tiles).to(device))
        with torch.no_grad():
            target_tokens = exact.tokens(pixels)
            target_logits = exact.logits(target_tokens)
        tokens = rounded.tokens(pixels)
        loss = F.mse_loss(tokens, target_tokens) + F.kl_div(
            rounded.logits(tokens).log_softmax(1),
            target_logits.log_softmax(1),
            log_target=True,
            reduction="batchmean",
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        tiles_used += len(tiles)
        on_batch(len(tiles))
    weights = {name: w.detach().cpu().numpy() for name, w in rounded.weights.items()}
    record = structs.replace(
        plan.calibration,
        # The bias corrections belonged to the weights before training, which corrects biases too.
        bias_correction=False,
        qat=QatRecord(tiles=tiles_used, loss_before=losses[0], loss_after=losses[-1]),
    )
    student = replace(plan.student, weights=weights)
    return replace(plan, student=student, means={}, calibration=record)


class Network:
    """The deployed graph in torch, without its temperature, with the same roundings."""

    def __init__(self, student: Student, scales: dict[str, float], device: torch.device) -> None:
        self.student, self.scales = student, scales
        self.weights = {
            name: torch.from_numpy(w.copy()).to(device) for name, w in student.weights.items()
        }

    def tokens(self, pixels: Tensor) -> Tensor:
        """uint8 (N, size, size, 3) → the two class tokens after the last norm (N, 2, D)."""
        s, w = self.student, self.weights
        side, patch = s.size // s.patch, s.patch
        x = pixels.reshape(-1, side, patch, side, patch * 3).transpose(2, 3)
        x = (x.reshape(-1, side * side, patch * patch * 3).float() - PIXEL_OFFSET) / PIXEL_STEP
        std, mean = (
            torch.tensor(v, device=pixels.device).view(1, 3, 1, 1) for v in (s.std, s.mean)
        )
        kernel = w["patch_embed.proj.weight"] / std  # (D, 3, P, P)
        bias = w["patch_embed.proj.bias"]
        bias = bias + (kernel * (PIXEL_OFFSET / 255 - mean)).sum(dim=(1, 2, 3))
        kernel = kernel.permute(0, 2, 3, 1).reshape(s.width, -1) * (PIXEL_STEP / 255)
        x = self.linear("patch_embed.proj", x, kernel, bias)
        first = torch.cat([w["cls_token"], w["dist_token"]], dim=1).expand(len(x), -1, -1)
        x = torch.cat([first, x], dim=1) + w["pos_embed"]  # (N, T, D)
        for i in range(s.depth):
            x = self.block(f"blocks.{i}", x, last=i == s.depth - 1)
        return self.norm("norm", x)

    def logits(self, tokens: Tensor) -> Tensor:
        """The mean of both heads (N, classes)."""
        w = self.weights
        first = F.linear(tokens[:, 0], w["head.weight"], w["head.bias"])
        return (first + F.linear(tokens[:, 1], w["head_dist.weight"], w["head_dist.bias"])) / 2

    def block(self, name: str, x: Tensor, last: bool) -> Tensor:
        y = self.norm(f"{name}.norm1", x)
        weight, bias = (self.weights[f"{name}.attn.qkv.{part}"] for part in ("weight", "bias"))
        width = self.student.width
        if last:  # only the class tokens leave the last block
            q = self.linear(f"{name}.attn.q", y[:, :2], weight[:width], bias[:width])
            k, v = self.linear(f"{name}.attn.kv", y, weight[width:], bias[width:]).chunk(2, dim=-1)
            x = x[:, :2]
        else:
            q, k, v = self.linear(f"{name}.attn.qkv", y, weight, bias).chunk(3, dim=-1)
        heads = self.student.heads
        q, k, v = (
            part.reshape(len(part), part.shape[1], heads, -1).transpose(1, 2) for part in (q, k, v)
        )
        q = q * q.shape[-1] ** -0.5  # (N, heads, t, d)
        if (scores := f"{name}.attn.{SCORES}") in self.scales:
            q, k = (_round(part, self.scales[scores]) for part in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        y = y.transpose(1, 2).flatten(2)  # (N, t, D)
        x = x + self.linear(f"{name}.attn.proj", y)
        y = F.gelu(self.linear(f"{name}.mlp.fc1", self.norm(f"{name}.norm2", x)))
        return x + self.linear(f"{name}.mlp.fc2", y)

    def linear(
        self, name: str, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        weight = self.weights[f"{name}.weight"] if weight is None else weight
        bias = self.weights[f"{name}.bias"] if bias is None else bias
        if name in self.scales:
            x = _round(x, self.scales[name])
            steps = weight.detach().abs().amax(dim=1) / 127
            steps = torch.where(steps > 0, steps, torch.ones_like(steps))
            zeros = torch.zeros_like(steps, dtype=torch.int32)
            weight = torch.fake_quantize_per_channel_affine(weight, steps, zeros, 0, -127, 127)
        return F.linear(x, weight, bias)

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = (self.weights[f"{name}.{part}"] for part in ("weight", "bias"))
        return F.layer_norm(x, weight.shape, weight, bias, EPSILON)


def _round(x: Tensor, step: float) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(x, step, 0, -128, 127)


def _shuffled_batches(tiles: TileSet, reader: TileReader) -> Iterator[Tiles]:
    """Yield batches indefinitely, reshuffled every epoch."""
    rng = np.random.default_rng(0)
    while True:
        shuffled = tiles.take(rng.permutation(len(tiles)))
        yield from reader.batches(shuffled, BATCH)


def _augment(pixels: Tensor) -> Tensor:
    """Mirror and rotate a batch (N, H, W, 3) by right angles at random: tissue has no up."""
    if torch.rand(()) < 0.5:
        pixels = pixels.flip(2)
    return torch.rot90(pixels, int(torch.randint(4, ())), (1, 2))
