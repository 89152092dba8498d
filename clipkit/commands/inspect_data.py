"""The preflight of a data set, as facts and as tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from clipkit.commands.inspect import InspectOptions
from clipkit.console import progress
from clipkit.data.preflight import examine
from clipkit.data.samples import SampleKeys
from clipkit.data.sources import open_sources

_BAR_WIDTH = 40


def facts(path: str, options: InspectOptions, *, show: bool) -> dict[str, Any]:
    """Examine the data at `path`; with `show`, a bar tells how far it is."""
    # Regions are evaluated without captions too: images that have none are told of, but count.
    captions_may_lack = options.regions and not options.labels
    required = "label" if options.labels else "caption"
    keys = SampleKeys(
        image=options.image_keys,
        caption=options.caption_keys,
        require=() if captions_may_lack else (required,),
        fields=options.regions,
        image_column=options.image_column,
        caption_column=options.caption_column,
    )
    source = open_sources({Path(path).name or path: path}, keys, show=show)[0]
    tokenizer, model_length = _tokenizer(options.model)
    total = min(len(source), options.sample or len(source))
    with progress("read samples", total, show=show and total > 0) as meter:
        found = examine(
            source,
            tokenizer=tokenizer,
            context_length=options.context_length or model_length,
            num_samples=options.sample,
            captions_may_lack=captions_may_lack,
            on_read=lambda: meter.advance(),
        )
    rate = found.decode_images_per_second
    return {
        "path": path,
        "usable": found.num_read > found.num_unusable,
        "with_regions": options.regions,
        **found.as_json(),
        "classes": len(source.classnames) if source.classnames else None,
        "ranks": options.ranks,
        "workers_per_rank": options.workers,
        "decode_images_per_second_all_workers": (
            rate * max(1, options.workers) * options.ranks if rate else None
        ),
        "fewer_shards_than_workers": found.num_shards < options.ranks * options.workers,
    }


def _tokenizer(model: str | None) -> tuple[Any, int]:
    """The tokenizer of a model directory or an architecture, and the context length of its text tower."""
    from clipkit.architecture import named_config
    from clipkit.resolve import resolve
    from clipkit.tokenizers import build_tokenizer, context_length_of

    if model is None:
        text_cfg, folder = {}, None
    elif Path(model).is_dir():
        found = resolve(model)
        text_cfg, folder = found.model_cfg["text_cfg"], found.directory
    else:
        text_cfg, folder = named_config(model)[0]["text_cfg"], None
    return build_tokenizer(text_cfg, folder), context_length_of(text_cfg)


def render(facts: dict[str, Any]) -> Iterator[RenderableType]:
    """Tables for a terminal."""
    yield _overview(facts)
    if facts["problems"]:
        table = Table("problem", "count", "for example", title="what cannot be used or looks wrong")
        for reason, count in sorted(facts["problems"].items(), key=lambda item: -item[1]):
            table.add_row(reason, f"{count:,}", Text("\n".join(facts["examples"][reason]), overflow="fold"))
        yield table
    if facts["histogram"]:
        yield _histogram(facts)
    if facts["wrong_convention"]:
        yield Text(facts["wrong_convention"], style="bold red")
    if not facts["usable"]:
        yield Text("nothing usable: check --image-keys and --caption-keys", style="bold red")


def _overview(facts: dict[str, Any]) -> Table:
    table = Table(show_header=False, title=Text(facts["path"]))
    table.add_row("shards", f"{facts['num_shards']:,}")
    table.add_row("samples", f"{facts['num_samples']:,}")
    part = "" if facts["num_read"] == facts["num_samples"] else " (--sample 0 reads all)"
    table.add_row("read here", f"{facts['num_read']:,}{part}")
    table.add_row("unusable of these", f"{facts['num_unusable']:,}")
    if facts["classes"]:
        table.add_row("classes", f"{facts['classes']:,}")
    if facts["image_width"]:
        for side in ("width", "height"):
            table.add_row(f"image {side}", _spread(facts[f"image_{side}"], "pixels"))
        table.add_row("captions per image", _captions(facts["captions_per_image"]))
    if facts["with_regions"]:
        table.add_row("images with regions", _regions(facts))
    if facts["tokens"]:
        table.add_row("caption length", _spread(facts["tokens"], "tokens"))
        share = facts["num_captions_cut"] / facts["num_captions"]
        cut = f"{facts['num_captions_cut']:,} of {facts['num_captions']:,} ({share:.1%})"
        table.add_row(f"captions over {facts['context_length']} tokens", cut)
    table.add_row("duplicate images", f"{facts['num_duplicate_images']:,}")
    table.add_row("duplicate captions", f"{facts['num_duplicate_captions']:,}")
    if facts["decode_images_per_second"]:
        rate, total = facts["decode_images_per_second"], facts["decode_images_per_second_all_workers"]
        readers = f"{facts['ranks']} rank(s) x {facts['workers_per_rank']} worker(s)"
        table.add_row("decode", f"{rate:,.0f} images/s a process, at most {total:,.0f} with {readers}")
    if facts["fewer_shards_than_workers"]:
        table.add_row("shards and workers", "fewer shards than workers; fine here, not in open_clip")
    return table


def _histogram(facts: dict[str, Any]) -> Table:
    table = Table("tokens", "captions", "", title="caption length")
    most = max(count for _, _, count in facts["histogram"])
    for low, high, count in facts["histogram"]:
        is_cut = low > facts["context_length"]
        if is_cut and count == 0:
            continue
        bar = Text("█" * round(_BAR_WIDTH * count / most), style="red" if is_cut else "green")
        table.add_row(f"{low}-{high}{' cut' if is_cut else ''}", f"{count:,}", bar)
    return table


def _spread(values: dict[str, float], unit: str) -> str:
    return f"{values['min']:.0f} to {values['max']:.0f} {unit}, median {values['median']:.0f}"


def _regions(facts: dict[str, Any]) -> str:
    number = f"{facts['num_images_with_regions']:,}"
    return (
        f"{number}; {_spread(facts['regions_per_image'], 'each')}" if facts["regions_per_image"] else number
    )


def _captions(images_by_captions: dict[int, int]) -> str:
    if len(images_by_captions) == 1:
        return str(next(iter(images_by_captions)))
    mean = sum(n * images for n, images in images_by_captions.items()) / sum(images_by_captions.values())
    return f"{min(images_by_captions)} to {max(images_by_captions)}, mean {mean:.1f}"
