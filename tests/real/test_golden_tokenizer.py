"""The CLIP tokenizer against openai/CLIP's own ids."""

import json

from shared_data import shared_data

import clipkit

# openai/CLIP turns special tokens that are typed in a text into their ids. open_clip, on which these ids were
# recorded, spells its special tokens differently and reads the typed ones as ordinary text: no caption can
# end itself early.
TYPED_SPECIAL = "<|startoftext|> inside <|endoftext|>"


def test_token_ids_of_525_texts():
    rows = json.loads((shared_data("golden_generated") / "tokenizer_clip_bpe.json").read_text())
    assert len(rows) == 525
    tokenizer = clipkit.create("test-vit", context_length=77).tokenizer
    found = tokenizer([row["text"] for row in rows]).tolist()
    assert [row["text"] for row, ids in zip(rows, found, strict=True) if ids != row["clip77"]] == []
    typed = found[[row["text"] for row in rows].index(TYPED_SPECIAL)]
    assert typed.count(49406) == typed.count(49407) == 1
