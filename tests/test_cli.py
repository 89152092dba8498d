from __future__ import annotations

import subprocess
import sys

import pytest

import clipkit
from clipkit import cli


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
