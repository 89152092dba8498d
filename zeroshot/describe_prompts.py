"""What an LLM is asked about a class, and the list in its answer (DCLIP, arXiv:2210.07183, section 2.1)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from clipkit.json_files import canonical_json

DEFAULT_PROMPTS = """\
# What `clipkit describe` sends for each class. {c} stands for the class name; all else is sent as it is.
# The lines of the answer that begin with "-", "*", "•" or "1." become the descriptors of the class.
messages:
  - role: system
    content: >-
      You list what can be seen. For each question, answer with five to eight lines and nothing else. Each
      line begins with "- " and holds one short visible feature, without an article in front, without the name
      of the thing, and without what cannot be seen in a single photo.
  - role: user
    content: "Which visible features help to tell that a photo shows this: lemur?"
  - role: assistant
    content: |-
      - slender body with thick, soft fur
      - grey, brown, black or white coat
      - long bushy tail, often with dark rings
      - pointed muzzle with a moist nose
      - round eyes in yellow or orange
      - hands and feet that grip branches
  - role: user
    content: "Which visible features help to tell that a photo shows this: television?"
  - role: assistant
    content: |-
      - flat panel in a thin frame
      - wide rectangular screen, dark when it is off
      - feet to stand on, or a bracket on a wall
      - black or silver casing
      - cables that lead to a socket
      - small lamp or brand name below the screen
  - role: user
    content: "Which visible features help to tell that a photo shows this: {c}?"
# Other fields of the request. A reasoning model may need `max_completion_tokens` instead of these two.
request:
  temperature: 0
  max_tokens: 400
"""

_OWN_FIELDS = ("model", "messages", "stream", "n")
_THOUGHTS = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_LIST_LINE = re.compile(r"\s*(?:[-*•]|\d{1,3}[.)](?=\s))\s*(.*)")


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The messages for a class, and the settings of the request. Made by `read` or `of`."""

    messages: tuple[tuple[str, str], ...]
    """Role and content; `{c}` in a content stands for the class name."""
    request: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the request body."""

    @classmethod
    def read(cls, path: Path | None) -> Prompts:
        """Prompts from a YAML file such as `DEFAULT_PROMPTS`, or from any other file as one message.

        Args:
            path: None for the default.

        Raises:
            ValueError: the file does not parse, or lacks messages or a place for the class name.
            OSError: it cannot be read.
        """
        if path is None:
            return cls.of(yaml.safe_load(DEFAULT_PROMPTS))
        try:
            text = path.read_text(encoding="utf-8-sig")
            if path.suffix.lower() in (".yaml", ".yml"):
                return cls.of(yaml.safe_load(text))
            return cls.of({"messages": [{"role": "user", "content": text.strip()}]} | _DEFAULT_REQUEST)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} does not parse: {error}") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def of(cls, content: Any) -> Prompts:
        """Prompts from the content of a YAML file.

        Raises:
            ValueError: as of `read`.
        """
        if not isinstance(content, dict) or not set(content) <= {"messages", "request"}:
            raise ValueError("expected the keys `messages` and `request`; --write-prompts shows the form")
        messages, request = content.get("messages"), content.get("request") or {}
        if not isinstance(messages, list) or not all(map(_is_message, messages)):
            raise ValueError("`messages` must be a list of {role: ..., content: ...}, both of them texts")
        if not any("{c}" in message["content"] for message in messages):
            raise ValueError("the messages need {c} where the class name goes")
        if not isinstance(request, dict) or set(request) & set(_OWN_FIELDS):
            raise ValueError(f"`request` must be a mapping without {', '.join(_OWN_FIELDS)}, got {request}")
        try:
            canonical_json(request)
        except TypeError as error:
            raise ValueError(f"`request` must hold what JSON can: {error}") from None
        pairs = tuple((message["role"], message["content"]) for message in messages)
        return cls(messages=pairs, request=request)

    @property
    def digest(self) -> str:
        """SHA-256 of everything that is sent but the class name and the name of the LLM."""
        text = canonical_json({"messages": self.messages, "request": self.request})
        return hashlib.sha256(text.encode()).hexdigest()

    def body(self, llm: str, name: str) -> dict[str, Any]:
        """The request to a `chat/completions` endpoint about a class."""
        messages = [{"role": role, "content": _filled(content, name)} for role, content in self.messages]
        return {**self.request, "model": llm, "messages": messages}

    def by_hand(self, name: str) -> str:
        """All of it as one text, to be pasted into a chat."""
        if len(self.messages) == 1:
            return _filled(self.messages[0][1], name)
        marks = {"user": "Q: ", "assistant": "A:\n"}
        parts = [marks.get(role, "") + _filled(content, name) for role, content in self.messages]
        return "\n\n".join(parts) + "\n\nA:"


def parse_descriptors(text: str, *, is_cut: bool = False) -> tuple[str, ...]:
    """The descriptors in an answer: its lines that begin with "-", "*", "•" or a number, each once.

    Bold marks, stops at the end, headings (lines that end in a colon) and the thoughts of reasoning models
    are left out.

    Args:
        text: of the answer.
        is_cut: the answer was cut at the limit of tokens, so that its last line is not whole.
    """
    lines = _THOUGHTS.sub("", text).replace("**", "").splitlines()
    if is_cut:
        lines = lines[:-1]
    found = [match[1] for match in map(_LIST_LINE.match, lines) if match]
    # Lone surrogates, which JSON can hold, cannot be written to a file.
    cleaned = (" ".join(line.encode("utf-8", "replace").decode().split()).rstrip(" .;,") for line in found)
    kept = [line for line in cleaned if not line.endswith(":") and any(map(str.isalnum, line))]
    return tuple(dict.fromkeys(kept))


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and set(message) == {"role", "content"}
        and all(isinstance(value, str) for value in message.values())
    )


def _filled(content: str, name: str) -> str:
    return content.replace("{c}", name.replace("_", " "))


_DEFAULT_REQUEST: dict[str, Any] = {"request": yaml.safe_load(DEFAULT_PROMPTS)["request"]}
