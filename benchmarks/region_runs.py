"""A run of `clipkit train` and its results, for the benchmarks of regions: what is done is not done again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from clipkit.zeroshot.results import Result, read_results

from clipkit.model_dir import read_record


def train(work: Path, name: str, settings: dict[str, Any]) -> Path:
    """The model directory of the run `work/name`, trained once with what a YAML file would hold.

    Raises:
        SystemExit: it was trained with other settings.
    """
    run, config, text = work / name, work / f"{name}.yaml", yaml.safe_dump(settings)
    if config.exists() and config.read_text(encoding="utf-8") != text:
        raise SystemExit(f"{run} was trained with other settings than these: remove it and {config}")
    if not (run / "model").exists():
        config.write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "clipkit", "train", str(config), "--output", str(run)]
        subprocess.run([*command, "--resume", "auto"], check=True)
    return run / "model"


def evaluate(work: Path, name: str, suite: dict[str, dict[str, Any]]) -> dict[str, Result]:
    """The results of the run `work/name`, by entry of a suite."""
    path = work / f"{name}_suite.yaml"
    path.write_text(yaml.safe_dump(suite), encoding="utf-8")
    results = work / "results" / name
    command = [sys.executable, "-m", "clipkit", "evaluate", str(work / name / "model"), "--suite", str(path)]
    subprocess.run([*command, "--output", str(results), "--no-cache"], check=True, stdout=subprocess.DEVNULL)
    record = read_record(work / name / "model")
    assert record is not None
    own = (one for one in read_results(results) if one.model.model_id == record["model_id"])
    found = {one.dataset: one for one in own}
    return {entry: found[entry] for entry in suite}


def minutes(work: Path, name: str) -> float:
    """How long the steps of a run took, by its log, on a machine that may have done other things too."""
    lines = (work / name / "runlog.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [json.loads(line) for line in lines if "images_per_second" in line]
    seconds, before = 0.0, 0
    for line in logged:
        seconds += (line["samples_seen"] - before) / line["images_per_second"]
        before = line["samples_seen"]
    return seconds / 60
