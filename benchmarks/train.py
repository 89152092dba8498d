"""Images per second and peak memory of `clipkit train` against `open_clip_train.main`.

    python benchmarks/train.py --repeats 5

Same shards, architecture, batch, precision, optimiser and number of workers; the two take turns in one run.
Rates are read from each one's own log, from the second report on, so start-up does not count. Memory is the
largest sum over the process tree of proportional set sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import webdataset
from report import write_result

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
STEPS_PER_REPORT = 2
PEER_WEBDATASET = "webdataset==0.2.86"

RUN_OPEN_CLIP = """
import sys, open_clip
open_clip.add_model_config(sys.argv[1])
from open_clip_train.main import main
main(sys.argv[2:])
"""


@dataclass(frozen=True)
class Setting:
    """One comparison."""

    model: str
    """open_clip name, or a JSON file in this folder."""
    photos: str
    batch_size: int
    num_steps: int

    @property
    def name(self) -> str:
        """As it stands in the table."""
        return f"{Path(self.model).stem}, {self.photos}, batch {self.batch_size}"


SETTINGS = (
    Setting("ViT-B-32", "coco", 16, 8),
    Setting("flickr8k_model.json", "flickr8k", 128, 8),
)


@dataclass(frozen=True)
class Outcome:
    """What one run gave."""

    images_per_second: float
    peak_bytes: int


def write_shards(kind: str, out: Path) -> str:
    """A shard set with one caption a sample (a photo of coco's five captions five times); its location."""
    out.mkdir()
    if kind == "coco":
        captions = _coco_captions()
        archive = DATA / "coco_mini" / "images_320.tar"
    else:
        lines = (DATA / "flickr8k" / "captions.jsonl").read_text().splitlines()
        captions = {entry["image"]: entry["captions"][:1] for entry in map(json.loads, lines)}
        archive = DATA / "flickr8k" / "images_112.tar"
    count = 0
    with (
        tarfile.open(archive) as tar,
        webdataset.ShardWriter(str(out / "%05d.tar"), maxcount=200, verbose=0) as shards,
    ):
        for member in tar.getmembers():
            content = tar.extractfile(member)
            assert content is not None
            image = content.read()
            for caption in captions.get(member.name, []):
                shards.write({"__key__": f"{count:09d}", "jpg": image, "txt": caption.encode()})
                count += 1
    last = len(list(out.glob("*.tar"))) - 1
    return f"{out}/{{00000..{last:05d}}}.tar"


def _coco_captions() -> dict[str, list[str]]:
    entries = json.loads((DATA / "coco_mini" / "annotations.json").read_text())
    return {entry["image"]: entry["captions"] for entry in entries}


def peak_memory(process: subprocess.Popen[bytes], stop: threading.Event) -> int:
    """Largest proportional set size, in bytes, of a process and its descendants until `stop`."""
    peak = 0
    while not stop.wait(0.25):
        total = 0
        for pid in _family(process.pid):
            try:
                fields = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue
            total += int(re.search(r"^Pss:\s+(\d+)", fields, re.MULTILINE)[1]) * 1024  # type: ignore[index]
        peak = max(peak, total)
    return peak


def _family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(grandchild for child in children for grandchild in _family(int(child)))]


