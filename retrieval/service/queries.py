"""From the parts of a query to one unit vector."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .bodies import image_bytes
from .catalog import Served
from .engine import Engine
from .forms import KINDS, Part
from .refusal import Refusal
from .towers import Vector

_TINY = 1e-6


async def part_vectors(engine: Engine, parts: Sequence[Part], served: Served | None) -> list[Vector]:
    """Unit vectors (D,) of parts; their texts and pictures are encoded with those of other requests.

    Args:
        engine: what encodes.
        parts: each of one kind.
        served: the index that ids mean; None where there can be none.

    Raises:
        Refusal: 400, a part is of no use; 404, an id is not there.
    """
    limit = engine.settings.max_inputs
    if len(parts) > limit:
        raise Refusal(400, f"at most {limit} parts, got {len(parts)}")
    for part in parts:
        _check(engine, part)
    places = [place for place, part in enumerate(parts) if part.text is not None]
    wanted = engine.texts([parts[place].text or "" for place in places])
    if len(places) == len(parts):
        return await wanted
    texts, others = await asyncio.gather(
        wanted, asyncio.gather(*(_vector(engine, part, served) for part in parts if part.text is None))
    )
    by_place = dict(zip(places, texts, strict=True))
    remaining = iter(others)
    return [by_place[place] if place in by_place else next(remaining) for place in range(len(parts))]


async def query_vector(
    engine: Engine,
    parts: Sequence[Part],
    served: Served,
    *,
    files: Sequence[bytes] = (),
    file_weight: float = 1.0,
) -> Vector:
    """The weighted sum of the unit vectors of parts and image files, as a unit vector (D,).

    Raises:
        Refusal: there is no part, one is of no use, or they cancel each other.
    """
    if not parts and not files:
        raise Refusal(400, f"the query is empty: give one of {', '.join(KINDS)}, or queries")
    named = part_vectors(engine, parts, served)
    if files:
        found, pictures = await asyncio.gather(named, asyncio.gather(*map(engine.image, files)))
        vectors = [*found, *pictures]
    else:
        vectors = await named
    weights = [part.weight for part in parts] + [file_weight] * len(files)
    total = np.asarray(weights) @ np.stack(vectors)
    return _unit(total, "the parts of the query cancel each other: change their weights")


def _check(engine: Engine, part: Part) -> None:
    given = [kind for kind in KINDS if getattr(part, kind) is not None]
    if len(given) != 1:
        raise Refusal(
            400, f"a part of a query is one of {', '.join(KINDS)}; got {', '.join(given) or 'none'}"
        )
    if part.text is not None:
        check_text(engine, part.text)


def check_text(engine: Engine, text: str) -> None:
    """Refuse a text of no use.

    Raises:
        Refusal: 400, it is blank, too long, or no Unicode.
    """
    limit = engine.settings.max_text_chars
    if not text.strip():
        raise Refusal(400, "the text is empty")
    if len(text) > limit:
        raise Refusal(400, f"a text has at most {limit} characters, got {len(text)}")
    if any(0xD800 <= ord(char) < 0xE000 for char in text):
        raise Refusal(400, "the text is no Unicode: it has half a surrogate pair")


async def _vector(engine: Engine, part: Part, served: Served | None) -> Vector:
    if part.image is not None:
        return await engine.image(image_bytes(part.image))
    if part.image_url is not None:
        return await engine.image_at(part.image_url)
    if part.embedding is not None:
        if len(part.embedding) != engine.towers.embed_dim:
            raise Refusal(
                400, f"an embedding has {engine.towers.embed_dim} numbers here, got {len(part.embedding)}"
            )
        return _unit(np.asarray(part.embedding, dtype=np.float64), "an embedding must not be all zeros")
    if served is None or part.id is None:
        raise Refusal(400, "an id means nothing here")
    return _unit((await engine.vectors(served, [part.id]))[0], f"row {part.id} has no vector")


def _unit(vector: npt.NDArray[np.floating[Any]], complaint: str) -> Vector:
    norm = float(np.linalg.norm(vector))
    if not np.isfinite(norm) or norm < _TINY:
        raise Refusal(400, complaint)
    unit: Vector = (vector / norm).astype(np.float32)
    return unit
