"""A step of MaPLe: clipkit's against the same step written the published way.

    python benchmarks/prompts.py                                # ViT-B-16, batch 4, 100 classes of ImageNet
    python benchmarks/prompts.py --class-names names.txt        # a name a line
    python benchmarks/prompts.py --num-classes 1000 --repeats 3

The published way (multimodal-prompt-learning, `trainers/maple.py` and its `clip/model.py`) encodes the text
of every class in full, at the context length, in every step: an explicit loop over the blocks, with prompts
concatenated and replaced. Here it runs over the same open_clip modules, with the same prompts, frozen
weights without gradients, and the same loss. Weights and images are random; forward and backward, without
the optimiser.

Contestants take turns in one process; ratios are those of the same turn. Memory is the rise of the resident
set's peak over its level with model and texts there (on a GPU: of the allocator's), in a process of its
own.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from loss import _resident as resident
from report import write_result
from torch import Tensor
from torch.nn import functional as F

import clipkit
from clipkit.prompts.class_texts import ClassTexts
from clipkit.prompts.maple import Maple, MapleConfig
from clipkit.prompts.parts import image_parts, text_parts

OURS, LENGTH_AWARE, PUBLISHED = "clipkit", "clipkit, a text a row", "published"
CONTESTANTS = (OURS, LENGTH_AWARE, PUBLISHED)


@dataclass(frozen=True, kw_only=True)
class Task:
    """All that a step needs."""

    model: clipkit.DualEncoder
    head: Maple
    texts: ClassTexts
    images: Tensor
    """(B, 3, H, W)."""
    labels: Tensor
    """(B,) int64."""

    def double(self) -> Task:
        """The same in fp64, in place."""
        self.model.double()
        self.head.double()
        return dataclasses.replace(self, images=self.images.double())


def make_task(names: list[str], batch_size: int, architecture: str) -> Task:
    """Random weights, images and labels that follow from the arguments."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = clipkit.create(architecture).requires_grad_(False).to(device)
    towers = text_parts(model.model), image_parts(model.model)
    depth = min(MapleConfig().depth, *(len(tower.blocks) for tower in towers))
    head = Maple(model, MapleConfig(depth=depth)).to(device)
    return Task(
        model=model,
        head=head,
        texts=head.class_texts(model, names),
        images=torch.randn(batch_size, 3, *model.image_size).to(device),
        labels=torch.randint(len(names), (batch_size,)).to(device),
    )


def published_loss(task: Task) -> Tensor:
    """Cross-entropy over all classes, every text encoded in full."""
    model = task.model.model
    images = published_image_features(model, task.images, task.head.image_prompts())
    texts = published_text_features(model, task.texts, task.head.text_prompts())
    logits = model.logit_scale.exp() * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    return F.cross_entropy(logits.float(), task.labels)


def published_text_features(model: Any, texts: ClassTexts, prompts: Any) -> Tensor:
    """(C, D): start token, prompts and the rest of each text, at the context length."""
    tokens = texts.tokens.to(model.logit_scale.device)
    embedded = model.token_embedding(tokens)
    num_texts, count = len(tokens), len(prompts[0])
    first = prompts[0].expand(num_texts, -1, -1)
    hidden = torch.cat([embedded[:, :1], first, embedded[:, 1 + count :]], dim=1) + model.positional_embedding
    for number, block in enumerate(model.transformer.resblocks):
        if 0 < number < len(prompts):
            own = prompts[number].expand(num_texts, -1, -1)
            hidden = torch.cat([hidden[:, :1], own, hidden[:, 1 + count :]], dim=1)
        hidden = block(hidden, attn_mask=model.attn_mask)
    places = torch.arange(num_texts, device=hidden.device), tokens.argmax(dim=-1)
    return model.ln_final(hidden)[places] @ model.text_projection


def published_image_features(model: Any, images: Tensor, prompts: Any) -> Tensor:
    """(B, D): class token and patches with positions, then the prompts."""
    visual = model.visual
    num_images, count = len(images), len(prompts[0])
    patches = visual.conv1(images).flatten(2).transpose(1, 2)
    class_token = visual.class_embedding.expand(num_images, 1, -1)
    hidden = torch.cat([class_token, patches], dim=1) + visual.positional_embedding
    hidden = visual.ln_pre(torch.cat([hidden, prompts[0].expand(num_images, -1, -1)], dim=1))
    for number, block in enumerate(visual.transformer.resblocks):
        if 0 < number < len(prompts):
            hidden = torch.cat([hidden[:, :-count], prompts[number].expand(num_images, -1, -1)], dim=1)
        hidden = block(hidden)
    return visual.ln_post(hidden[:, 0]) @ visual.proj


def loss_of(contestant: str, task: Task) -> Callable[[], Tensor]:
    """The loss as a contestant computes it."""
    if contestant == PUBLISHED:
        return lambda: published_loss(task)
    texts = task.texts if contestant == OURS else dataclasses.replace(task.texts, packed=())
    batch = {"image": task.images, "label": task.labels}
    return lambda: task.head.loss(task.model, batch, texts)


