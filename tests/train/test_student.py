"""The student in training: windows of a tile, and the parameters that are not decayed."""

import torch
from timm.optim import create_optimizer_v2

from edgelung.train.models import create_student
from edgelung.train.recipe import Student
from edgelung.train.student import UnguidedStudent


def student() -> UnguidedStudent:
    torch.manual_seed(0)
    schedule = Student(
        model="deit_tiny_distilled_patch16_224", epochs=2, lr=1, size=64, low_epochs=1, low_size=32
    )
    return UnguidedStudent(create_student(schedule, 3)).train()


def first_tokens(module: UnguidedStudent, images: torch.Tensor) -> torch.Tensor:
    """The tokens that the first block is given: (B, 2 + patches, D)."""
    seen: list[torch.Tensor] = []
    handle = module.model.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    module(images)
    handle.remove()
    return seen[0]


@torch.no_grad()
def test_a_window_keeps_the_positions_of_its_place_in_the_tile() -> None:
    """A small view stands somewhere in the grid; every place comes up."""
    module = student()
    model, view = module.model, torch.rand(2, 3, 32, 32)
    patches = model.patch_embed(view).flatten(1, 2)  # (B, 4, D)
    grid = model.pos_embed[0, 2:].view(4, 4, -1)
    windows = {(y, x): grid[y : y + 2, x : x + 2].flatten(0, 1) for y in range(3) for x in range(3)}
    prefix = torch.cat([model.cls_token, model.dist_token], 1) + model.pos_embed[:, :2]
    places = set()
    for _ in range(100):
        tokens = first_tokens(module, view)
        torch.testing.assert_close(tokens[:, :2], prefix.expand(2, -1, -1))
        added = tokens[0, 2:] - patches[0]
        (place,) = (k for k, v in windows.items() if torch.allclose(v, added, atol=1e-5))
        places.add(place)
    assert len(places) == 9


@torch.no_grad()
def test_a_whole_tile_gives_what_timms_model_gives() -> None:
    module = student()
    model, whole = module.model, torch.rand(2, 3, 64, 64)
    tokens = first_tokens(module, whole)
    patches = model.patch_embed(whole).flatten(1, 2)
    torch.testing.assert_close(tokens[:, 2:], patches + model.pos_embed[:, 2:])
    assert torch.equal(module(whole), model(whole))
    model.set_distilled_training(True)
    assert all(torch.equal(a, b) for a, b in zip(module(whole), model(whole), strict=True))


def test_position_embeddings_and_tokens_are_not_decayed() -> None:
    module = student()
    optimizer = create_optimizer_v2(module, opt="adamw", lr=1e-3, weight_decay=0.1)
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    for parameter in (module.model.pos_embed, module.model.cls_token, module.model.dist_token):
        assert id(parameter) not in decayed
    assert id(module.model.head.weight) in decayed
