"""Features of an evaluation set, computed by all ranks together, and the metrics that read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from clipkit import metrics, packed_texts
from clipkit.distributed import all_gather_rows
from clipkit.model import DualEncoder
from clipkit.text_towers import needed_lengths

DEFAULT_TEMPLATES = ("a photo of a {c}.",)

_TOKENS_PER_TEXT = 16
"""What a batch of texts is planned with, for rows that hold several."""

Autocast = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, kw_only=True)
class EncodedSet:
    """Features of a whole evaluation set in the order of its samples, on the CPU."""

    image_features: Tensor
    """(N, D) fp32, L2-normalised."""
    index: Tensor
    """(N,) int64, each image's place in its source; rising, with gaps where samples were unusable."""
    text_features: Tensor
    """(T, D) fp32, L2-normalised; all captions of all images, empty without captions."""
    image_of_text: Tensor
    """(T,) int64, row of `image_features` that each text describes."""
    labels: Tensor
    """(N,) int64, -1 where a sample has no label."""

    def retrieval_metrics(self) -> dict[str, float]:
        """Recall and mean rank both ways, see `metrics.retrieval_metrics`."""
        return metrics.retrieval_metrics(self.image_features, self.text_features, self.image_of_text)

    def classification_metrics(self, classes: Tensor) -> dict[str, float]:
        """Zero-shot accuracy.

        Args:
            classes: (C, D), a unit vector per class, from `class_features`.

        Returns:
            `top1` and, with more than five classes, `top5`, as fractions.

        Raises:
            ValueError: a label is no class.
        """
        if int(self.labels.min()) < 0 or int(self.labels.max()) >= classes.shape[0]:
            raise ValueError(
                f"labels must be 0 to {classes.shape[0] - 1} for {classes.shape[0]} class names, got "
                f"{int(self.labels.min())} to {int(self.labels.max())}; check classnames.txt"
            )
        logits = self.image_features @ classes.T
        return {
            f"top{k}": metrics.topk_accuracy(logits, self.labels, k)
            for k in (1, 5)
            if k == 1 or k < classes.shape[0]
        }


@torch.inference_mode()
def encode_set(
    model: DualEncoder,
    batches: Iterable[Mapping[str, Any]],
    *,
    device: torch.device,
    autocast: Autocast = nullcontext,
    with_text: bool = True,
) -> EncodedSet:
    """Encode this rank's batches and gather those of all ranks.

    Args:
        model: put in evaluation mode for the duration.
        batches: of `clipkit.data.build_eval_loader`.
        device: where the model is.
        autocast: precision of the towers; features are normalised in fp32.
        with_text: whether to encode the captions.

    Returns:
        The whole set, the same on every rank.
    """
    empty = torch.empty(0, model.embed_dim, device=device)
    none = torch.empty(0, dtype=torch.int64, device=device)
    images, texts = [empty], [empty]
    index, text_index, labels = [none], [none], [none]
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            with autocast():
                images.append(model.encode_image(batch["image"].to(device)))
            index.append(batch["index"].to(device))
            label = batch["label"]
            labels.append(torch.full_like(index[-1], -1) if label is None else label.to(device))
            if with_text:
                captions = [caption for captions in batch["captions"] for caption in captions]
                texts.append(encode_texts(model, captions, device=device, autocast=autocast))
                per_image = torch.tensor([len(captions) for captions in batch["captions"]], device=device)
                text_index.append(index[-1].repeat_interleave(per_image))
    finally:
        model.train(was_training)
    return _in_order(
        *(all_gather_rows(torch.cat(part)) for part in (images, index, texts, text_index, labels))
    )


def _in_order(images: Tensor, index: Tensor, texts: Tensor, text_index: Tensor, labels: Tensor) -> EncodedSet:
    """Sort the gathered rows by sample, so that the number of ranks leaves no trace."""
    index, by_index = index.cpu().sort()
    text_index, by_text_index = text_index.cpu().sort(stable=True)
    return EncodedSet(
        image_features=torch.nn.functional.normalize(images.float().cpu()[by_index], dim=-1),
        index=index,
        text_features=torch.nn.functional.normalize(texts.float().cpu()[by_text_index], dim=-1),
        image_of_text=torch.searchsorted(index, text_index),
        labels=labels.cpu()[by_index],
    )


def encode_texts(
    model: DualEncoder,
    texts: Sequence[str],
    *,
    device: torch.device,
    autocast: Autocast = nullcontext,
    batch_size: int = 256,
    progress: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """Text features in batches, unnormalised.

    A text that occurs several times is encoded once. In a causal tower, texts that begin alike share the
    computation of their beginning (see `packed_texts`); else, texts of like length share a batch.

    Args:
        model: evaluated as it is.
        texts: T of them.
        device: where the model is.
        autocast: precision of the tower.
        batch_size: texts encoded at once.
        progress: called with the number of texts that a batch has settled.

    Returns:
        (T, D) fp32 on `device`.
    """
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    features = torch.empty(len(places), model.embed_dim, device=device)
    if not places:
        return features
    tokens = model.tokenizer(list(places))
    occurrences = torch.tensor([places[text] for text in texts])
    counts = torch.bincount(occurrences, minlength=len(places))
    for batch, encode in _text_batches(model, tokens, batch_size):
        with autocast():
            features[batch.to(device)] = encode().float()
        progress(int(counts[batch].sum()))
    return features[occurrences.to(device)]


def _text_batches(
    model: DualEncoder, tokens: Tensor, batch_size: int
) -> Iterator[tuple[Tensor, Callable[[], Tensor]]]:
    """Places of some texts, and what computes their features, until all texts have been given."""
    lengths = needed_lengths(model.model, tokens)
    if packed_texts.can_pack(model.model):
        ids, ends = tokens.numpy(), lengths.numpy()
        rows = packed_texts.plan_rows(ids, ends)
        for some in packed_texts.batches(rows, batch_size * _TOKENS_PER_TEXT):
            packed = packed_texts.pack(some, ids, ends)
            yield packed.texts, partial(packed_texts.encode_packed, model.model, packed)
    else:
        for batch in torch.split(lengths.argsort(stable=True), batch_size):
            yield batch, partial(model.encode_text, tokens[batch])


@torch.inference_mode()
def class_features(
    model: DualEncoder,
    classnames: Sequence[str],
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    *,
    device: torch.device,
    autocast: Autocast = nullcontext,
) -> Tensor:
    """Zero-shot classifier weights (CLIP, arXiv:2103.00020, section 3.1.4).

    Per class, the mean of its prompts' unit vectors, normalised again. All prompts of all classes are
    encoded in shared batches.

    Args:
        model: evaluated as it is; call `eval()` before.
        classnames: C names.
        templates: P prompts in which `{c}` stands for the name.
        device: where the model is.
        autocast: precision of the text tower.

    Returns:
        (C, D) fp32 unit vectors on the CPU.

    Raises:
        ValueError: a template lacks `{c}`.
    """
    lacking = [template for template in templates if "{c}" not in template]
    if lacking or not templates:
        raise ValueError(f"a template needs {{c}} where the class name goes, got {lacking[:1] or 'none'}")
    prompts = [template.replace("{c}", name) for name in classnames for template in templates]
    features = encode_texts(model, prompts, device=device, autocast=autocast).cpu()
    unit = torch.nn.functional.normalize(features, dim=-1)
    means = unit.reshape(len(classnames), len(templates), -1).mean(dim=1)
    return torch.nn.functional.normalize(means, dim=-1)
