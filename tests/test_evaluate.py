"""`clipkit evaluate`: suites, result files, resuming, ranks, and the report."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import evaluate_jobs
import pytest
import torch
from clipkit.zeroshot import runner, suite
from clipkit.zeroshot.report import _comparison, show, summary_table
from clipkit.zeroshot.results import (
    ModelName,
    Result,
    find_result,
    fingerprint,
    make_result,
    read_results,
    result_name,
    write_result,
)
from clipkit.zeroshot.runner import name_model
from clipkit.zeroshot.suite import make_entry, read_suite
from clipkit.zeroshot.tasks.base import Features, Measurement, Table, Task
from pair_shards import write_pairs
from rank_pool import RankPool
from small_models import small_model

from clipkit.cli import main
from clipkit.data.image_files import ImageFiles
from clipkit.data.samples import Source

NAME = ModelName(model="runs/a", pretrained="tag", model_id="0" * 64)


@dataclass(frozen=True, kw_only=True)
class Toy(Task):
    """Every field type that a task may have."""

    summary: ClassVar[str] = "nothing in particular"
    data: str
    number: int = 3
    share: float = 0.5
    flag: bool = False
    file: Path | None = None
    names: tuple[str, ...] = ()
    ks: tuple[int, ...] = (1, 5)

    def sources(self) -> dict[str, Source]:
        return {"images": ImageFiles([Path(self.data)])}

    def measure(self, features: Features) -> Measurement:
        return Measurement(metrics={"acc1": float(len(features.texts(["a", "b"])))})


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(suite.TASKS, "toy", Toy)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two model directories, one of them as a training run leaves it."""
    root = tmp_path_factory.mktemp("models")
    paths = [root / "first", root / "second" / "model"]
    for seed, path in enumerate(paths):
        small_model(seed).save(path)
    return [str(path) for path in paths]


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_pairs(tmp_path_factory.mktemp("data") / "tiles", 24, labels=True)


def write_suite(path: Path, tiles: str) -> Path:
    path.write_text(
        f"tiles:\n  task: zeroshot_classification\n  data: {tiles}\n"
        f"captions:\n  task: zeroshot_retrieval\n  data: {tiles}\n  recall_k: [1, 5]\n"
    )
    return path


