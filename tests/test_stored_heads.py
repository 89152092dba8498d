from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clipkit.zeroshot.stored_heads import read_head
from safetensors.torch import save_file

ROWS = np.array([[3, 4], [0, -2], [1, 1]], dtype=np.float16)
UNIT = torch.tensor([[0.6, 0.8], [0, -1], [0.5**0.5, 0.5**0.5]])
NAMES = ["cat", "red fox", "dog"]


def write_head(folder: Path, suffix: str, rows: np.ndarray = ROWS, array: str = "birds") -> Path:
    path = folder / f"head{suffix}"
    if suffix == ".npy":
        np.save(path, rows)
    elif suffix == ".npz":
        np.savez(path, **{array: rows})
    else:
        save_file({array: torch.from_numpy(rows)}, path)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_heads_by_hand(tmp_path: Path, suffix: str, dtype: str) -> None:
    path = write_head(tmp_path, suffix, ROWS.astype(dtype))
    (tmp_path / "head.txt").write_text("cat\nred fox\ndog\n\n")
    head = read_head(str(path), embed_dim=2)
    assert head.weights.dtype == torch.float32
    torch.testing.assert_close(head.weights, UNIT)
    assert head.prompt_set.class_names == head.prompt_set.prompts == tuple(NAMES)
    scores = head.scores(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert scores.argmax(dim=1).tolist() == [2, 0]


def test_bfloat16_and_other_byte_orders(tmp_path: Path) -> None:
    save_file({"head": torch.from_numpy(ROWS).bfloat16()}, tmp_path / "a.safetensors")
    np.save(tmp_path / "b.npy", ROWS.astype(">f4"))
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    for name in ("a.safetensors", "b.npy"):
        head = read_head(str(tmp_path / name), names=tmp_path / "names.txt")
        torch.testing.assert_close(head.weights, UNIT)


@pytest.mark.parametrize(("dtype", "factor"), [("float16", 1000), ("float32", 1e30), ("float64", 1e-30)])
def test_rows_of_any_length_become_unit_vectors(tmp_path: Path, dtype: str, factor: float) -> None:
    """The square of 3,000 is no half-precision number."""
    path = write_head(tmp_path, ".npy", ROWS.astype(dtype) * np.dtype(dtype).type(factor))
    (tmp_path / "head.txt").write_text("\n".join(NAMES))
    torch.testing.assert_close(read_head(str(path)).weights, UNIT)


def test_one_of_several_arrays(tmp_path: Path) -> None:
    path = tmp_path / "heads.npz"
    np.savez(path, birds=ROWS, fish=ROWS[:2])
    (tmp_path / "heads.json").write_text(
        json.dumps({"birds": NAMES, "fish": ["cod", "eel"], "prompt": "a {}"})
    )
    assert read_head(f"{path}:fish").prompt_set.class_names == ("cod", "eel")
    assert read_head(f"{path}:birds").weights.shape == (3, 2)
    with pytest.raises(
        ValueError, match=r"needs the name of an array: give heads\.npz:ARRAY, of birds, fish"
    ):
        read_head(str(path))
    with pytest.raises(ValueError, match=r"has no array 'bird': give heads\.npz:ARRAY, of birds, fish"):
        read_head(f"{path}:bird")


@pytest.mark.parametrize(
    "content", [NAMES, {"classnames": NAMES}, {"birds": NAMES}, {"birds": NAMES, "classnames": []}]
)
def test_names_in_json(tmp_path: Path, content: Any) -> None:
    path = write_head(tmp_path, ".npz")
    (tmp_path / "head.json").write_text(json.dumps(content))
    assert read_head(str(path)).prompt_set.class_names == tuple(NAMES)


def test_a_head_of_another_width_is_refused(tmp_path: Path) -> None:
    path = write_head(tmp_path, ".npy")
    (tmp_path / "head.txt").write_text("\n".join(NAMES))
    with pytest.raises(ValueError, match="holds features of width 2, the model's have width 512"):
        read_head(str(path), embed_dim=512)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[0], r"a row of floating-point numbers for each class, got \(2,\) of float16"),
        (ROWS.astype(np.int32), r"got \(3, 2\) of int32"),
        (ROWS[:2], "has 2 rows for the 3 names in .*names.txt$"),
        (ROWS[:2].repeat(2, axis=1)[:, :3], "2 rows for the 3 names in .*; it is turned: transpose it"),
        (np.array([[1, 2], [0, 0], [1, 0]], dtype=np.float32), "row 1 is zero or not finite"),
        (np.array([[1, 2], [0, 1], [np.nan, 0]], dtype=np.float32), "row 2 is zero or not finite"),
        (np.array([["a"], ["b"], ["c"]]), "no readable .npy of numbers"),
        (np.array([{}], dtype=object), "no readable .npy of numbers: Object arrays cannot be loaded"),
    ],
)
def test_rows_that_are_no_head(tmp_path: Path, rows: np.ndarray, message: str) -> None:
    np.save(tmp_path / "head.npy", rows, allow_pickle=True)
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    with pytest.raises(ValueError, match=message) as raised:
        read_head(str(tmp_path / "head.npy"), names=tmp_path / "names.txt")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "does not parse as JSON"),
        (
            '{"fish": ["cod", "eel"]}',
            "must hold a list of class names, or have one under 'birds' or 'classname",
        ),
        ("[1, 2, 3]", "must hold a list of class names"),
        ('["cat", "dog", "CAT"]', "lists 'cat' more than once"),
        ('["cat", "", "dog"]', "has 3 rows for the 2 names"),
    ],
)
def test_names_that_are_none(tmp_path: Path, content: str, message: str) -> None:
    path = write_head(tmp_path, ".npz")
    (tmp_path / "head.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_head(str(path))


def test_files_that_are_not_there_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a head is a file of \.npz, \.npy, \.safetensors.* got head\.pt"):
        read_head("head.pt")
    with pytest.raises(FileNotFoundError, match=r"no stored head at .*head\.npy"):
        read_head(str(tmp_path / "head.npy"))
    path = write_head(tmp_path, ".npy")
    with pytest.raises(FileNotFoundError, match=r"write them to head\.txt beside it, one a line"):
        read_head(str(path))
    for suffix in (".npy", ".npz", ".safetensors"):
        path = write_head(tmp_path, suffix)
        path.write_bytes(path.read_bytes()[:-3])
        with pytest.raises(ValueError, match="no readable"):
            read_head(str(path))
        path.write_bytes(b"")
        with pytest.raises(ValueError, match="no readable"):
            read_head(str(path))
