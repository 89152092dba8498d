"""Have an LLM describe classes: an answer a class, kept as soon as it is there, and one file at the end."""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from clipkit.console import Meter
from clipkit.json_files import canonical_json, write_json
from clipkit.suggestions import did_you_mean

from .describe_client import EndpointError, NoAnswer, NoList
from .describe_prompts import parse_descriptors
from .descriptions import DescriptionBank, normalized_name

Descriptors = tuple[str, ...]
Ask = Callable[[str], Descriptors]
"""Class name -> its descriptors; raises `NoAnswer`."""

_MAX_FAILURES_IN_A_ROW = 5

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class AnswerLog:
    """The answers of a job that is not finished, beside its output: a JSON line a class, synced to the disk.

    Its first line says what was asked; answers to another question are never mixed with them.
    """

    def __init__(self, output: Path, *, llm: str, digest: str) -> None:
        """Open the log of an output file, and make it if there is none.

        Args:
            output: the file that the job will write.
            llm: name of the LLM.
            digest: of the prompts.

        Raises:
            ValueError: the log is of another LLM or other prompts, or is no such log.
            OSError: it cannot be read or written.
        """
        self.path = output.with_name(f"{output.name}.partial.jsonl")
        self.known: dict[str, Descriptors] = {}
        """By class name."""
        header = {"llm": llm, "prompts": digest}
        self._file = self.path.open("a+b")
        try:
            self._read(header)
            if not self._file.tell():
                self._append(header)
        except BaseException:
            self._file.close()
            raise

    def _read(self, header: Mapping[str, str]) -> None:
        """Take over whole lines, and cut off what a kill has left of the last one."""
        self._file.seek(0)
        lines = self._file.read().split(b"\n")[:-1]
        try:
            records = [json.loads(line) for line in lines]
            found = dict(records[0]) if records else header
            self.known = {str(one["class"]): tuple(one["descriptors"]) for one in records[1:]}
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ValueError(f"{self.path} is no log of answers; delete it to begin anew") from None
        if found != header:
            changed = "another LLM" if found.get("llm") != header["llm"] else "other prompts"
            raise ValueError(
                f"{self.path} holds {len(self.known)} answers of {found.get('llm')!r} and {changed}; "
                "go on with these, or delete it to begin anew"
            )
        self._file.truncate(sum(len(line) + 1 for line in lines))
        self._file.seek(0, os.SEEK_END)

    def add(self, name: str, descriptors: Descriptors) -> None:
        """Keep an answer, also over a crash that follows."""
        self._append({"class": name, "descriptors": descriptors})
        self.known[name] = descriptors

    def _append(self, record: Mapping[str, Any]) -> None:
        self._file.write(canonical_json(record).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def remove(self) -> None:
        """Delete the file: its content is in the output."""
        self.path.unlink()

    def __enter__(self) -> AnswerLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def described(output: Path) -> dict[str, Descriptors]:
    """Descriptors that a file already has, by the names of its classes; none where there is no file.

    Raises:
        ValueError: it is no file of descriptions, see `DescriptionBank.read`.
        OSError: it cannot be read.
    """
    if not output.exists():
        return {}
    bank = DescriptionBank.read(output)
    return dict(zip(bank.names, bank.descriptors, strict=True))


def merged(
    names: Sequence[str], before: Mapping[str, Descriptors], answers: Mapping[str, Descriptors]
) -> dict[str, Descriptors]:
    """What a file of descriptions gets: the listed classes in their order and spelling, then its others.

    Args:
        names: the listed classes.
        before: what the file has, also of classes that are not listed.
        answers: win over `before`; those to classes that are not listed are left out.

    Raises:
        ValueError: two of the listed names differ only in case or separators.
    """
    DescriptionBank.of(dict.fromkeys(names, ()))
    listed = {normalized_name(name) for name in names}
    found = {normalized_name(name): row for source in (before, answers) for name, row in source.items()}
    own = {name: found[normalized_name(name)] for name in names if normalized_name(name) in found}
    return own | {name: row for name, row in before.items() if normalized_name(name) not in listed}


def ask_all(
    names: Sequence[str], ask: Ask, log: AnswerLog, *, num_requests: int, meter: Meter
) -> dict[str, str]:
    """Ask about classes and keep the answers in the log.

    Args:
        names: the classes to ask about.
        ask: called from `num_requests` threads.
        log: gets the answers in the order in which they come.
        num_requests: questions on their way at a time.
        meter: counts the classes.

    Returns:
        Why, by name, the others have no answer.

    Raises:
        EndpointError: the endpoint is of no use, or several classes in a row got no answer from it.
    """
    failed: dict[str, str] = {}
    in_a_row = 0

    def attempt(name: str) -> Descriptors | NoAnswer:
        try:
            return ask(name)
        except NoAnswer as error:
            return error

    with closing(_in_threads(names, attempt, num_requests)) as answers:
        for name, answer in answers:
            if isinstance(answer, NoAnswer):
                failed[name] = str(answer)
                in_a_row += not isinstance(answer, NoList)
            else:
                log.add(name, answer)
                in_a_row = 0
            meter.advance(note=name)
            if in_a_row == _MAX_FAILURES_IN_A_ROW:
                raise EndpointError(
                    f"{in_a_row} classes in a row got no answer, the last of them {name!r}: {failed[name]}"
                )
    return failed


def read_answers(path: Path, names: Sequence[str]) -> dict[str, Descriptors]:
    """Answers that were copied by hand: below each line `# class name` what an LLM or a person has written.

    Args:
        path: of the text file.
        names: the classes that it may name; it need not have all of them.

    Returns:
        Descriptors by class name, of the classes that have any.

    Raises:
        ValueError: a heading is no class or comes twice, or lines with text come before the first.
        OSError: the file cannot be read.
    """
    listed = {normalized_name(name): name for name in names}
    answers: dict[str, list[str]] = {}
    lines: list[str] | None = None
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if line.startswith("#"):
            heading = line.lstrip("#").strip()
            name = listed.get(normalized_name(heading))
            if name is None or name in answers:
                problem = "comes twice" if name else f"is no class{did_you_mean(heading, names)}"
                raise ValueError(f"{path}, line {number}: {heading!r} {problem}")
            lines = answers[name] = []
        elif lines is not None:
            lines.append(line)
        elif line.strip():
            raise ValueError(f"{path}, line {number}: expected `# class name` above the first answer")
    found = {name: parse_descriptors("\n".join(lines)) for name, lines in answers.items()}
    return {name: descriptors for name, descriptors in found.items() if descriptors}


def write_descriptions(output: Path, descriptions: Mapping[str, Descriptors]) -> None:
    """Write the file that `DescriptionBank.read` takes, by way of a temporary name."""
    write_json(output, descriptions)


def _in_threads(
    items: Sequence[_Item], work: Callable[[_Item], _Result], num_threads: int
) -> Generator[tuple[_Item, _Result], None, None]:
    """Items with their results, in the order in which these are there.

    The threads do not outlive the process, so that Ctrl-C need not wait for a request; they take no further
    item after an error, or once the caller stops.
    """
    waiting = iter(items)
    lock, stopped = threading.Lock(), threading.Event()
    done: queue.SimpleQueue[tuple[_Item, _Result | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        while not stopped.is_set():
            with lock:
                item = next(waiting, None)
            if item is None:
                return
            try:
                done.put((item, work(item), None))
            except BaseException as error:
                done.put((item, None, error))

    for _ in range(min(num_threads, len(items))):
        threading.Thread(target=run, daemon=True).start()
    try:
        for _ in items:
            item, result, error = done.get()
            if error is not None:
                raise error
            yield item, result  # type: ignore[misc]
    finally:
        stopped.set()
