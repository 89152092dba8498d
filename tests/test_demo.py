from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
from clipkit.zeroshot.suite import read_suite

from clipkit.cli import main
from clipkit.commands import demo, demo_report, demo_tasks
from clipkit.page import Page

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
    arguments += ["--num-train-objects", "16", "--num-val", "24", "--num-varieties-test", "2"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    for figure in ("zero-shot top-1 over 64", "never trained", "text-to-image R@1 over 24", "by noise in"):
        assert figure in printed.out
    for command in ("$ clipkit train", "$ clipkit evaluate"):
        assert command in printed.err
    report = (output / "report.html").read_text()
    assert "Confusion" in report
    assert "never trained" in report
    assert len(read_suite(output / "suite.yaml")) == 3
    assert report.count("data:image/png") == demo_report.NUM_QUERIES * demo_report.NUM_HITS + 1
    open_clip.create_model(f"local-dir:{output / 'run' / 'model'}")

    results = demo_report.evaluate(output / "run" / "model", output / "scenes", output / "results")
    assert len(results.classnames) == 64
    assert int(results.unseen.sum()) == 8
    share = float(results.unseen[results.labels].double().mean())
    both = share * results.accuracy(unseen=True) + (1 - share) * results.accuracy(unseen=False)
    assert results.accuracy() == pytest.approx(both)
    assert set(results.recall_by_detail) == {"names", "partial", "full"}
    check_tasks(results.tasks, report)

    # Started again it is at the end already, and what was found of another model is not its own.
    other = output / "results" / "z.json"
    other.write_text(json.dumps({"dataset": "varieties", "model_id": "f" * 64, "metrics": {}}))
    log = (output / "run" / "runlog.jsonl").read_text()
    assert main(arguments) == 0
    assert (output / "run" / "runlog.jsonl").read_text() == log


def check_tasks(tasks: demo_tasks.TaskResults, report: str) -> None:
    """All sentences and tables of the suite are in the report."""
    assert set(tasks) == {"captions", "varieties", "objects"}
    (by_kind,) = tasks["captions"]["tables"]
    assert {row[0] for row in by_kind["rows"]} == {"binding", "cell", "count", "relation", "size"}
    assert len(tasks["varieties"]["tables"]) == 3
    assert len(tasks["objects"]["tables"]) == 1
    assert tasks["varieties"]["num_images"] == 24 * (20 + 2)
    for task in tasks.values():
        for table in task["tables"]:
            assert table["title"] in report
            assert all(f"<td>{cell}</td>" in report for row in table["rows"] for cell in row)
        for note in task["notes"]:
            assert note.replace("'", "&#x27;") in report


def test_verdicts_stand_in_the_report(tmp_path: Path) -> None:
    report = Page("a", "b")
    table = {"title": "T", "header": ["h", "i"], "rows": [["r", "1"]], "note": "n"}
    results = {
        name: {"notes": [f"{name} do <not> help"], "tables": [table]}
        for name in ("captions", "varieties", "objects")
    }
    demo_tasks.show_captions(report, results)
    demo_tasks.show_descriptions(report, results)
    report.write(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    places = [page.index(f"{name} do &lt;not&gt; help") for name in ("captions", "varieties", "objects")]
    assert places == sorted(places)
    assert page.count("<td>r</td><td>1</td>") == 3
