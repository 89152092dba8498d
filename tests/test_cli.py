from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cyclopts import App
from cyclopts.exceptions import CoercionError

import clipkit
from clipkit import cli
from clipkit.whole_numbers import refuse_fractions


def _modules_after(statement: str) -> set[str]:
    script = f"import sys; {statement}; print(' '.join(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "statement",
    [
        "from clipkit.cli import main; assert main(['--help']) == 0",
        "from clipkit.cli import main; assert main(['--version']) == 0",
        "from clipkit.cli import main; assert main(['train', '--help']) == 0",
        "from clipkit.cli import main; assert main(['inspect', '--help']) == 0",
        "from clipkit.cli import main; assert main(['demo', '--help']) == 0",
        "from clipkit.cli import main; assert main(['classify', '--help']) == 0",
        "from clipkit.cli import main; assert main(['describe', '--help']) == 0",
        "from clipkit.cli import main; assert main(['embed', '--help']) == 0",
        "from clipkit.cli import main; assert main(['evaluate', '--help']) == 0",
        "import clipkit",
    ],
)
def test_help_imports_neither_torch_nor_numpy(statement: str) -> None:
    loaded = _modules_after(statement)
    assert "clipkit" in loaded
    assert not loaded & {"torch", "numpy", "open_clip", "timm", "PIL"}


def test_public_names() -> None:
    assert set(clipkit.__all__) == {"DualEncoder", "__version__", "create", "load"}
    assert set(dir(clipkit)) == set(clipkit.__all__)
    for name in clipkit.__all__:
        assert getattr(clipkit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'loda'"):
        clipkit.loda  # noqa: B018


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == cli.EXIT_USAGE
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "trian" in error
    assert "train" in error


@pytest.mark.parametrize("value", ["2.5", "inf", "nan"])
@pytest.mark.parametrize("source", ["flag", "file", "environment"])
def test_settings_that_are_whole_numbers_are_not_rounded(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    source: str,
    value: str,
) -> None:
    given = {"flag": ["--regions.per-image", value], "file": ["--config", str(tmp_path / "c.yaml")]}
    (tmp_path / "c.yaml").write_text(f"regions:\n  per_image: {value}\n")
    if source == "environment":
        monkeypatch.setenv("CLIPKIT_TRAIN_REGIONS_PER_IMAGE", value)
    assert cli.main(["train", "--output", str(tmp_path / "out"), *given.get(source, [])]) == cli.EXIT_USAGE
    assert f'unable to convert "{value}" into int' in capsys.readouterr().err


def test_every_command_refuses_to_round() -> None:
    """Those with sources of their own too, which take the place of what all commands have."""
    for target, _ in cli.COMMANDS.values():
        module, name = target.split(":")
        app = getattr(importlib.import_module(module), name)
        for part in (app, *(app[command] for command in app if not command.startswith("-"))):
            assert not part.config or part.config[-1] is refuse_fractions, target


def test_a_port_is_not_rounded(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "index", "--port", "1.5"]) == cli.EXIT_USAGE
    monkeypatch.setenv("CLIPKIT_SERVE_PORT", "2.5")
    assert cli.main(["serve", "index"]) == cli.EXIT_USAGE
    assert re.findall(r'unable to convert "(.*)" into int', capsys.readouterr().err) == ["1.5", "2.5"]


@pytest.mark.parametrize("value", ["", "folder", "nothing.yaml", "false"])
def test_settings_that_are_not_there_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, value: str
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--config", value, "--output", "out"]) == cli.EXIT_FAILURE
    error = capsys.readouterr().err
    assert f"no file of settings and no recipe (cloc, grain) is {value!r}" in error
    assert ("--no-NAME" in error) == (value == "false")


def test_a_recipe_is_found_beside_a_folder_of_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "cloc").mkdir()
    monkeypatch.chdir(tmp_path)
    assert cli.main(
        ["train", "cloc", "--output", "out", "--data.sources.mine", "gone", "--model.name", "ViT-B-32"]
    )
    assert "gone" in capsys.readouterr().err


def test_whole_numbers_may_be_written_as_floats_and_in_any_base() -> None:
    found = []
    app = App(config=[refuse_fractions], result_action="return_value")

    @app.default
    def take(
        *, one: int, many: tuple[int, ...], perhaps: int | None, real: float, either: int | float
    ) -> None:
        found.append((one, many, perhaps, real, either))

    app(["--one=2.0", "--many=0x10", "--many=3", "--perhaps=-4", "--real=2.5", "--either=2.5"])
    assert found[0][:4] == (2, (16, 3), -4, 2.5)
    for wrong in (["--many=1", "--many=2.5"], ["--many", "[1, 2.5]"], ["--perhaps", "2.5"]):
        with pytest.raises(CoercionError, match=r"2\.5"):
            app(["--one=2", "--real=1", "--either=1", *wrong], exit_on_error=False, print_error=False)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("a mistake"), 2),
        (OSError("no space\nleft"), 1),
        (RuntimeError("broken"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_failures_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, status: int
) -> None:
    def app(tokens: list[str]) -> None:
        raise error

    monkeypatch.setattr(cli, "make_app", lambda: app)
    assert cli.main([]) == status
    captured = capsys.readouterr().err
    assert captured.startswith("clipkit: ")
    assert captured.count("\n") == 1


def test_a_reader_that_has_seen_enough_ends_the_command_quietly() -> None:
    script = (
        "import sys; from clipkit import cli;"
        "cli.make_app = lambda: lambda tokens: print('line\\n' * 100_000);"
        "sys.exit(cli.main([]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"line\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == cli.EXIT_PIPE == 141


def test_every_command_is_importable() -> None:
    app = cli.make_app()
    assert len(cli.COMMANDS) >= 3
    for name in cli.COMMANDS:
        assert app[name].help
