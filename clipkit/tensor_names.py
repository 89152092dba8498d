"""Where each parameter of a module is in a checkpoint that has other names, and filling all of it in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from clipkit.checkpoints import Tensors, differences
from clipkit.suggestions import did_you_mean


@dataclass(frozen=True, kw_only=True)
class StoredParameter:
    """How one parameter is put together."""

    names: tuple[str, ...]
    """Tensors of the checkpoint, joined by their rows."""
    transpose: bool

    def take(self, tensors: Tensors, shape: torch.Size) -> Tensor:
        """The parameter in fp32; in `shape` where it differs only in dimensions of size 1."""
        parts = [tensors[name].float() for name in self.names]
        value = parts[0] if len(parts) == 1 else torch.cat(parts)
        value = value.t() if self.transpose and value.ndim == 2 else value
        same = [side for side in value.shape if side != 1] == [side for side in shape if side != 1]
        return value.reshape(shape) if same else value


class TensorNames:
    """A mapping from parameters to the tensors of a checkpoint.

    A key is a parameter, `{layer}` standing for the number of a block, or a module, for its `weight` and
    `bias`. A value is the name of a tensor (or module); `{"name": ..., "transpose": true}` where the matrix
    is stored the other way round; a list of names whose rows are joined, `{head}` standing for the numbers
    of all heads in turn.
    """

    def __init__(self, names: Mapping[str, Any]) -> None:
        """Check the mapping.

        Raises:
            ValueError: a value is none of the above.
        """
        for key, value in names.items():
            _check_value(key, value)
        self._names = dict(names)

    def __contains__(self, parameter: str) -> bool:
        return self._key(parameter) is not None

    def find(self, parameter: str, heads: int) -> StoredParameter:
        """Where a parameter is.

        Args:
            parameter: its name in the module.
            heads: of the tower that it belongs to.

        Raises:
            KeyError: it has no entry, see `check`.
        """
        key = self._key(parameter)
        if key is None:
            raise KeyError(parameter)
        value = self._names[key]
        stored = value["name"] if isinstance(value, Mapping) else value
        leaf = "" if key in (parameter, _of_any_layer(parameter)) else f".{parameter.rpartition('.')[2]}"
        layer = re.search(r"\.blocks\.(\d+)\.", parameter)
        found = [
            f"{name}{leaf}".replace("{layer}", layer[1] if layer else "{layer}")
            for pattern in (stored if isinstance(stored, list | tuple) else [stored])
            for name in _per_head(pattern, heads)
        ]
        transpose = isinstance(value, Mapping) and bool(value.get("transpose"))
        return StoredParameter(names=tuple(found), transpose=transpose)

    def check(self, parameters: Iterable[str], others: Sequence[str] = ()) -> None:
        """Refuse a parameter without an entry, and an entry for what is no parameter.

        Args:
            parameters: of the module.
            others: keys that mean something else.

        Raises:
            ValueError: with the name, and with the nearest that there is.
        """
        keys = {parameter: self._key(parameter) for parameter in parameters}
        for key in self._names:
            if key not in (*keys.values(), *others):
                hint = did_you_mean(key, map(_of_any_layer, keys))
                raise ValueError(f"names has '{key}', which is no parameter{hint}")
        without = [parameter for parameter, key in keys.items() if key is None]
        if without:
            raise ValueError(f"names has no entry for {', '.join(without[:3])}")

    def _key(self, parameter: str) -> str | None:
        return next((key for key in _keys(parameter) if key in self._names), None)


def fill(
    module: nn.Module,
    tensors: Tensors,
    names: TensorNames,
    *,
    heads_of: Callable[[str], int],
    also: Sequence[str] = (),
    ignored: Sequence[str] = (),
    origin: str,
) -> None:
    """Copy a checkpoint into a module, all of it.

    Args:
        module: to be filled.
        tensors: of the checkpoint.
        names: where the parameters are.
        heads_of: the number of heads by the name of a parameter.
        also: tensors that somebody else uses.
        ignored: patterns of tensors that nobody uses.
        origin: what the tensors came from, for messages.

    Raises:
        ValueError: tensors that are missing, not used, or of another shape, by name.
    """
    expected = module.state_dict()
    stored = {name: names.find(name, heads_of(name)) for name in expected}
    needed = {name for one in stored.values() for name in one.names} | set(also)
    left = {
        name: tensor
        for name, tensor in tensors.items()
        if name in needed or not any(fnmatchcase(name, pattern) for pattern in ignored)
    }
    problem = differences({name: left.get(name, torch.empty(0)) for name in sorted(needed)}, left)
    if problem:
        raise ValueError(f"{origin} holds other tensors than its description names: {problem}")
    try:
        found = {name: one.take(tensors, expected[name].shape) for name, one in stored.items()}
    except RuntimeError as error:
        raise ValueError(f"{origin}: tensors that are to be joined differ in width: {error}") from None
    problem = differences(expected, found)
    if problem:
        raise ValueError(f"{origin} is of another architecture than its description says: {problem}")
    module.load_state_dict(found)


def _check_value(key: str, value: Any) -> None:
    stored = value
    if isinstance(value, Mapping) and set(value) <= {"name", "transpose"}:
        stored = value.get("name")
    patterns = stored if isinstance(stored, list | tuple) else [stored]
    if not patterns or not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise ValueError(
            f'names: {key} must be a name, a list of names, or {{"name": ..., "transpose": true}}, '
            f"got {value!r}"
        )


def _per_head(pattern: str, heads: int) -> Iterable[str]:
    return (pattern.replace("{head}", str(head)) for head in range(heads if "{head}" in pattern else 1))


def _keys(parameter: str) -> Iterator[str]:
    """`image.blocks.3.norm1.bias`, the same with `{layer}`, and both without the last part."""
    for name in (parameter, _of_any_layer(parameter)):
        yield name
        owner, _, leaf = name.rpartition(".")
        if leaf in ("weight", "bias"):
            yield owner


def _of_any_layer(parameter: str) -> str:
    return re.sub(r"\.blocks\.\d+\.", ".blocks.{layer}.", parameter)
