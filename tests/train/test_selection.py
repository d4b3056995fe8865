"""Weight selection: every second channel and head of a ViT, and all of it in another form."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import SwiGLUPacked
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

from edgelung.core.errors import EdgelungError
from edgelung.train.models import create_student
from edgelung.train.recipe import Student
from edgelung.train.selection import select_weights

CONFIG = {"architecture": "tiny", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def vit(kind: Any = VisionTransformer, config: dict[str, Any] = CONFIG, **changes: Any) -> Any:
    """A small ViT with random weights that all matter, LayerScale included."""
    torch.manual_seed(1)
    sizes = {"img_size": 56, "patch_size": 14, "embed_dim": 32, "depth": 3, "num_heads": 4}
    model = kind(**({**sizes, "num_classes": 3} | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.pretrained_cfg = config
    return model


@torch.no_grad()
def test_a_target_of_the_same_form_computes_what_the_source_computes() -> None:
    """LayerScale and another normalisation are folded exactly."""
    other = CONFIG | {"mean": (0.5, 0.4, 0.6), "std": (0.5, 0.3, 0.2)}
    source = vit(config=other, init_values=0.3)
    target = vit()
    select_weights(source, target)
    pixels = torch.rand(2, 3, 56, 56)
    found, expected = (
        model.forward_features(
            (pixels - torch.tensor(model.pretrained_cfg["mean"]).view(1, 3, 1, 1))
            / torch.tensor(model.pretrained_cfg["std"]).view(1, 3, 1, 1)
        )
        for model in (target, source)
    )
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_every_second_channel_and_head_is_kept() -> None:
    source = vit(init_values=0.3)
    target = vit(embed_dim=16, num_heads=2, depth=2)
    select_weights(source, target)
    assert torch.equal(target.norm.weight, source.norm.weight[::2])
    assert torch.equal(target.pos_embed, source.pos_embed[:, :, ::2])
    assert torch.equal(target.patch_embed.proj.weight, source.patch_embed.proj.weight[::2])
    for small, large in zip(target.blocks, source.blocks, strict=False):
        own = small.attn.qkv.weight.view(3, 2, 8, 16)  # q, k, v × heads × channels of a head
        assert torch.equal(own, large.attn.qkv.weight.view(3, 4, 8, 32)[:, ::2, :, ::2])
        folded = (large.ls1.gamma[:, None] * large.attn.proj.weight).view(32, 4, 8)
        torch.testing.assert_close(small.attn.proj.weight.view(16, 2, 8), folded[::2, ::2])
        assert torch.equal(small.mlp.fc1.weight, large.mlp.fc1.weight[::2, ::2])
        folded = large.ls2.gamma[:, None] * large.mlp.fc2.weight
        torch.testing.assert_close(small.mlp.fc2.weight, folded[::2, ::2])
        torch.testing.assert_close(small.mlp.fc2.bias, (large.ls2.gamma * large.mlp.fc2.bias)[::2])


@torch.no_grad()
def test_the_distillation_token_starts_as_the_class_token() -> None:
    source = vit(init_values=0.3)
    target = vit(VisionTransformerDistilled, img_size=64, patch_size=16)
    heads = target.head.weight.clone(), target.head_dist.weight.clone()
    select_weights(source, target)
    assert torch.equal(target.cls_token, source.cls_token)
    assert torch.equal(target.dist_token, source.cls_token)
    assert torch.equal(target.pos_embed[:, :2], source.pos_embed[:, :1].expand(-1, 2, -1))
    assert torch.equal(target.pos_embed[:, 2:], source.pos_embed[:, 1:])  # 4 × 4 patches either way
    assert torch.equal(target.head.weight, heads[0])
    assert torch.equal(target.head_dist.weight, heads[1])


@torch.no_grad()
def test_larger_patches_see_what_smaller_ones_saw_in_a_smaller_tile() -> None:
    """16 px of a tile that is 16/14 as large show the same; the features stay close."""
    source, target = vit(), vit(img_size=64, patch_size=16)
    select_weights(source, target)
    small = torch.nn.functional.interpolate(torch.rand(4, 3, 7, 7), 56, mode="bilinear")
    large = torch.nn.functional.interpolate(small, 64, mode="bicubic", antialias=True)
    expected, found = source.forward_features(small), target.forward_features(large)
    assert float(torch.cosine_similarity(found, expected, dim=-1).min()) > 0.98


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ({"embed_dim": 16, "num_heads": 2}, {}, "has 16 channels, the student 32"),
        ({"depth": 2}, {}, "has 2 blocks, the student 3"),
        ({"num_heads": 2}, {"num_heads": 2, "embed_dim": 16}, "heads of 16 channels, .* of 8"),
        ({"qk_norm": True}, {}, r"differ in blocks.attn.k_norm.bias; expected a plain ViT"),
        ({"no_embed_class": True}, {}, "is no ViT with a class token"),
        ({"reg_tokens": 4}, {}, "differ in reg_token"),
        ({"global_pool": "avg"}, {}, "differ in fc_norm.bias"),
        ({"kind": VisionTransformerDistilled}, {}, "has a distillation token; expected a plain"),
        ({"mlp_layer": SwiGLUPacked}, {}, "has a gated MLP; expected a plain ViT"),
    ],
)
def test_a_source_that_does_not_hold_the_student_is_refused(
    source: dict[str, Any], target: dict[str, Any], words: str
) -> None:
    with pytest.raises(EdgelungError, match=words):
        select_weights(vit(**source), vit(**target))


@torch.no_grad()
def test_a_recipe_starts_a_deit_from_the_weights_of_its_source(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = timm.create_model("vit_small_patch14_dinov2", img_size=56, num_classes=0)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    values = {"epochs": 1, "lr": 1, "size": 64, "init": "select"}
    values["weights"] = str(tmp_path / "w.safetensors")
    tiny = create_student(Student(model="deit_tiny_distilled_patch16_224", **values), 3)
    assert torch.equal(tiny.norm.weight, source.norm.weight[::2])
    assert torch.equal(tiny.cls_token, source.cls_token[:, :, ::2])
    assert torch.isfinite(tiny.eval()(torch.zeros(1, 3, 64, 64))).all()
