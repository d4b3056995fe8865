"""Exits that are trained with the student: what teaches them, and what they leave alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgelung.core.errors import EdgelungError
from edgelung.train.exits import ExitHeads, OutputWithExits
from edgelung.train.guidance import standardise
from edgelung.train.losses import DistillationLoss, ExitLoss, LabelLoss, Losses
from edgelung.train.preprocess import normalise
from edgelung.train.recipe import Distill, load_recipe
from edgelung.train.stages import create_checked_modules, create_modules, timm_model
from edgelung.train.student import StudentLogits, UnguidedStudent
from edgelung.train.teachers import FrozenModel, FrozenTeacher

TILES = torch.arange(4)
CRITERION = nn.CrossEntropyLoss()


def with_exits(student: nn.Module, blocks: tuple[int, ...]) -> UnguidedStudent:
    module = UnguidedStudent(student).train()
    module.exits = ExitHeads(blocks, width=student.embed_dim, depth=12, classes=3)
    return module


def losses(
    parts, blocks=(3, 6), **options: bool
) -> tuple[UnguidedStudent, OutputWithExits, Losses]:
    """A student with exits, its output, and the losses at weight 0.5 and temperature 2."""
    student, teacher, images, labels = parts
    module = with_exits(student, blocks)
    frozen = FrozenTeacher([FrozenModel(teacher, 32, student)])
    loss = DistillationLoss(frozen, Distill(temperature=2.0), CRITERION)
    shown = normalise(images, student)
    output = module(shown)
    found = ExitLoss(loss, CRITERION, weight=0.5, temperature=2.0)(
        output, shown, labels, TILES, **options
    )
    return module, output, found


def test_an_exit_learns_labels_and_what_the_last_block_says(parts) -> None:
    _, output, found = losses(parts)
    answer, labels = output.answer, parts[3]
    assert isinstance(answer, StudentLogits)
    last = ((answer.class_token + answer.distillation_token) / 4).softmax(1)  # temperature 2
    parts_of_it = [
        F.cross_entropy(one.logits, labels)
        + 4 * (last * (last.log() - (one.logits / 2).log_softmax(1))).sum(1).mean()
        + (one.feature - standardise(output.feature)).square().mean()
        for one in output.exits
    ]
    torch.testing.assert_close(found.exit_loss, sum(parts_of_it) / 2)
    expected = 0.5 * (found.task_loss + found.distill_loss) + 0.5 * found.exit_loss
    torch.testing.assert_close(found.loss, expected)


def test_an_exit_reads_the_mean_patch_token_after_its_block(parts) -> None:
    student, _, images, _ = parts
    module = with_exits(student, (1, 4))
    shown = normalise(images, student)
    tokens = [outputs[:, 2:].mean(dim=1) for outputs in module.block_outputs(shown)]
    heads = module.exits
    for one, place, block in zip(module(shown).exits, (0, 1), (1, 4), strict=True):
        expected = heads.classifiers[place](heads.norms[place](tokens[block - 1]))
        torch.testing.assert_close(one.logits, expected)


def test_nothing_behind_an_exit_learns_from_it(parts) -> None:
    module, _, found = losses(parts, blocks=(3,))
    found.exit_loss.backward()
    model = module.model
    learns = [any(p.grad is not None for p in block.parameters()) for block in model.blocks]
    assert learns == [True] * 3 + [False] * 9
    assert all(p.grad is None for p in [*model.head.parameters(), *model.head_dist.parameters()])


def test_without_the_label_loss_only_the_feature_teaches(parts) -> None:
    module, output, found = losses(parts, uses_label_loss=False)
    target = standardise(output.feature)
    errors = [(one.feature - target).square().mean() for one in output.exits]
    torch.testing.assert_close(found.exit_loss, sum(errors) / 2)
    found.exit_loss.backward()
    gradients = [p.grad for p in module.exits.classifiers.parameters()]
    assert all(g is not None and not g.any() for g in gradients)  # several processes wait for it


def test_labels_alone_teach_exits_too(parts) -> None:
    """Without a teacher; the exits learn what the labels say."""
    student, _, images, labels = parts
    student.set_distilled_training(False)
    module, shown = with_exits(student, (2,)), normalise(images, student)
    loss = ExitLoss(LabelLoss(CRITERION), CRITERION, weight=1.0, temperature=1.0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    for _ in range(15):
        output = module(shown)
        optimizer.zero_grad()
        loss(output, shown, labels, TILES).loss.backward()
        optimizer.step()
    assert torch.equal(module(shown).exits[0].logits.argmax(1), labels)


@pytest.mark.parametrize("more", [[], ["student.init=mimetic", "distill.guidance=1"]])
def test_exits_change_no_first_weights_and_are_not_saved(small: list[str], more: list[str]) -> None:
    plain, exits = (
        create_modules(recipe, 3, fresh=recipe.roles)["student"]
        for blocks in ("[]", "[3, 6]")
        for recipe in [load_recipe("demo", [*small, *more, f"student.exits={blocks}"])]
    )
    before, after = plain.state_dict(), exits.state_dict()
    assert [k for k in before if not torch.equal(before[k], after[k])] == []
    assert not any(name.startswith("exits") for name in before)
    assert timm_model(exits).state_dict().keys() == timm_model(plain).state_dict().keys()


def test_an_exit_after_the_last_block_is_refused(small: list[str]) -> None:
    recipe = load_recipe("demo", [*small, "student.exits=[3, 12]"])
    with pytest.raises(EdgelungError, match="names block 12; expected blocks 1 to 11"):
        create_checked_modules(recipe, 3)
