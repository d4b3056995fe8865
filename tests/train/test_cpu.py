"""Settings for training on a CPU: what they change, and what they leave."""

import copy
import ctypes
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import (
    ParallelScalingBlock,
    ParallelThingsBlock,
    VisionTransformer,
)
from timm.optim import create_optimizer_v2, muon
from torch import nn

from edgelung.artifacts.run import RunFolder
from edgelung.train import cpu
from edgelung.train import run as run_module
from edgelung.train.cpu import SHORT_SEQUENCE, tune_for_cpu
from edgelung.train.distributed import DistributedContext
from edgelung.train.prepare import Run
from edgelung.train.recipe import load_recipe

# Virtual memory of the process after a block of 3 GiB was allocated and freed untouched, in MiB.
FREED = """
import ctypes, sys
from edgelung.train.cpu import keep_freed_memory
def data():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmData")) // 1024
if sys.argv[1] == "keep":
    keep_freed_memory()
library = ctypes.CDLL(None)
library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
before = data()
library.free(library.malloc(ctypes.c_size_t(3 << 30)))
print(data() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc")
@pytest.mark.parametrize("keep", [True, False])
def test_freed_memory_is_kept(keep: bool) -> None:
    mode = "keep" if keep else "default"
    command = [sys.executable, "-c", FREED, mode]
    kept = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (kept > 3000) == keep


# Memory of the process, in MiB: with a block of 1 GiB, after it was freed, and once released.
RELEASED = """
import torch
from edgelung.train.cpu import keep_freed_memory, release_freed_memory
def resident():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024
keep_freed_memory()
block = torch.ones(1 << 28)
last = torch.ones(1 << 20)  # above the block: what lies under it is not the end of the heap
found = [resident()]
del block
found.append(resident())
release_freed_memory()
print(*found, resident())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc")
def test_kept_memory_is_released() -> None:
    command = [sys.executable, "-c", RELEASED]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    held, kept, released = map(int, printed.split())
    assert kept > held - 100
    assert released < held - 900


def depthwise() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1))


def test_a_depthwise_convolution_is_trained_in_fp32_and_evaluated_as_before() -> None:
    images = torch.randn(2, 3, 8, 8)
    model, before = depthwise(), depthwise()
    tune_for_cpu([model], bf16=True)
    kinds: list[torch.dtype] = []
    for layer in model:
        layer.register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(images)
        assert kinds == [torch.bfloat16, torch.float32, torch.bfloat16]
        assert torch.equal(model.eval()(images), before.eval()(images))
    assert model.state_dict().keys() == before.state_dict().keys()


def test_a_copy_of_a_tuned_model_uses_its_own_weights() -> None:
    """The averaged weights of a training are a deep copy of the model."""
    model = depthwise()
    tune_for_cpu([model], bf16=True)
    images = torch.randn(2, 3, 8, 8)
    twin = copy.deepcopy(model)
    expected = model(images)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(twin(images), expected)
    twin(images).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("size", "fused"), [(64, False), (320, True)])
def test_attention_over_short_sequences_is_plain(size: int, fused: bool) -> None:
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=size, depth=2).eval()
    assert (model.pos_embed.shape[1] > SHORT_SEQUENCE) == fused
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = model(images)
        tune_for_cpu([model], bf16=False)
        assert all(block.attn.fused_attn for block in model.blocks), "in FP32 it is as fast"
        tune_for_cpu([model], bf16=True)
        assert [block.attn.fused_attn for block in model.blocks] == [fused] * 2
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)


def test_plain_attention_in_bf16_stays_as_near_to_fp32() -> None:
    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3).eval()
    images = torch.randn(4, 3, 224, 224)

    def error() -> float:
        with torch.autocast("cpu", torch.bfloat16):
            return float((model.forward_features(images).float() - exact).abs().mean())

    with torch.no_grad():
        exact = model.forward_features(images)
        fused = error()
        tune_for_cpu([model], bf16=True)
        assert 0 < error() < 1.5 * fused


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pos_embed": "none"},
        {"block_fn": ParallelScalingBlock},
        {"block_fn": ParallelThingsBlock},
    ],
    ids=["plain", "without positions", "parallel", "parallel things"],
)
def test_every_vit_of_timm_can_be_a_teacher(options: dict[str, Any]) -> None:
    model = VisionTransformer(img_size=32, embed_dim=48, depth=1, num_heads=3, **options)
    tune_for_cpu([model], bf16=True)
    model(torch.randn(1, 3, 32, 32)).sum().backward()
    has_positions = model.pos_embed is not None
    fused = [part.fused_attn for part in model.modules() if hasattr(part, "fused_attn")]
    assert fused
    assert any(fused) != has_positions


@pytest.mark.parametrize(("device", "precision"), [("cpu", "bf16"), ("cpu", "fp32"), ("cuda", "")])
def test_a_run_is_tuned_on_a_cpu_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str, precision: str
) -> None:
    calls = []
    monkeypatch.setattr(run_module, "tune_for_cpu", lambda _, *, bf16: calls.append(bf16))
    monkeypatch.setattr(run_module, "create_modules", lambda *_: {})
    monkeypatch.setattr(run_module, "soft_labels", lambda run: None)
    context = DistributedContext(torch.device(device), precision)
    recipe = load_recipe("demo")
    run_module._train_models(
        Run(RunFolder(tmp_path), recipe, context, [], ["a", "b"], SimpleNamespace()), None
    )
    assert calls == ([precision == "bf16"] if device == "cpu" else [])


def test_muon_orthogonalises_in_fp32_on_a_cpu_without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in BF16, but for its rounding."""
    name = "zeropower_via_newtonschulz"  # an earlier training may have replaced it
    monkeypatch.setattr(muon, name, getattr(cpu, name))
    torch.manual_seed(0)
    gradient = torch.randn(24, 48)

    def step() -> torch.Tensor:
        weight = nn.Parameter(torch.zeros(24, 48))
        optimizer = create_optimizer_v2([weight], opt="muon", lr=1.0, weight_decay=0)
        weight.grad = gradient.clone()
        optimizer.step()
        return weight.detach()

    before = step()
    monkeypatch.setattr(cpu, "has_bf16", lambda: True)
    tune_for_cpu([], bf16=False)
    assert torch.equal(before, step())
    monkeypatch.setattr(cpu, "has_bf16", lambda: False)
    tune_for_cpu([], bf16=False)
    after = step()
    assert not torch.equal(before, after)
    torch.testing.assert_close(before, after, rtol=0.05, atol=0.02)
