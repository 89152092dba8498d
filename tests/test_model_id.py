import pytest
import torch

from clipkit.model_id import model_id


def test_the_id_is_of_names_types_shapes_and_settings():
    settings = {"model_cfg": {"b": 1, "a": [1, 2]}, "preprocess_cfg": {}, "tokenizer": {}}
    ones = torch.ones(2, 3)
    reference = model_id([("a", ones), ("b", ones)], **settings)
    assert reference == model_id([("a", ones.T.contiguous().T), ("b", ones.clone())], **settings)
    assert reference == model_id(
        [("a", ones), ("b", ones)], **{**settings, "model_cfg": {"a": (1, 2), "b": 1}}
    )
    for tensors in (
        [("a", ones), ("c", ones)],
        [("a", ones), ("b", ones.view(3, 2))],
        [("a", ones), ("b", ones.view(torch.int32))],
        [("a", ones), ("b", ones + 1e-7)],
    ):
        assert model_id(tensors, **settings) != reference
    with pytest.raises(ValueError, match="sorted by name"):
        model_id([("b", ones), ("a", ones)], **settings)
