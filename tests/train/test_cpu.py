"""Settings that make training on a CPU faster change nothing but the speed."""

import copy
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

from edgelung.train.cpu import SHORT_SEQUENCE, tune_for_cpu

RESIDENT = """
import sys, torch
from edgelung.train.cpu import keep_freed_memory
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
if sys.argv[1] == "keep":
    keep_freed_memory()
before = resident()
block = torch.ones(64 << 20, dtype=torch.uint8)
del block
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
@pytest.mark.parametrize("keep", [True, False])
def test_freed_memory_is_kept(keep: bool) -> None:
    mode = "keep" if keep else "default"
    command = [sys.executable, "-c", RESIDENT, mode]
    kept = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (kept > 60 << 20) == keep


def depthwise() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1))


def test_a_depthwise_convolution_is_trained_in_fp32_and_evaluated_as_before() -> None:
    images = torch.randn(2, 3, 8, 8)
    model, before = depthwise(), depthwise()
    tune_for_cpu([model])
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
    tune_for_cpu([model])
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
def test_attention_over_short_sequences_is_plain_and_gives_the_same(size: int, fused: bool) -> None:
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=size, depth=2).eval()
    assert (model.pos_embed.shape[1] > SHORT_SEQUENCE) == fused
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = model(images)
        tune_for_cpu([model])
        assert [block.attn.fused_attn for block in model.blocks] == [fused] * 2
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
