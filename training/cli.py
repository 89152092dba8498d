"""`clipkit train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from cyclopts.config import Env, Yaml

from clipkit.whole_numbers import refuse_fractions

from .config import TrainConfig

RECIPES = Path(__file__).parent / "recipes"
"""Published settings by name, `NAME.yaml`."""


def _read_yaml(app: App, _commands: tuple[str, ...], arguments: Any) -> None:
    """Take values from the file that `config-file` names, wherever no flag sets them."""
    for token in arguments["--config"].tokens:
        # By no commands, and yet by keys: else a section with the name of a command (`regions`) is dropped.
        Yaml(_config_path(token.value), must_exist=True, use_commands_as_keys=True)(app, (), arguments)


def _config_path(value: str) -> Path:
    """A file, or the recipe of this name.

    Raises:
        FileNotFoundError: there is neither.
    """
    if Path(value).exists() and not Path(value).is_dir():  # a pipe will do
        return Path(value)
    recipes = {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}
    if value not in recipes:
        hint = "; a flag has no value: --NAME or --no-NAME" if value.lower() in ("true", "false") else ""
        raise FileNotFoundError(
            f"no file of settings and no recipe ({', '.join(recipes)}) is {value!r}{hint}"
        )
    return recipes[value]


app = App(
    name="train",
    help="Train a dual encoder, from scratch or from any model, on one process or under torchrun.",
    config=[Env("CLIPKIT_"), _read_yaml, refuse_fractions],
    default_parameter=Parameter(negative_iterable=(), show_env_var=False),
)


@app.default
def train(
    config_file: Annotated[Path | None, Parameter(name=["--config"])] = None,
    *,
    config: Annotated[TrainConfig, Parameter(name="*")],
) -> int:
    """Train a dual encoder and save it as a model directory.

    Args:
        config_file: YAML file of the settings below, or a recipe that comes with clipkit (cloc, grain); flags
            win over it.
        config: the settings.
    """
    from .loop import train as run

    return run(config)
