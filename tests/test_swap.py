import os

import pytest

from clipkit.swap import replacing_directory


@pytest.mark.parametrize("one_step", [True, False])
def test_a_directory_is_replaced_whole(one_step, tmp_path, monkeypatch):
    if not one_step:
        monkeypatch.setattr("ctypes.CDLL", lambda *args, **kwargs: object())
    target = tmp_path / "target"
    for content in ("old", "new"):
        with replacing_directory(target) as folder:
            (folder / content).write_text(content)
            assert not (target / content).exists()
    assert os.listdir(target) == ["new"]
    assert os.listdir(tmp_path) == ["target"]
    with pytest.raises(KeyboardInterrupt), replacing_directory(target):
        raise KeyboardInterrupt
    assert os.listdir(target) == ["new"]
    assert os.listdir(tmp_path) == ["target"]