def test_settings_have_the_types_of_the_fields(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(
        "one:\n  task: toy\n  data: x.png\n  share: 1\n  file: ~/a\n  names: [a, b]\n  ks: 7\n"
        "  language: de\n"
    )
    (entry,) = read_suite(path)
    assert (entry.name, entry.task, entry.language) == ("one", "toy", "de")
    assert entry.settings == Toy(data="x.png", share=1.0, file=Path.home() / "a", names=("a", "b"), ks=(7,))
    json.dumps(entry.describe())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one: {task: toy, data: 3}", r"one: data must be a text, got 3"),
        ("one: {task: toy, data: x, number: 2.5}", r"one: number must be a whole number, got 2.5"),
        ("one: {task: toy, data: x, number: true}", r"number must be a whole number, got True"),
        ("one: {task: toy, data: x, flag: 1}", r"flag must be true or false, got 1"),
        ("one: {task: toy, data: x, names: [1]}", r"names must be a text, got 1"),
        ("one: {task: toy, data: x, nmber: 1}", r"toy has no setting 'nmber'.*number"),
        ("one: {task: toy}", r"toy needs the setting 'data'"),
        ("one: {task: zeroshot_clasification, data: x}", r"zeroshot_classification"),
        ("one: {data: x}", r"one: name a task, one of zeroshot_classification"),
        ("one: x", r"one must be a mapping"),
        ("- a", r"must hold entries"),
        ("", r"must hold entries"),
        ("one: {", r"is no YAML"),
        ("one: {task: toy, data: x}\none: {task: toy, data: y}", r"'one' occurs twice"),
    ],
)
def test_a_suite_that_is_wrong_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_suite(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_result_files_have_the_names_and_keys_of_clip_benchmark(tmp_path: Path) -> None:
    name = result_name("vtab/cifar 10", NAME, "en", "zeroshot_classification")
    assert name == "vtab_cifar_10_tag_runs_a_en_zeroshot_classification.json"
    measured = Measurement(
        metrics={"acc1": 0.5, "rank": 3.0},
        outcomes={"acc1": torch.tensor([1.0, 0.0])},
        chance={"acc1": 0.1},
        plain=("rank",),
        tables=(Table(title="t", header=("a", "b"), rows=(("x", "1"),)),),
        notes=("note",),
    )
    result = make_result(
        measured,
        {"acc1": (0.1, 0.9)},
        dataset="vtab/cifar 10",
        task="zeroshot_classification",
        language="en",
        model=NAME,
        settings={},
        num_images=2,
        unreadable={"missing file": 1},
    )
    write_result(tmp_path / name, result, "stamp")
    content = json.loads((tmp_path / name).read_text())
    for key, value in {
        "dataset": "vtab/cifar 10",
        "model": "runs/a",
        "pretrained": "tag",
        "task": "zeroshot_classification",
        "metrics": {"acc1": 0.5, "rank": 3.0},
        "language": "en",
    }.items():
        assert content[key] == value
    found = find_result(tmp_path / name, "stamp")
    assert found is not None
    assert torch.equal(found.outcomes.pop("acc1"), result.outcomes.pop("acc1"))
    assert found == result
    assert find_result(tmp_path / name, "another") is None
    (tmp_path / "of-another-tool.json").write_text('{"dataset": "x", "metrics": {}}')
    assert [one.dataset for one in read_results(tmp_path)] == ["vtab/cifar 10"]
    (tmp_path / name).write_text("{")
    assert find_result(tmp_path / name, "stamp") is None


def test_models_are_named_by_tag_or_folder(models: list[str]) -> None:
    assert name_model("ViT-B-32/laion2b", "f" * 64) == ModelName(
        model="ViT-B-32", pretrained="laion2b", model_id="f" * 64
    )
    assert name_model("hf-hub:org/repo", "f" * 64).model == "hf-hub:org/repo"
    assert [name_model(path, "f" * 64).model for path in models] == ["first", "second"]


def test_a_suite_on_two_models(models: list[str], tiles: str, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    arguments = ["evaluate", *models, "--suite", str(write_suite(tmp_path / "suite.yaml", tiles))]
    output = tmp_path / "results"
    assert main([*arguments, "--output", str(output), "--quiet"]) == 0
    printed = capsys.readouterr()
    assert "tiles: zeroshot_classification" in printed.out
    assert f"report: {output / 'report.html'}" in printed.err
    results = read_results(output)
    assert [(one.dataset, one.num_images) for one in results] == [("captions", 24)] * 2 + [("tiles", 24)] * 2
    classified = [one for one in results if one.dataset == "tiles"]
    assert classified[0].metrics["acc1"] == float(classified[0].outcomes["acc1"].mean())
    low, high = classified[0].intervals["acc1"]
    assert low < classified[0].metrics["acc1"] < high
    markdown = (output / "report.md").read_text()
    for text in ("first (", "second (", "text_retrieval_recall@5", "Compared", "chance"):
        assert text in markdown
    assert "<svg" in (output / "report.html").read_text()
    assert not list(output.glob(".*"))


def test_finished_tasks_are_taken_over(
    models: list[str], tiles: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite_file = write_suite(tmp_path / "suite.yaml", tiles)
    arguments = ["evaluate", models[0], "--suite", str(suite_file), "--output", str(tmp_path), "--quiet"]
    real, ran = runner._encode_images, []

    def encode(title: str, *rest):  # type: ignore[no-untyped-def]
        ran.append(title)
        if len(ran) == 2 and stop:
            raise KeyboardInterrupt
        return real(title, *rest)

    stop = True
    monkeypatch.setattr(runner, "_encode_images", encode)
    assert main(arguments) == 130
    stop = False
    assert main(arguments) == 0
    assert ran == ["tiles", "captions", "captions"]
    assert main(arguments) == 0
    assert main([*arguments, "--overwrite"]) == 0
    assert ran[3:] == ["tiles", "captions"]
    suite_file.write_text(suite_file.read_text().replace("[1, 5]", "[1, 2]"))
    assert main(arguments) == 0
    assert ran[5:] == ["captions"]


def test_one_task_from_the_command_line(models: list[str], tiles: str, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    arguments = ["evaluate", models[0], "--data", tiles, "--output", str(tmp_path), "--json", "--quiet"]
    assert main([*arguments, "--task", "zeroshot_retrieval", "--set", "recall-k=[1,3]"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert (line["dataset"], line["task"], line["language"]) == ("tiles", "zeroshot_retrieval", "en")
    assert "image_retrieval_recall@3" in line["metrics"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "toy", "--data", "x"], "name a model"),
        (["m"], "give either --suite FILE or --task NAME"),
        (["m", "--task", "toy", "--suite", "x"], "give either --suite FILE or --task NAME"),
        (["m", "--suite", "x", "--data", "y"], "belong to --task"),
        (["m", "--task", "toy", "--data", "x", "--set", "number"], "--set takes KEY=VALUE, got 'number'"),
        (["m", "--task", "toy", "--data", "x", "--set", "numbr=3"], "has no setting 'numbr'"),
        (["m", "--suite", "nowhere.yaml"], "nowhere.yaml"),
        (["m", "--task", "zeroshot_retrieval", "--data", "nowhere"], "nowhere: nothing at 'nowhere'"),
        (["m", "--task", "toy", "--data", "x", "--batch-size", "0"], "--batch-size must be at least 1"),
    ],
)
def test_requests_that_are_wrong_are_one_line(arguments: list[str], message: str, capsys) -> None:  # type: ignore[no-untyped-def]
    assert main(["evaluate", *arguments]) in (1, 2)
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_any_number_of_ranks_gives_the_same_results(
    ranks: RankPool, models: list[str], tiles: str, tmp_path: Path
) -> None:
    alone = ranks.run(1, evaluate_jobs.evaluate_tiles, models[0], tiles, str(tmp_path / "1"))[0]
    for of_rank in ranks.run(3, evaluate_jobs.evaluate_tiles, models[0], tiles, str(tmp_path / "3")):
        assert of_rank.keys() == alone.keys()
        for key, value in alone.items():
            assert of_rank[key] == pytest.approx(value, abs=1e-6), key
    assert len(read_results(tmp_path / "3")) == 1


def test_ranks_share_the_work(ranks: RankPool, models: list[str], tiles: str) -> None:
    shares = ranks.run(3, evaluate_jobs.count_encoded, models[0], tiles)
    assert [images for images, _ in shares] == [10, 9, 5]
    assert [texts for _, texts in shares] == [3, 3, 2]


def test_tables_show_fractions_in_percent() -> None:
    assert show(0.1234) == "12.3 %"
    assert show(12.345, plain=True) == "12.35"
    facts = {"dataset": "d", "task": "t", "language": "en", "settings": {}, "num_images": 1, "unreadable": {}}
    other = ModelName(model="b", pretrained="tag", model_id="1" * 64)
    first = Result(
        model=NAME, metrics={"acc1": 0.5}, intervals={"acc1": (0.4, 0.6)}, chance={"acc1": 0.1}, **facts
    )
    results = [first, Result(model=other, metrics={"acc1": 0.25}, **facts)]
    table = summary_table(results)
    assert table.header == ("data set: task", "metric", "runs/a (tag)", "b (tag)", "chance")
    assert table.rows == (("d: t", "acc1", "50.0 % [40.0, 60.0]", "25.0 %", "10.0 %"),)


def test_models_are_compared_with_the_first() -> None:
    facts = {"dataset": "d", "task": "t", "language": "en", "settings": {}, "num_images": 1, "unreadable": {}}
    rights = {"first": 20, "better": 80, "the same": 20, "worse": 2}
    results = [
        Result(
            model=ModelName(model=name, pretrained="tag", model_id=name),
            metrics={"acc1": count / 100},
            outcomes={"acc1": (torch.arange(100) < count).double()},
            **facts,
        )
        for name, count in rights.items()
    ]
    (table,) = _comparison(results)
    assert [(row[0], row[2].split()[0], row[3]) for row in table.rows] == [
        ("better (tag)", "+60.0", "better"),
        ("the same (tag)", "+0.0", "no difference shown"),
        ("worse (tag)", "-18.0", "worse"),
    ]


def test_an_edited_file_of_a_setting_is_another_request(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"

    def stamp() -> str:
        entry = make_entry("one", {"task": "toy", "data": "x.png", "file": str(path)})
        return fingerprint(entry.describe(), {"images": 1}, "0" * 64, "fp32")

    path.write_text("cat\ndog\n")
    first = stamp()
    assert stamp() == first
    path.write_text("cat\nfox\n")
    assert stamp() != first


def test_an_entry_needs_a_known_task() -> None:
    with pytest.raises(
        ValueError, match=r"'zeroshot_retrival' is no task; did you mean 'zeroshot_retrieval'\?"
    ):
        make_entry("x", {"task": "zeroshot_retrival", "data": "y"})


FULL_DISK = """
    import resource, sys
    from pathlib import Path
    import torch
    from clipkit.zeroshot.results import ModelName, Result, write_result

    model = ModelName(model="a", pretrained="b", model_id="c")
    facts = {"dataset": "d", "task": "t", "language": "en", "model": model, "settings": {}}
    found = {"num_images": 1, "unreadable": {}, "metrics": {"acc1": 0.5}}
    result = Result(**facts, **found, outcomes={"acc1": torch.zeros(5000)})
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    try:
        write_result(Path(sys.argv[1]), result, "stamp")
    except OSError as error:
        print(error)
"""


def test_a_full_disk_is_said_with_the_file(tmp_path: Path) -> None:
    """By safetensors, whose errors are of a kind of their own."""
    script = textwrap.dedent(FULL_DISK)
    arguments = [sys.executable, "-c", script, str(tmp_path / "result.json")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"cannot write {tmp_path}/result")
    assert list(tmp_path.iterdir()) == []
