from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
from clipkit.retrieval.store import EmbeddingFolder
from clipkit.training.cli import app as train_app
from clipkit.zeroshot.suite import read_suite

import clipkit
from clipkit.cli import main
from clipkit.commands import demo, demo_report, demo_search, demo_tasks
from clipkit.json_files import read_json
from clipkit.page import Page

SMALL = """\
model: {name: test-vit}
data: {batch_size_per_rank: 16, num_workers: 0}
epochs: 1
log: {every_steps: 1}
regions: {head: prompter}
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
    for figure in (
        "where a phrase is",
        "zero-shot top-1 over 64",
        "never trained",
        "text-to-image R@1 over 24",
        "by noise in",
    ):
        assert figure in printed.out
    for command in ("train", "evaluate", "embed", "index build", "search"):
        assert f"$ clipkit {command} " in printed.err
    serve = f"serve: clipkit serve {output}/index --image-root {output}/pictures"
    assert printed.out.splitlines()[-1] == serve
    report = (output / "report.html").read_text()
    assert "Confusion" in report
    assert "never trained" in report
    assert len(read_suite(output / "suite.yaml")) == 5
    assert serve.removeprefix("serve: ") in report
    num_queries = demo_report.NUM_QUERIES * demo_report.NUM_HITS
    # Beside the hits, the confusion and the sheet of grounded phrases.
    assert report.count("data:image/png") == num_queries + 2 + demo_search.NUM_HITS
    open_clip.create_model(f"local-dir:{output / 'run' / 'model'}")

    results = demo_report.evaluate(demo.DemoFolder(output))
    assert len(results.classnames) == 64
    assert int(results.unseen.sum()) == 8
    share = float(results.unseen[results.labels].double().mean())
    both = share * results.accuracy(unseen=True) + (1 - share) * results.accuracy(unseen=False)
    assert results.accuracy() == pytest.approx(both)
    assert set(results.recall_by_detail) == {"names", "partial", "full"}
    check_tasks(results.tasks, report)
    check_search(demo.DemoFolder(output))

    # Started again it is at the end already, and what was found of another model is not its own.
    other = output / "results" / "z.json"
    other.write_text(json.dumps({"dataset": "varieties", "model_id": "f" * 64, "metrics": {}}))
    log = output / "run" / "runlog.jsonl"
    before = log.read_text()
    monkeypatch.setitem(sys.modules, "faiss", None)  # as where it is not installed
    capsys.readouterr()
    assert main(arguments) == 0
    assert log.read_text() == before
    printed = capsys.readouterr()
    assert "pip install 'clipkit[cpu]'" in printed.out.splitlines()[-1]
    assert "$ clipkit embed" not in printed.err
    assert "clipkit serve" not in printed.out + (output / "report.html").read_text()


def test_what_the_demo_trains_with_is_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text(demo.TRAIN_CONFIG)
    arguments = [str(tmp_path / "train.yaml"), "--output", "runs", "--data.sources.scenes", "scenes"]
    _, bound, _ = train_app.parse_args(arguments, exit_on_error=False)
    assert bound.arguments["config"].model.name == "tiny-conv"
    assert bound.arguments["config"].trained_regions is not None


def check_search(folder: demo.DemoFolder) -> None:
    """The hits are the exact ones, and what is done is not done again, unless it is of another model."""
    found = read_json(folder.search_results)
    assert found["query"] in (folder.pictures / f"{found['scene']}.txt").read_text().splitlines()
    assert found["hits"][0].keys() == {"id", "similarity", "image_path", "caption", "more_captions"}
    embedded = EmbeddingFolder.open(folder.embeddings)
    assert (embedded.num_rows, embedded.manifest["found_by_index"]) == (24, {})  # type: ignore[index]
    model = clipkit.load(folder.model).eval()
    text = model.encode_text(model.tokenizer([found["query"]]), normalize=True)[0].detach().numpy()
    similarities = embedded.image_embeddings.take(np.arange(24)).astype(np.float32) @ text  # type: ignore[union-attr]
    nearest = np.argsort(-similarities)[: demo_search.NUM_HITS]
    assert [hit["id"] for hit in found["hits"]] == nearest.tolist()
    assert [hit["similarity"] for hit in found["hits"]] == pytest.approx(similarities[nearest], abs=1e-3)

    (rows,) = (folder.embeddings / "img_emb").glob("*.npy")
    made = rows.stat().st_mtime_ns
    assert demo_search.search_scenes(folder) == 0
    assert (rows.stat().st_mtime_ns, os.readlink(folder.index / "current")) == (made, "v000001")
    for manifest in (folder.embeddings / "clipkit.json", folder.index / "current" / "clipkit.json"):
        manifest.write_text(json.dumps({**read_json(manifest), "model_id": "f" * 64}))
    assert demo_search.search_scenes(folder) == 0
    assert (rows.stat().st_mtime_ns > made, os.readlink(folder.index / "current")) == (True, "v000002")
    assert read_json(folder.search_results) == found


def check_tasks(tasks: demo_tasks.TaskResults, report: str) -> None:
    """All sentences and tables of the suite are in the report."""
    assert set(tasks) == {"captions", "varieties", "objects", "recognition", "grounding"}
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
