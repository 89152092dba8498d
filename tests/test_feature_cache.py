from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clipkit.feature_cache import FeatureCache, content_key


def _features(count: int, seed: int = 0) -> dict[bytes, torch.Tensor]:
    rows = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return {content_key("text", str(number).encode()): row for number, row in enumerate(rows)}


def test_what_was_written_is_read_bit_for_bit(tmp_path: Path) -> None:
    features = _features(1_200)  # more than one query asks for
    FeatureCache(tmp_path / "a.sqlite", 6).write(features)
    found = FeatureCache(tmp_path / "a.sqlite", 6).read([*features, content_key("text", b"unknown")])
    assert found.keys() == features.keys()
    assert all(torch.equal(found[key], features[key]) for key in features)


def test_the_last_value_of_a_key_stays(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "a.sqlite", 6)
    cache.write(_features(3))
    cache.write(_features(2, seed=1))
    first, _, last = _features(3)
    found = cache.read([first, last])
    assert torch.equal(found[first], _features(2, seed=1)[first])
    assert torch.equal(found[last], _features(3)[last])


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "a.sqlite", 6)
    features = _features(2)
    broken = {**features, b"bad": None}
    with pytest.raises(AttributeError):
        cache.write(broken)  # type: ignore[arg-type]
    assert cache.read(features) == {}


def test_keys_tell_kind_and_content_apart() -> None:
    assert len({content_key(kind, content) for kind in ("image", "text") for content in (b"a", b"b")}) == 4
    assert content_key("text", b"a") == content_key("text", b"a")


def test_models_do_not_share_features(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    FeatureCache.of_model("a" * 64, 6).write(_features(1))
    assert FeatureCache.of_model("b" * 64, 6).read(_features(1)) == {}
    assert len(FeatureCache.of_model("a" * 64, 6).read(_features(1))) == 1
    # Features of another width under the same name are no features of this model.
    assert FeatureCache.of_model("a" * 64, 7).read(_features(1)) == {}