def install_peer(folder: Path) -> Path:
    """The webdataset that open_clip's training extra asks for, in a folder of its own for the peer's runs."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    subprocess.run([*command, PEER_WEBDATASET], check=True)
    return folder


def run(command: list[str], log: Path, python_path: Path | None = None) -> int:
    """Run to the end with two threads; returns the peak memory in bytes."""
    environment = os.environ | {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}
    if python_path is not None:
        environment["PYTHONPATH"] = str(python_path)
    stop, peaks = threading.Event(), []
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT, env=environment)
        watcher = threading.Thread(target=lambda: peaks.append(peak_memory(process, stop)))
        watcher.start()
        status = process.wait()
        stop.set()
        watcher.join()
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{log.read_text()[-3000:]}")
    return peaks[0]


def run_clipkit(setting: Setting, shards: str, folder: Path) -> Outcome:
    """One run of `clipkit train`."""
    model = f"benchmarks/{setting.model}" if setting.model.endswith(".json") else setting.model
    command = [
        sys.executable,
        "-m",
        "clipkit",
        "train",
        "--output",
        str(folder / "run"),
        "--model.name",
        model,
    ]
    command += ["--data.sources.photos", shards, "--data.batch-size-per-rank", str(setting.batch_size)]
    command += ["--data.num-workers", "1", "--steps", str(setting.num_steps), "--optim.warmup-steps", "2"]
    command += ["--log.every-steps", str(STEPS_PER_REPORT)]
    peak = run(command, folder / "log")
    lines = [json.loads(line) for line in (folder / "run" / "runlog.jsonl").read_text().splitlines()]
    rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
    return Outcome(statistics.harmonic_mean(rates[1:]), peak)


def run_open_clip(setting: Setting, shards: str, folder: Path, peer: Path) -> Outcome:
    """One run of `open_clip_train.main`, with the packages in `peer` before all others."""
    import open_clip

    if setting.model.endswith(".json"):
        config = ROOT / "benchmarks" / setting.model
    else:
        config = Path(open_clip.__file__).parent / "model_configs" / f"{setting.model}.json"
    num_samples = setting.num_steps * setting.batch_size
    command = [sys.executable, "-c", RUN_OPEN_CLIP, str(config), "--model", config.stem]
    command += [
        "--train-data",
        shards,
        "--train-num-samples",
        str(num_samples),
        "--dataset-type",
        "webdataset",
    ]
    command += ["--dataset-resampled", "--batch-size", str(setting.batch_size), "--precision", "fp32"]
    command += ["--workers", "1", "--epochs", "1", "--warmup", "2", "--lr", "5e-4", "--save-frequency", "0"]
    command += ["--log-every-n-steps", str(STEPS_PER_REPORT), "--logs", str(folder / "logs"), "--seed", "0"]
    peak = run(command, folder / "log", peer)
    seconds = [float(value) for value in re.findall(r"Batch \(t\): ([\d.]+)", (folder / "log").read_text())]
    return Outcome(setting.batch_size / statistics.mean(seconds[1:]), peak)


def compare(setting: Setting, repeats: int, work: Path) -> str:
    """A table row: medians of interleaved runs and the ratio of each pair of runs."""
    shards = write_shards(setting.photos, work / f"{Path(setting.model).stem}-shards")
    ours, theirs = [], []
    for repeat in range(repeats):
        for name, outcomes in (("clipkit", ours), ("open_clip", theirs)):
            folder = work / f"{Path(setting.model).stem}-{name}-{repeat}"
            folder.mkdir()
            if name == "clipkit":
                outcomes.append(run_clipkit(setting, shards, folder))
            else:
                outcomes.append(run_open_clip(setting, shards, folder, work / "peer"))
            print(f"{setting.name} {name} {outcomes[-1]}", flush=True)
    ratios = [a.images_per_second / b.images_per_second for a, b in zip(ours, theirs, strict=True)]

    def rate(outcomes: list[Outcome]) -> float:
        return statistics.median(outcome.images_per_second for outcome in outcomes)

    def memory(outcomes: list[Outcome]) -> float:
        return statistics.median(outcome.peak_bytes for outcome in outcomes) / 2**30

    return (
        f"| {setting.name} | {rate(ours):.1f} | {rate(theirs):.1f} | **{statistics.median(ratios):.2f}** "
        f"({min(ratios):.2f} to {max(ratios):.2f}) | {memory(ours):.2f} | {memory(theirs):.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--settings", type=int, nargs="*", default=range(len(SETTINGS)))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        install_peer(Path(folder) / "peer")
        rows = [compare(SETTINGS[index], arguments.repeats, Path(folder)) for index in arguments.settings]
    body = (
        "fp32, 2 threads, 1 loader worker, AdamW, softmax loss; random resized crops (0.9, 1) of JPEG photos "
        "(coco: long side 320; flickr8k: 112 px), one caption each. Rates skip each run's first report of "
        f"{STEPS_PER_REPORT} steps. open_clip runs with the {PEER_WEBDATASET} that its training extra asks "
        "for. "
        f"Median of {arguments.repeats} interleaved runs, ratio with its range.\n\n"
        "| setting | clipkit images/s | open_clip images/s | ratio "
        "| clipkit peak GiB | open_clip peak GiB |\n"
        "|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )
    write_result("train", "Training throughput", body, command=["benchmarks/train.py", *sys.argv[1:]])


if __name__ == "__main__":
    main()
