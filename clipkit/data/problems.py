"""Why a sample cannot be used: the fixed vocabulary, and counts with a few examples of each.

found while indexing   missing image, missing caption, missing label, duplicate key, duplicate member,
truncated tar, unreadable tar, wrong sizes.json
found while reading    empty caption, missing caption (a field of a json member), unreadable json,
undecodable text, missing file, bad region, and the reasons of `clipkit.images`
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from clipkit import images

MISSING_IMAGE = "missing image"
MISSING_CAPTION = "missing caption"
MISSING_LABEL = "missing label"
MISSING_FILE = "missing file"
EMPTY_CAPTION = "empty caption"
UNREADABLE_JSON = "unreadable json"
UNDECODABLE_TEXT = "undecodable text"
DUPLICATE_KEY = "duplicate key"
DUPLICATE_MEMBER = "duplicate member"
TRUNCATED_TAR = "truncated tar"
UNREADABLE_TAR = "unreadable tar"
WRONG_SIZES = "wrong sizes.json"
BAD_REGION = "bad region"

INDEX_REASONS = (
    MISSING_IMAGE,
    MISSING_CAPTION,
    MISSING_LABEL,
    DUPLICATE_KEY,
    DUPLICATE_MEMBER,
    TRUNCATED_TAR,
    UNREADABLE_TAR,
    WRONG_SIZES,
)
READ_REASONS = (
    EMPTY_CAPTION,
    MISSING_CAPTION,
    UNREADABLE_JSON,
    UNDECODABLE_TEXT,
    MISSING_FILE,
    MISSING_LABEL,
    BAD_REGION,
    *images.IMAGE_REASONS,
)
NUM_EXAMPLES = 3


class SampleError(ValueError):
    """One sample cannot be used; `reason` is one of `READ_REASONS`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass
class Problems:
    """Counts by reason, with the first few places where each was met."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, examples: Iterable[str], count: int = 1) -> None:
        """Count `reason` another `count` times; only the first `NUM_EXAMPLES` examples are kept."""
        if count == 0:
            return
        self.counts[reason] = self.counts.get(reason, 0) + count
        kept = self.examples.setdefault(reason, [])
        for example in examples:
            if len(kept) == NUM_EXAMPLES:
                break
            kept.append(example)

    def update(self, other: Problems) -> None:
        """Add everything that `other` counted."""
        for reason, count in other.counts.items():
            self.add(reason, other.examples[reason], count)


def describe_counts(counts: Mapping[str, int]) -> str:
    """`2 corrupt image, 1 empty caption`, the most frequent first; `none` without any."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {reason}" for reason, count in ordered) or "none"