def step(loss: Callable[[], Tensor], task: Task) -> float:
    """Seconds of one forward and backward pass."""
    task.head.zero_grad()
    began = time.perf_counter()
    loss().backward()
    if task.images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def peak_rise(loss: Callable[[], Tensor], task: Task) -> int:
    """Bytes by which a step raises the peak of this process, or of its GPU, over what was there."""
    if task.images.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(loss, task)
        return torch.cuda.max_memory_allocated() - before
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    step(loss, task)
    return resident("VmHWM") - before


LossAndGradients = tuple[float, dict[str, Tensor]]


def gradients(contestant: str, task: Task) -> LossAndGradients:
    """Loss, and the gradient of every parameter of the head."""
    task.head.zero_grad()
    loss = loss_of(contestant, task)()
    loss.backward()
    found = {name: parameter.grad for name, parameter in task.head.named_parameters()}
    missing = [name for name, gradient in found.items() if gradient is None]
    assert not missing, missing
    assert all(parameter.grad is None for parameter in task.model.parameters())
    return loss.item(), {name: gradient.double() for name, gradient in found.items() if gradient is not None}


def differences(found: LossAndGradients, right: LossAndGradients) -> list[float]:
    """Relative difference of the losses, and the largest of the gradients, each by its norm."""
    loss = abs(found[0] - right[0]) / abs(right[0])
    return [loss, max(float((found[1][k] - g).norm() / g.norm()) for k, g in right[1].items())]


def agreement(task: Task) -> str:
    """A table: each contestant against the published step, in fp32 and in fp64. Leaves the task in fp64."""
    rows = []
    for dtype in ("fp32", "fp64"):
        task = task if dtype == "fp32" else task.double()
        right = gradients(PUBLISHED, task)
        for name in (OURS, LENGTH_AWARE):
            loss, gradient = differences(gradients(name, task), right)
            rows.append(f"| {dtype} | {name} | {loss:.1e} | {gradient:.1e} |")
    num_tensors = len(right[1])
    return (
        f"Relative difference to the published step: of the loss, and of the gradient (by its norm) "
        f"the largest of the {num_tensors} parameters of the head; clipkit's features and scores are fp32 in "
        "any case.\n\n"
        "| precision | step | loss | gradient |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def compare(task: Task, repeats: int, memory: dict[str, int]) -> str:
    """A table of seconds and memory."""
    losses = {name: loss_of(name, task) for name in CONTESTANTS}
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for repeat in range(repeats + 1):
        for name, loss in losses.items():
            took = step(loss, task)
            if repeat:  # the first turn warms up
                seconds[name].append(took)
    rows = []
    for name in CONTESTANTS:
        took = seconds[name]
        lead = [theirs / mine for theirs, mine in zip(seconds[PUBLISHED], took, strict=True)]
        rows.append(
            f"| {name} | {_num_columns(name, task):,} | {statistics.median(took):.3f} ({min(took):.3f} to "
            f"{max(took):.3f}) | **{statistics.median(lead):.2f}** ({min(lead):.2f} to {max(lead):.2f}) "
            f"| {memory[name] / 2**20:,.0f} | **{memory[name] / memory[PUBLISHED]:.2f}** |"
        )
    return (
        "| step | text columns | seconds (range) | times as fast as published (range) | MiB above the model "
        "| of published |\n|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def _num_columns(contestant: str, task: Task) -> int:
    """Text tokens that pass the tower in a step."""
    if contestant == PUBLISHED:
        return task.texts.tokens.numel()
    if contestant == LENGTH_AWARE:
        return len(task.texts.names) * task.texts.num_columns
    return sum(rows.tokens.numel() for rows in task.texts.packed)


WHAT = """\
What is done for it, none of which changes a feature:

- what stands before the class name, prompts included, is the same for every class, and in a causal tower
  does not depend on what follows: it is computed once a row, and many class names share a row;
- columns behind the end-of-text token of a class are not computed.

"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--architecture", default="ViT-B-16")
    parser.add_argument("--class-names", type=Path, help="file with a name a line; ImageNet's by default")
    parser.add_argument("--num-classes", type=int, default=100, help="the first so many names")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-of", choices=CONTESTANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = list(open_clip.IMAGENET_CLASSNAMES)
    if arguments.class_names:
        names = arguments.class_names.read_text(encoding="utf-8").splitlines()
    names = names[: arguments.num_classes]
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if arguments.memory_of:
        small = make_task(names[:2], 1, arguments.architecture)  # loads what a first step loads
        step(loss_of(arguments.memory_of, small), small)
        del small
        task = make_task(names, arguments.batch_size, arguments.architecture)
        print(peak_rise(loss_of(arguments.memory_of, task), task))
        return
    memory = {name: _memory_alone(name) for name in CONTESTANTS}
    task = make_task(names, arguments.batch_size, arguments.architecture)
    count = sum(parameter.numel() for parameter in task.head.parameters())
    body = (
        f"{arguments.architecture}, batch {arguments.batch_size}, {len(names)} classes, fp32, "
        f"{torch.get_num_threads()} threads; {count:,} parameters are trained. Forward and backward, median "
        f"of {arguments.repeats} interleaved turns.\n\n"
        f"{compare(task, arguments.repeats, memory)}\n{WHAT}## Agreement\n\n{agreement(task)}"
    )
    write_result("prompts", "A step of MaPLe", body, command=["benchmarks/prompts.py", *sys.argv[1:]])


def _memory_alone(contestant: str) -> int:
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", contestant]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


if __name__ == "__main__":
    main()
