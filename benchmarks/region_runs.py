"""A run of `clipkit train` and its results, for the benchmarks of regions: what is done is not done again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml


def train(work: Path, name: str, settings: dict[str, Any]) -> Path:
    """The model directory of the run `work/name`, trained once with what a YAML file would hold."""
    run = work / name
    if not (run / "model").exists():
        config = work / f"{name}.yaml"
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        command = [sys.executable, "-m", "clipkit", "train", str(config), "--output", str(run)]
        subprocess.run([*command, "--resume", "auto"], check=True)
    return run / "model"


def evaluate(work: Path, name: str, suite: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The result files of the run `work/name`, by entry of a suite of different tasks."""
    path = work / f"{name}_suite.yaml"
    path.write_text(yaml.safe_dump(suite), encoding="utf-8")
    results = work / "results" / name
    command = [sys.executable, "-m", "clipkit", "evaluate", str(work / name / "model"), "--suite", str(path)]
    subprocess.run([*command, "--output", str(results), "--no-cache"], check=True, stdout=subprocess.DEVNULL)
    found = [json.loads(file.read_text(encoding="utf-8")) for file in results.glob("*.json")]
    by_task = {content["task"]: content for content in found}
    return {entry: by_task[task["task"]] for entry, task in suite.items()}


def minutes(work: Path, name: str) -> float:
    """How long the steps of a run took, by its log; of a machine that may have done other things too."""
    lines = (work / name / "runlog.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [json.loads(line) for line in lines if "images_per_second" in line]
    seconds, before = 0.0, 0
    for line in logged:
        seconds += (line["samples_seen"] - before) / line["images_per_second"]
        before = line["samples_seen"]
    return seconds / 60
