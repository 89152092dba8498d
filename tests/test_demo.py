from __future__ import annotations

from pathlib import Path

import open_clip
import pytest

from clipkit.cli import main
from clipkit.commands import demo, demo_report

SMALL = """\
model: {name: test-vit}
data: {batch_size_per_rank: 16, num_workers: 0}
epochs: 1
log: {every_steps: 1}
"""


def test_the_demo_ends_with_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "TRAIN_CONFIG", SMALL)
    output = tmp_path / "demo"
    arguments = ["demo", "--output", str(output), "--num-train", "32"]
    arguments += ["--num-train-objects", "16", "--num-val", "24"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    for figure in ("zero-shot top-1 over 64", "never trained", "text-to-image R@1 over 24"):
        assert figure in printed.out
    assert "$ clipkit train" in printed.err
    report = (output / "report.html").read_text()
    assert "Confusion" in report
    assert "never trained" in report
    assert report.count("data:image/png") == demo_report.NUM_QUERIES * demo_report.NUM_HITS + 1
    open_clip.create_model(f"local-dir:{output / 'run' / 'model'}")

    results = demo_report.evaluate(output / "run" / "model", output / "scenes")
    assert len(results.classnames) == 64
    assert int(results.unseen.sum()) == 8
    share = float(results.unseen[results.labels].double().mean())
    both = share * results.accuracy(unseen=True) + (1 - share) * results.accuracy(unseen=False)
    assert results.accuracy() == pytest.approx(both)
    assert set(results.recall_by_detail) == {"names", "partial", "full"}
    assert all(count > 0 for _, count in results.binding.values())

    # Started again it is at the end already.
    log = (output / "run" / "runlog.jsonl").read_text()
    assert main(arguments) == 0
    assert (output / "run" / "runlog.jsonl").read_text() == log
