"""`clipkit describe` against an endpoint on this machine."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from clipkit.zeroshot.describe import AnswerLog, _in_threads, merged, read_answers
from clipkit.zeroshot.describe_client import Endpoint, EndpointError, NoAnswer, NoList, ask
from clipkit.zeroshot.describe_prompts import DEFAULT_PROMPTS, Prompts, parse_descriptors
from clipkit.zeroshot.descriptions import DescriptionBank
from fake_endpoint import FakeEndpoint, Reply, completion, error, features_of, good_answer

from clipkit.cli import main

KEY = "sk-secret-0123456789"
NAMES = ["hen", "Fire_Truck", "corn field", "lynx"]
ALL = {name: features_of(name.replace("_", " ")) for name in NAMES}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_MODEL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    Path("classes.txt").write_text("\n".join(NAMES) + "\n")


@pytest.fixture
def endpoint() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as served:
        yield served


def _arguments(endpoint: FakeEndpoint, *arguments: str, llm: str = "test-llm") -> list[str]:
    fixed = ["--base-url", endpoint.base_url, "--llm", llm, "--output", "out.json"]
    return ["describe", "classes.txt", *fixed, "--wait-seconds", "0", *arguments]


def _written() -> Any:
    return json.loads(Path("out.json").read_text())


def _ask(endpoint: FakeEndpoint, waits: list[float] | None = None, **settings: Any) -> tuple[str, ...]:
    target = Endpoint(base_url=endpoint.base_url, **{"num_tries": 3, **settings})
    body = Prompts.read(None).body("test-llm", "hen")
    record = ([] if waits is None else waits).append
    return ask(target, body, lambda text, is_cut: parse_descriptors(text, is_cut=is_cut), wait=record)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- two legs\n- a comb", ("two legs", "a comb")),
        ("Sure!\n\n* two legs.\n  • red feathers;\n1. beak\n2) tail\n\nAnything else?", None),
        ("-two legs\n- two legs\n- Two legs", ("two legs", "Two legs")),
        ("- **Colour:** red - or brown", ("Colour: red - or brown",)),
        ("**Features**\n---\n- Body:\n   - small\n- \n-", ("small",)),
        ("<think>\n- is it a hen?\n</think>\n- wings", ("wings",)),
        ("<think>\n- is it a hen?", ()),
        ("1.5 m tall\n3 legs\nno list", ()),
        ("- {c} and \\u00e9\t d'or \ud800", ("{c} and \\u00e9 d'or ?",)),
        ("", ()),
    ],
)
def test_lines_of_a_list_are_descriptors(text: str, expected: tuple[str, ...] | None) -> None:
    assert parse_descriptors(text) == (
        ("two legs", "red feathers", "beak", "tail") if expected is None else expected
    )


def test_the_last_line_of_a_cut_answer_is_dropped(endpoint: FakeEndpoint) -> None:
    endpoint.reply = lambda *_: completion("- two legs\n- a co", "length")
    assert _ask(endpoint) == ("two legs",)
    endpoint.reply = lambda *_: completion("- two legs\n- a co", "stop")
    assert _ask(endpoint) == ("two legs", "a co")


def test_prompts_put_the_name_in_its_place() -> None:
    prompts = Prompts.of(
        {
            "messages": [
                {"role": "system", "content": "Be short. {d} {} {c}"},
                {"role": "user", "content": "{c}, {c}?"},
            ],
            "request": {"top_p": 0.5},
        }
    )
    assert prompts.body("some/llm", "fire_truck{c}") == {
        "top_p": 0.5,
        "model": "some/llm",
        "messages": [
            {"role": "system", "content": "Be short. {d} {} fire truck{c}"},
            {"role": "user", "content": "fire truck{c}, fire truck{c}?"},
        ],
    }
    assert prompts.by_hand("hen") == "Be short. {d} {} hen\n\nQ: hen, hen?\n\nA:"


def test_the_default_prompts_ask_for_what_is_parsed() -> None:
    prompts = Prompts.read(None)
    examples = [content for role, content in prompts.messages if role == "assistant"]
    assert [len(parse_descriptors(example)) for example in examples] == [6, 6]
    assert prompts.request == {"temperature": 0, "max_tokens": 400}
    assert "{c}" not in json.dumps(prompts.body("x", "hen"))


def test_anything_that_is_sent_changes_the_digest() -> None:
    content = yaml.safe_load(DEFAULT_PROMPTS)
    digests = {Prompts.of(content).digest, Prompts.read(None).digest}
    assert len(digests) == 1
    content["request"]["max_tokens"] += 1
    digests.add(Prompts.of(content).digest)
    content["messages"][0]["content"] += "!"
    digests.add(Prompts.of(content).digest)
    assert len(digests) == 3


def test_prompts_from_files() -> None:
    Path("prompts.txt").write_text("What is a {c}?\n")
    assert Prompts.read(Path("prompts.txt")).body("x", "hen") == {
        "model": "x",
        "messages": [{"role": "user", "content": "What is a hen?"}],
        "temperature": 0,
        "max_tokens": 400,
    }
    assert main(["describe", "--write-prompts", "mine.yaml"]) == 0
    assert Prompts.read(Path("mine.yaml")) == Prompts.read(None)
    assert main(["describe", "--write-prompts", "mine.yaml"]) == 1  # somebody's changes are in it


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("messages: [", "does not parse"),
        ("- a", "expected the keys `messages` and `request`"),
        ("messages: []\nprompt: x", "expected the keys `messages` and `request`"),
        ("messages: [{role: user}]", "must be a list of {role: ..., content: ...}"),
        ("messages: [{role: user, content: 3}]", "both of them texts"),
        ("messages: [{role: user, content: what}]", "need {c} where the class name goes"),
        ("messages: [{role: user, content: '{c}'}]\nrequest: {model: x}", "without model, messages"),
        ("messages: [{role: user, content: '{c}'}]\nrequest: {day: 2020-01-01}", "must hold what JSON can"),
    ],
)
def test_bad_prompts_are_refused(text: str, message: str) -> None:
    Path("bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"bad\.yaml") as caught:
        Prompts.read(Path("bad.yaml"))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("http://localhost:11434/v1", "http://localhost:11434/v1/chat/completions"),
        ("https://host/v1/", "https://host/v1/chat/completions"),
        ("https://host", "https://host/chat/completions"),
        ("https://host/v1/chat/completions", "https://host/v1/chat/completions"),
        ("https://host/openai?api-version=1", "https://host/openai/chat/completions?api-version=1"),
    ],
)
def test_urls(base_url: str, url: str) -> None:
    target = Endpoint(base_url=base_url, key=KEY)
    assert target.url == url
    assert target.shown == url.partition("?")[0]
    assert KEY not in repr(target)


@pytest.mark.parametrize(
    "settings",
    [
        {"base_url": "localhost:1/v1"},
        {"base_url": "file:///etc/passwd"},
        {"base_url": f"https://me:{KEY}@host/v1"},
        {"base_url": "https://host:port/v1"},
        {"base_url": "https://[host/v1"},
        {"base_url": "https://ho st/v1"},
        {"base_url": "https://host/v1", "key": f"{KEY}\n{KEY}"},
        {"base_url": "https://host/v1", "key": f"{KEY}é"},
        {"base_url": "https://host/v1", "num_tries": 0},
        {"base_url": "https://host/v1", "timeout_seconds": 0},
    ],
)
def test_endpoints_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"base URL must|key of the endpoint must|expected a try") as caught:
        Endpoint(**settings)
    assert KEY not in str(caught.value)


def test_a_request_is_what_chat_endpoints_take(endpoint: FakeEndpoint) -> None:
    assert _ask(endpoint, key=KEY) == tuple(features_of("hen"))
    assert endpoint.paths == ["/v1/chat/completions"]
    assert endpoint.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert endpoint.bodies[0]["model"] == "test-llm"
    assert endpoint.bodies[0]["temperature"] == 0
    assert "lemur" in json.dumps(endpoint.bodies[0])
    _ask(endpoint)
    assert "Authorization" not in endpoint.headers[1]


@pytest.mark.parametrize(
    ("failures", "waits"),
    [
        ([error(500), error(503, "overloaded")], [1, 2]),
        ([error(429, Retry_After="7"), error(429, Retry_After="0")], [7, 2]),
        ([error(529, Retry_After="soon"), error(408)], [1, 2]),
        ([error(503, Retry_After="Mon, 01 Jan 2001 00:00:00 GMT")], [1]),
        ([Reply(fault="drop"), Reply(fault="reset")], [1, 2]),
        ([Reply(body=good_answer("hen", 0).body, fault="cut")], [1]),
        ([Reply(body=b"<html>sign in</html>"), completion("I cannot do that.")], [1, 2]),
        ([], []),
    ],
)
def test_what_passes_is_tried_again(
    endpoint: FakeEndpoint, failures: list[Reply], waits: list[float]
) -> None:
    endpoint.reply = lambda name, number: (
        failures[number] if number < len(failures) else good_answer(name, number)
    )
    waited: list[float] = []
    assert _ask(endpoint, waited) == tuple(features_of("hen"))
    assert waited == waits


def test_waits_double_up_to_a_minute(endpoint: FakeEndpoint) -> None:
    endpoint.reply = lambda *_: error(502)
    waited: list[float] = []
    with pytest.raises(NoAnswer, match=r"HTTP 502 \(8 tries\)"):
        _ask(endpoint, waited, num_tries=8)
    assert waited == [1, 2, 4, 8, 16, 32, 60]


def test_silence_is_tried_again(endpoint: FakeEndpoint) -> None:
    endpoint.reply = lambda name, number: Reply(fault="hang") if not number else good_answer(name, number)
    assert _ask(endpoint, timeout_seconds=1.0, num_tries=20) == tuple(features_of("hen"))
    endpoint.reply = lambda *_: Reply(fault="hang")
    with pytest.raises(NoAnswer, match=r"no answer in 0.05 s \(one try\)"):
        _ask(endpoint, timeout_seconds=0.05, num_tries=1)


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (Reply(body=b"<html>\n sign  in</html>"), NoAnswer, "got '<html> sign in</html>'"),
        (Reply(body=b""), NoAnswer, "got ''"),
        (Reply(body=b"[" * 100_000), NoAnswer, "expected a chat completion"),
        (Reply(body=b'{"choices": []}'), NoAnswer, "expected a chat completion"),
        (Reply(body=b'{"choices": [{"message": "- x"}]}'), NoAnswer, "expected a chat completion"),
        (Reply(body=b'{"error": {"message": "no GPU"}}'), NoAnswer, "got 'no GPU'"),
        (Reply(body=f'{{"error": "you are {KEY}"}}'.encode()), NoAnswer, "got 'you are [key]'"),
        (completion(None), NoList, "the answer is empty"),
        (completion(["- a list"]), NoList, "the answer is empty"),
        (completion("A hen\x1b[2J has two legs."), NoList, "no list in the answer 'A hen [2J has two legs.'"),
        (error(500, "x" * 190 + KEY), NoAnswer, "HTTP 500: xxx"),
    ],
)
def test_rubbish_ends_after_all_tries(
    endpoint: FakeEndpoint, reply: Reply, kind: type[NoAnswer], message: str
) -> None:
    endpoint.reply = lambda *_: reply
    with pytest.raises(NoAnswer) as caught:
        _ask(endpoint, key=KEY)
    assert type(caught.value) is kind
    assert message in str(caught.value)
    assert "(3 tries)" in str(caught.value)
    assert KEY[:8] not in str(caught.value)
    assert len(endpoint.asked) == 3


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (error(401, f"wrong key: {KEY}"), EndpointError, "not accepted (HTTP 401: wrong key: [key])"),
        (error(402), EndpointError, "no credit (HTTP 402"),
        (error(404, "no model test-llm"), EndpointError, "(HTTP 404: no model test-llm)"),
        (Reply(404, b"<html>not\nfound"), EndpointError, "(HTTP 404: <html>not found)"),
        (error(302, Location=f"https://else/v1?key={KEY}"), EndpointError, "redirects to https://else/v1;"),
        (error(503, Retry_After="3600"), EndpointError, "come back in 3600 s"),
        (error(429, Retry_After="Mon, 01 Jan 2990 00:00:00 GMT"), EndpointError, "asks to come back in"),
        (error(400, "filtered"), NoAnswer, "HTTP 400: filtered"),
        (error(403, "filtered"), NoAnswer, "HTTP 403: filtered"),
    ],
)
def test_what_stays_is_not_tried_again(
    endpoint: FakeEndpoint, reply: Reply, kind: type[Exception], message: str
) -> None:
    endpoint.reply = lambda *_: reply
    with pytest.raises(kind) as caught:
        _ask(endpoint, key=KEY)
    assert message in str(caught.value)
    assert KEY not in str(caught.value)
    assert len(endpoint.asked) == 1


def test_an_endpoint_that_is_not_there() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # bound and not listening: a connection is refused
        target = Endpoint(base_url=f"http://127.0.0.1:{probe.getsockname()[1]}/v1", num_tries=2)
        waited: list[float] = []
        with pytest.raises(EndpointError, match=r"cannot be reached: .*refused.*\(2 tries\)"):
            ask(target, {}, lambda *_: ("x",), wait=waited.append)
    assert waited == [1]


def test_a_file_of_descriptions_is_written(
    endpoint: FakeEndpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.base_url)
    monkeypatch.setenv("OPENAI_MODEL", "other-llm")
    assert main(["describe", "classes.txt", "--output", "new/out.json"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "new/out.json: 4 classes, 8 descriptors\n"
    assert "classes 4/4" in printed.err
    assert json.loads(Path("new/out.json").read_text()) == ALL
    assert list(json.loads(Path("new/out.json").read_text())) == NAMES
    assert DescriptionBank.read("new/out.json").match(["fire truck", "hen", "lynx", "corn_field"])
    assert sorted(endpoint.asked) == sorted(name.replace("_", " ") for name in NAMES)
    assert {body["model"] for body in endpoint.bodies} == {"other-llm"}
    assert {headers["Authorization"] for headers in endpoint.headers} == {f"Bearer {KEY}"}
    files = [path for path in Path().rglob("*") if path.is_file()]
    assert sorted(map(str, files)) == ["classes.txt", "new/out.json"]
    assert KEY not in printed.out + printed.err + "".join(path.read_text() for path in files)


def test_questions_are_on_their_way_together(endpoint: FakeEndpoint) -> None:
    together = threading.Barrier(3)

    def reply(name: str, number: int) -> Reply:
        if name != "lynx":
            together.wait(timeout=60)  # breaks, and the answer with it, unless three are here
        return good_answer(name, number)

    endpoint.reply = reply
    assert main(_arguments(endpoint, "--num-requests", "3", "--num-tries", "1")) == 0
    assert _written() == ALL


def test_a_class_without_answer_is_named_and_asked_for_again(
    endpoint: FakeEndpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint.reply = lambda name, number: (
        completion("A hen is a hen.") if name == "hen" else good_answer(name, number)
    )
    assert main(_arguments(endpoint, "--num-tries", "2")) == 1
    printed = capsys.readouterr()
    assert endpoint.asked.count("hen") == 2
    assert "not described: hen: no list in the answer 'A hen is a hen.' (2 tries)\n" in printed.err
    assert "left out for want of descriptions: 1; the same command asks for these alone" in printed.err
    assert printed.out == "out.json: 3 classes, 6 descriptors\n"
    assert list(_written()) == NAMES[1:]
    edited = {"lynx": ["ears with tufts"], **{name: ALL[name] for name in NAMES[1:3]}, "wolf": []}
    Path("out.json").write_text(json.dumps(edited))
    endpoint.reply = good_answer
    endpoint.asked.clear()
    assert main(_arguments(endpoint, llm="another")) == 0
    assert endpoint.asked == ["hen"]
    assert "3 of 4 classes have descriptions, which stay as they are" in capsys.readouterr().err
    assert _written() == {**ALL, "lynx": ["ears with tufts"], "wolf": []}
    assert list(_written()) == [*NAMES, "wolf"]
    endpoint.asked.clear()
    assert main(_arguments(endpoint)) == 0
    assert endpoint.asked == []
    assert sorted(os.listdir()) == ["classes.txt", "out.json"]


def test_nothing_is_written_where_no_class_is_described(
    endpoint: FakeEndpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint.reply = lambda *_: completion("no")
    Path("classes.txt").write_text("\n".join(f"class {number}" for number in range(8)))
    assert main(_arguments(endpoint, "--num-tries", "1")) == 1
    assert capsys.readouterr().err.count("not described: ") == 8
    assert os.listdir() == ["classes.txt"]


@pytest.mark.parametrize("reply", [error(400, "no such field"), error(500), Reply(body=b"<html>")])
def test_an_endpoint_that_always_fails_is_not_asked_for_all(
    endpoint: FakeEndpoint, capsys: pytest.CaptureFixture[str], reply: Reply
) -> None:
    names = [f"class {number}" for number in range(50)]
    Path("classes.txt").write_text("\n".join(names))
    replies = [*[None] * 3, *[reply] * 5, *[Reply(fault="hang")] * 42]
    endpoint.reply = lambda name, number: replies[names.index(name)] or good_answer(name, number)
    assert main(_arguments(endpoint, "--num-tries", "1", "--num-requests", "1")) == 1
    printed = capsys.readouterr()
    assert endpoint.asked[:8] == names[:8]
    assert "5 classes in a row got no answer, the last of them 'class 7'" in printed.err
    assert "out.json.partial.jsonl keeps 3 answers; the same command asks for the rest" in printed.err
    assert not Path("out.json").exists()
    with FakeEndpoint() as other:
        assert main(_arguments(other)) == 0
    assert sorted(other.asked) == sorted(names[3:])
    assert list(_written()) == names


def test_failures_that_are_not_in_a_row_leave_the_others_their_answers(endpoint: FakeEndpoint) -> None:
    names = [f"class {number}" for number in range(20)]
    Path("classes.txt").write_text("\n".join(names))
    endpoint.reply = lambda name, number: good_answer(name, number) if name in names[::2] else error(400)
    assert main(_arguments(endpoint, "--num-requests", "1")) == 1
    assert endpoint.asked == names
    assert list(_written()) == names[::2]


def test_a_wrong_key_stops_at_once(endpoint: FakeEndpoint, capsys: pytest.CaptureFixture[str]) -> None:
    endpoint.reply = lambda *_: error(401, "bad key")
    assert main(_arguments(endpoint, "--num-requests", "1")) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert f"{endpoint.base_url}/chat/completions: the key is missing or not accepted" in printed.err
    assert os.listdir() == ["classes.txt"]


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_what_was_answered_outlives_the_process(endpoint: FakeEndpoint, sign: int) -> None:
    has_asked = threading.Event()

    def reply(name: str, number: int) -> Reply:
        if name != "corn field":
            return good_answer(name, number)
        has_asked.set()
        return Reply(fault="hang")

    endpoint.reply = reply
    command = [sys.executable, "-m", "clipkit", *_arguments(endpoint, "--num-requests", "1")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as job:
        assert has_asked.wait(timeout=120)
        # The second answer is on the disk before the third question, or soon after it.
        log = Path("out.json.partial.jsonl")
        while "Fire_Truck" not in log.read_text():
            assert job.poll() is None
        job.send_signal(sign)
        _, printed = job.communicate(timeout=120)
    assert job.returncode == (130 if sign == signal.SIGINT else -signal.SIGKILL)
    if sign == signal.SIGINT:
        # The signal may come between the write of the second answer and its count.
        assert re.search("keeps [12] answers; the same command asks for the rest\n", printed)
    assert not Path("out.json").exists()
    with log.open("a") as file:
        file.write('{"class": "lynx", "descr')  # what a kill can leave of the last line
    endpoint.reply = good_answer
    endpoint.asked.clear()
    assert main(_arguments(endpoint)) == 0
    assert sorted(endpoint.asked) == ["corn field", "lynx"]
    assert _written() == ALL
    assert sorted(os.listdir()) == ["classes.txt", "out.json"]


@pytest.mark.parametrize("change", ["llm", "prompts"])
def test_answers_to_different_questions_are_not_mixed(
    endpoint: FakeEndpoint, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    with AnswerLog(Path("out.json"), llm="test-llm", digest=Prompts.read(None).digest) as log:
        log.add("hen", ("by an earlier run",))
    Path("mine.txt").write_text("And {c}?")
    if change == "llm":
        assert main(_arguments(endpoint, llm="another")) == 2
    else:
        assert main(_arguments(endpoint, "--prompts", "mine.txt")) == 2
    printed = capsys.readouterr().err
    assert "out.json.partial.jsonl holds 1 answers of 'test-llm' and " in printed
    assert {"llm": "another LLM", "prompts": "other prompts"}[change] in printed
    assert endpoint.asked == []
    assert main(_arguments(endpoint)) == 0
    assert "hen" not in endpoint.asked
    assert _written() == {**ALL, "hen": ["by an earlier run"]}


def test_a_line_that_a_kill_has_cut_is_cut_off() -> None:
    path = Path("out.json.partial.jsonl")
    for number, name in enumerate(NAMES):
        with AnswerLog(Path("out.json"), llm="a", digest="b") as log:
            assert list(log.known) == NAMES[:number]
            log.add(name, (f"é {number}",))
        with path.open("a") as file:
            file.write('{"class": "cat", "descr')
    with AnswerLog(Path("out.json"), llm="a", digest="b") as log:
        assert log.known == {name: (f"é {number}",) for number, name in enumerate(NAMES)}
    path.write_text('{"llm": "a", "pro')
    with AnswerLog(Path("out.json"), llm="a", digest="b") as log:
        assert log.known == {}
    assert json.loads(path.read_text()) == {"llm": "a", "prompts": "b"}


def test_threads_take_nothing_more_once_nobody_listens() -> None:
    before = set(threading.enumerate())
    gate, taken = threading.Semaphore(0), []

    def work(item: int) -> int:
        taken.append(item)
        gate.acquire()
        return -item

    results = _in_threads(range(100), work, 2)
    gate.release()
    item, result = next(results)
    assert result == -item
    (worker, *others) = set(threading.enumerate()) - before
    results.close()
    gate.release(100)
    for thread in (worker, *others):
        thread.join(timeout=60)
    assert len(taken) <= 3


def test_a_log_that_is_none_is_refused() -> None:
    for text in ("no json\n", '"text"\n', '{"llm": "a", "prompts": "b"}\n{"class": "hen"}\n', "\n"):
        Path("out.json.partial.jsonl").write_text(text)
        with pytest.raises(ValueError, match="is no log of answers; delete it to begin anew"):
            AnswerLog(Path("out.json"), llm="a", digest="b")
        assert Path("out.json.partial.jsonl").read_text() == text


def test_listed_classes_come_first_and_in_their_spelling() -> None:
    before = {"Wolf": ("grey",), "fire truck": ("old",), "hen": ("two legs",)}
    answers = {"fire_truck": ("red",), "gone": ("from the list",)}
    found = merged(["Fire-Truck", "cat", "Hen"], before, answers)
    assert found == {"Fire-Truck": ("red",), "Hen": ("two legs",), "Wolf": ("grey",)}
    assert list(found) == ["Fire-Truck", "Hen", "Wolf"]
    with pytest.raises(ValueError, match="'a b' is listed twice, as 'a b' and 'A_b'"):
        merged(["a b", "A_b"], {}, {})


def test_answers_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "classes.txt", "--print-prompts"]) == 0
    printed = capsys.readouterr().out
    headings = [line for line in printed.splitlines() if line.startswith("# ")]
    assert headings == [f"# {name}" for name in NAMES]
    assert printed.count("a photo shows this: Fire Truck?\n\nA:") == 1
    Path("answers.txt").write_text("\n# Hen\nSure:\n- two legs\n- comb\n\n## fire truck\n* red\n# lynx\nno\n")
    arguments = ["describe", "classes.txt", "--from-answers", "answers.txt", "--output", "out.json"]
    assert main(arguments) == 1
    printed = capsys.readouterr().err
    assert "not described: corn field: no list in answers.txt\nnot described: lynx: no list" in printed
    assert _written() == {"hen": ["two legs", "comb"], "Fire_Truck": ["red"]}
    Path("answers.txt").write_text("# hen\n- wings\n# lynx\n- tufts\n# corn-field\n- rows\n")
    assert main(arguments) == 0
    assert _written() == {
        "hen": ["wings"],
        "Fire_Truck": ["red"],
        "corn field": ["rows"],
        "lynx": ["tufts"],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# henn\n- x", "line 1: 'henn' is no class; did you mean 'hen'?"),
        ("# hen\n- x\n# HEN\n- y", "line 3: 'HEN' comes twice"),
        ("\n- x", "line 2: expected `# class name` above the first answer"),
    ],
)
def test_bad_answers_by_hand(text: str, message: str) -> None:
    Path("answers.txt").write_text(text)
    with pytest.raises(ValueError, match=r"answers\.txt") as caught:
        read_answers(Path("answers.txt"), NAMES)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a file with a class name a line"),
        (["classes.txt"], "name the LLM: --llm NAME, or OPENAI_MODEL"),
        (["classes.txt", "--llm", "x"], "no key in $OPENAI_API_KEY"),
        (["classes.txt", "--llm", "x", "--base-url", "http://h", "--api-key-env", "MINE"], "key in $MINE"),
        (["classes.txt", "--llm", "x", "--base-url", "h"], "base URL must look like https://HOST/v1"),
        (["classes.txt", "--num-requests", "0"], "--num-requests must be at least 1, got 0"),
        (["classes.txt", "--output", "folder"], "--output must name a file, folder is a folder"),
        (["classes.txt", "--print-prompts", "--from-answers", "x"], "--print-prompts and --from-answers"),
        (["twice.txt", "--llm", "x", "--base-url", "http://h"], "is listed twice, as 'a b' and 'a_b'"),
        (["classes.txt", "--llm", "x", "--base-url", "http://h", "--output", "twice.txt"], "does not parse"),
        (["nowhere.txt"], "nowhere.txt"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    Path("folder").mkdir()
    Path("twice.txt").write_text("a b\na_b\n")
    assert main(["describe", *arguments]) in (1, 2)
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert sorted(os.listdir()) == ["classes.txt", "folder", "twice.txt"]


def test_help_is_there_without_torch() -> None:
    script = (
        "import sys; from clipkit.cli import main; assert main(['describe', '--help']) == 0; "
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert "clipkit.zeroshot.describe_cli" in loaded
    assert not loaded & {"torch", "numpy", "open_clip", "urllib.request"}
