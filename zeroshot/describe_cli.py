"""`clipkit describe`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

if TYPE_CHECKING:
    from .describe import Descriptors
    from .describe_client import Endpoint
    from .describe_prompts import Prompts

DEFAULT_BASE_URL = "https://api.openai.com/v1"

app = App(
    name="describe",
    help="Have an LLM write descriptions of classes, for `classify --descriptions`.",
    default_parameter=Parameter(negative=(), show_env_var=False),
)


@dataclass(frozen=True, kw_only=True)
class DescribeOptions:
    """Who is asked what, and where the answers go."""

    output: Path = Path("descriptions.json")
    """The file to write, `{class: [descriptor, ...]}`. Classes that it has already stay as they are."""
    base_url: Annotated[str, Parameter(env_var="OPENAI_BASE_URL")] = DEFAULT_BASE_URL
    """An OpenAI-compatible endpoint, such as `http://localhost:11434/v1`; or $OPENAI_BASE_URL."""
    llm: Annotated[str, Parameter(env_var="OPENAI_MODEL")] = ""
    """The name of the LLM there; or $OPENAI_MODEL."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key."""
    prompts: Path | None = None
    """A YAML file of messages with `{c}`, see --write-prompts, or a text file with one message."""
    write_prompts: Path | None = None
    """Write the prompts to this YAML file, to be changed, and do nothing else."""
    print_prompts: bool = False
    """Print the prompt of each class, to be used by hand, and do nothing else."""
    from_answers: Path | None = None
    """Take the answers from a text file, each below a line `# class name`, and ask nobody."""
    num_requests: int = 4
    """Questions on their way at a time."""
    num_tries: int = 5
    """Requests about a class before it is given up."""
    timeout_seconds: float = 120.0
    """Silence that ends a request."""
    wait_seconds: float = 1.0
    """Before the second try; doubles from try to try up to a minute, and Retry-After is heeded."""

    def __post_init__(self) -> None:
        if self.num_requests < 1:
            raise ValueError(f"--num-requests must be at least 1, got {self.num_requests}")
        ways = ("write_prompts", "print_prompts", "from_answers")
        chosen = [f"--{name.replace('_', '-')}" for name in ways if getattr(self, name)]
        if len(chosen) > 1:
            raise ValueError(f"give one of {' and '.join(chosen)}")


@app.default
def describe(
    classes: Path | None = None,
    *,
    options: Annotated[DescribeOptions | None, Parameter(name="*")] = None,
) -> int:
    """Ask an LLM for the visible features of each class of a list, and write its answers to a file.

    What was answered is kept from the first class on: after a kill, Ctrl-C or a failure of the endpoint, the
    same command asks for the rest.

    Args:
        classes: a file with a class name a line.
        options: the LLM, the prompts and the output.

    Returns:
        1 where a class has no descriptions, else 0.
    """
    from .describe_prompts import DEFAULT_PROMPTS, Prompts

    options = options or DescribeOptions()
    if options.write_prompts is not None:
        # "x": a file that somebody has changed is not overwritten.
        with options.write_prompts.open("x", encoding="utf-8") as file:
            file.write(DEFAULT_PROMPTS)
        return 0
    if classes is None:
        raise ValueError("name a file with a class name a line: clipkit describe CLASSES.txt")
    from .classnames import read_class_names

    names = read_class_names(classes)
    prompts = Prompts.read(options.prompts)
    if options.print_prompts:
        print("\n\n".join(f"# {name}\n\n{prompts.by_hand(name)}" for name in names))
        return 0
    if options.output.is_dir():
        raise ValueError(f"--output must name a file, {options.output} is a folder")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if options.from_answers is not None:
        return _from_answers(names, options.from_answers, options.output)
    return _from_llm(names, prompts, _endpoint(options), options)


def _endpoint(options: DescribeOptions) -> Endpoint:
    """Where questions go.

    Raises:
        ValueError: there is no name of an LLM or no key, or a setting is of no use.
    """
    from .describe_client import Endpoint

    if not options.llm:
        raise ValueError("name the LLM: --llm NAME, or OPENAI_MODEL in the environment")
    base_url = options.base_url or DEFAULT_BASE_URL
    key = os.environ.get(options.api_key_env, "").strip()
    if not key and (base_url == DEFAULT_BASE_URL or options.api_key_env != "OPENAI_API_KEY"):
        raise ValueError(
            f"there is no key in ${options.api_key_env}; set it, or name another endpoint with --base-url"
        )
    return Endpoint(
        base_url=base_url,
        key=key,
        num_tries=options.num_tries,
        timeout_seconds=options.timeout_seconds,
        wait_seconds=options.wait_seconds,
    )


def _from_llm(names: Sequence[str], prompts: Prompts, endpoint: Endpoint, options: DescribeOptions) -> int:
    from clipkit.console import progress

    from .describe import AnswerLog, ask_all, described, merged
    from .describe_client import EndpointError, ask
    from .describe_prompts import parse_descriptors

    def ask_about(name: str) -> Descriptors:
        body = prompts.body(options.llm, name)
        return ask(endpoint, body, lambda text, is_cut: parse_descriptors(text, is_cut=is_cut))

    before = described(options.output)
    merged(names, before, {})  # refuses before anything is written
    with AnswerLog(options.output, llm=options.llm, digest=prompts.digest) as log:
        known = merged(names, before, log.known)
        missing = [name for name in names if name not in known]
        num_known = len(names) - len(missing)
        with progress("classes", len(names), done=num_known) as meter:
            if num_known:
                meter.say(f"{num_known} of {len(names)} classes have descriptions, which stay as they are")
            try:
                failed = ask_all(missing, ask_about, log, num_requests=options.num_requests, meter=meter)
            except (EndpointError, KeyboardInterrupt) as error:
                if log.known:
                    meter.say(
                        f"{log.path} keeps {len(log.known)} answers; the same command asks for the rest"
                    )
                else:
                    log.remove()
                raise error from None
        cure = f"the same command asks for these alone, or write their lists into {options.output}"
        status = _finish(options.output, merged(names, before, log.known), failed, cure)
        log.remove()
    return status


def _from_answers(names: Sequence[str], answers: Path, output: Path) -> int:
    from .describe import described, merged, read_answers

    found = merged(names, described(output), read_answers(answers, names))
    failed = {name: f"no list in {answers}" for name in names if name not in found}
    return _finish(output, found, failed, f"add their answers to {answers}")


def _finish(
    output: Path, descriptions: Mapping[str, Descriptors], failed: Mapping[str, str], cure: str
) -> int:
    """Write the file and say what is in it and what is not."""
    from .describe import write_descriptions

    if descriptions:
        write_descriptions(output, descriptions)
        num_descriptors = sum(map(len, descriptions.values()))
        print(f"{output}: {len(descriptions)} classes, {num_descriptors} descriptors")
    if not failed:
        return 0
    for name, reason in failed.items():
        print(f"not described: {name}: {reason}", file=sys.stderr)
    print(f"left out for want of descriptions: {len(failed)}; {cure}", file=sys.stderr)
    return 1
