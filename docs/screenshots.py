"""Pictures of the search page: `python docs/screenshots.py demo/run/model` (the model of `clipkit demo`).

Goes the whole way of a user: a folder of captioned pictures, `clipkit embed`, `clipkit index build`,
`clipkit serve`, and a browser (`chromium` on the path).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

from clipkit.scenes import generate

IMAGES = Path(__file__).resolve().parent / "images"
NUM_SCENES = 600
SHOTS = {
    "search-page.png": ("1280,860", {"q": "a big red star", "k": "12"}),
    "search-page-phone.png": ("430,860", {"q": "two small blue circles", "k": "12"}),
}
CLIPKIT = [sys.executable, "-m", "clipkit"]


def write_pictures(folder: Path) -> None:
    """Scenes with their captions beside them."""
    folder.mkdir()
    for number, scene in enumerate(generate(NUM_SCENES, seed=5, split="val")):
        scene.draw(192).save(folder / f"{number:04d}.png")
        (folder / f"{number:04d}.txt").write_text(scene.captions[3].text)


@contextmanager
def serving(model: Path, folder: Path) -> Iterator[str]:
    """The address of a service over an index of the pictures."""
    write_pictures(folder / "pictures")
    embeddings, index = folder / "embeddings", folder / "scenes"
    embed = ["embed", str(folder / "pictures"), "--model", str(model), "--out", str(embeddings), "--quiet"]
    subprocess.run([*CLIPKIT, *embed], check=True, stdout=subprocess.DEVNULL)
    build = ["index", "build", str(embeddings), "--out", str(index), "--quiet"]
    subprocess.run([*CLIPKIT, *build], check=True, stdout=subprocess.DEVNULL)
    serve = [
        "serve",
        str(index),
        "--model",
        str(model),
        "--port",
        "0",
        "--image-root",
        str(folder / "pictures"),
    ]
    with subprocess.Popen([*CLIPKIT, *serve], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            yield running.stdout.readline().split()[-1]
        finally:
            running.terminate()


def shoot(url: str, window: str, path: Path) -> None:
    """Have chromium draw a page once it has nothing more to do."""
    flags = ["--headless", "--no-sandbox", "--hide-scrollbars", "--virtual-time-budget=20000"]
    subprocess.run(
        ["chromium", *flags, f"--window-size={window}", f"--screenshot={path}", url],
        check=True,
        capture_output=True,
        timeout=120,
    )


def main() -> None:
    """Write all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a model directory that knows the built-in scenes")
    parser.add_argument("--out", type=Path, default=IMAGES)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serving(options.model, Path(folder)) as url:
        for name, (window, query) in SHOTS.items():
            shoot(f"{url}/?{urlencode(query)}", window, options.out / name)
            print(options.out / name)


if __name__ == "__main__":
    main()
