from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from clipkit.zeroshot.tasks.multiple_choice import MultipleChoice
from clipkit.zeroshot.tasks.topic_files import Sentences, draw_questions, read_sentences
from made_features import features_of, random_unit
from PIL import Image
from torch import Tensor

TOPICS = ("entertainment", "geography", "health", "politics", "science", "sports", "travel")
E = torch.eye(8)
PINNED = ((1, 0), (0, 9, 26, 13))


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def write_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)
    return path


def write_sib(
    root: Path,
    *,
    languages: tuple[str, ...] = ("deu_Latn", "eng_Latn"),
    per_topic: int = 5,
    num_images: int = 3,
) -> Path:
    """Folders `sib200` and `images/sib200`; sentence n of language L is "L n", of topic n mod 7."""
    for language in languages:
        folder = root / "sib200" / language
        folder.mkdir(parents=True)
        for place, split in enumerate(("train", "dev", "test")):
            numbers = range(place, 7 * per_topic, 3)
            rows = [f"{n}\t{category(n)}\t{language} {n}\n" for n in reversed(numbers)]
            (folder / f"{split}.tsv").write_text("index_id\tcategory\ttext\n" + "".join(rows))
    for topic in TOPICS:
        for number in range(num_images):
            write_image(root / "images" / "sib200" / f"{topic}_{number}.jpg")
    return root / "sib200"


def category(number: int) -> str:
    topic = TOPICS[number % 7]
    return "science/technology" if topic == "science" else topic


def topic_features(
    data: Path, *, wrong: frozenset[str] = frozenset()
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All images and texts of a topic have its unit vector; texts in `wrong` that of no topic."""
    images = {
        str(path): E[TOPICS.index(path.stem.split("_")[0])]
        for path in sorted((data.parent / "images" / "sib200").iterdir())
    }
    texts = {topic: E[n] for n, topic in enumerate(TOPICS)}
    for folder in data.iterdir():
        sentences = read_sentences(folder)
        for topic, text in zip(sentences.topics, sentences.texts, strict=True):
            texts[text] = E[7] if text in wrong else E[TOPICS.index(topic)]
    return images, texts


@pytest.mark.parametrize("direction", ["img2sent", "sent2img", "topic2sent", "sent2topic"])
@pytest.mark.parametrize("num_references", [1, 3])
def test_a_model_of_topics_is_right_everywhere(tmp_path: Path, direction: str, num_references: int) -> None:
    data = write_sib(tmp_path)
    task = MultipleChoice(data=data, direction=direction, num_references=num_references)
    images, texts = topic_features(data)
    sources = task.sources()
    if "img" in direction:
        assert [sources["images"].read(n).key for n in range(21)] == list(images)
    else:
        assert sources == {}
        images = {}
    found = task.measure(features_of(images, texts))
    assert found.metrics == {"acc": 1.0}
    assert found.outcomes["acc"].tolist() == [1.0] * 35  # the items are the sentences
    assert found.chance == {"acc": 0.25}
    assert found.tables[0].rows == (
        ("deu_Latn", "105", "100.0 %", "96.5 to 100.0 %"),
        ("eng_Latn", "105", "100.0 %", "96.5 to 100.0 %"),
    )


def test_wrong_sentences_count_by_language_and_by_sentence(tmp_path: Path) -> None:
    """In `sent2topic` with one reference, a sentence without a topic ties and is wrong three times."""
    data = write_sib(tmp_path)
    images, texts = topic_features(data, wrong=frozenset({"deu_Latn 4", "deu_Latn 9", "eng_Latn 9"}))
    found = MultipleChoice(data=data, direction="sent2topic").measure(features_of(images, texts))
    expected = torch.ones(35, dtype=torch.float64)
    expected[4], expected[9] = 0.5, 0.0
    torch.testing.assert_close(found.outcomes["acc"], expected)
    assert found.metrics["acc"] == pytest.approx(33.5 / 35)
    assert [row[2] for row in found.tables[0].rows] == ["94.3 %", "97.1 %"]


def test_random_features_are_at_chance(tmp_path: Path) -> None:
    data = write_sib(tmp_path, languages=("eng_Latn",), per_topic=60)
    images, texts = topic_features(data)
    total = 0.0
    for seed in range(10):
        random_images = dict(zip(images, random_unit(len(images), 32, seed=seed), strict=True))
        random_texts = dict(zip(texts, random_unit(len(texts), 32, seed=100 + seed), strict=True))
        task = MultipleChoice(data=data, num_references=2, seed=seed)
        total += task.measure(features_of(random_images, random_texts)).metrics["acc"] / 10
    # 4,200 independent sentences at least: four standard deviations.
    assert abs(total - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4200)


def test_references_are_averaged(tmp_path: Path) -> None:
    """A reference alone chooses the wrong candidate, the mean of both unit vectors the right one."""
    line = {"texts": ["a", "b"], "candidate_texts": ["left", "right"], "answer": 1}
    texts = {
        "a": torch.tensor([0.8, 0.6, 0.0]),  # left 0.8, right 0.6
        "b": torch.tensor([0.0, 0.6, 0.8]),  # left 0, right 0.6
        "left": torch.tensor([1.0, 0.0, 0.0]),
        "right": torch.tensor([0.0, 1.0, 0.0]),
    }
    for references, acc in ((["a", "b"], 1.0), (["a"], 0.0)):
        path = write_lines(tmp_path / "q.jsonl", [{**line, "texts": references}])
        assert MultipleChoice(data=path).measure(features_of({}, texts)).metrics["acc"] == acc


def sentences(per_topic: int = 4) -> Sentences:
    numbers = range(7 * per_topic)
    return Sentences(
        ids=tuple(3 * n for n in numbers),
        topics=tuple(TOPICS[n % 7] for n in numbers),
        texts=tuple(map(str, numbers)),
    )


@pytest.mark.parametrize("direction", ["img2sent", "sent2img", "topic2sent", "sent2topic"])
def test_questions_have_one_candidate_of_the_topic_and_distinct_references(direction: str) -> None:
    own = sentences()
    images = tuple(topic for topic in TOPICS for _ in range(5))
    drawn = draw_questions(own, images, direction=direction, num_references=3, seed=0)
    topic_of = {"sent": own.topics, "img": images, "topic": TOPICS}
    asked, chosen = (topic_of[name] for name in direction.split("2"))
    assert drawn.sentences == tuple(range(28)) * 3
    for sentence, references, candidates in zip(
        drawn.sentences, drawn.references, drawn.candidates, strict=True
    ):
        topic = own.topics[sentence]
        assert len(set(references)) == (1 if direction.startswith("topic") else 3)
        assert {asked[row] for row in references} == {topic}
        assert chosen[candidates[0]] == topic
        assert len({chosen[row] for row in candidates}) == 4
        assert (
            sentence == (references[0] if direction.startswith("sent") else candidates[0]) or chosen is images
        )
    draws = [drawn.candidates[place::28] for place in range(28)]
    assert sum(len(set(three)) == 3 for three in draws) > 20  # the three questions of a sentence differ


def test_questions_do_not_depend_on_language_or_order_but_on_the_seed(tmp_path: Path) -> None:
    data = write_sib(tmp_path)
    german, english = (read_sentences(data / language) for language in ("deu_Latn", "eng_Latn"))
    images = tuple(topic for topic in TOPICS for _ in range(3))
    first, second, other = (
        draw_questions(own, images, direction="img2sent", num_references=2, seed=seed)
        for own, seed in ((german, 0), (english, 0), (english, 1))
    )
    assert first == second
    assert first != other
    # Pinned: figures of different versions and machines must be of the same questions.
    assert (first.references[0], first.candidates[0]) == PINNED
    assert english.ids == tuple(range(35))
    assert english.topics[4] == "science"


def test_all_topics_are_drawn_as_wrong_ones() -> None:
    own = sentences(40)
    drawn = draw_questions(own, (), direction="sent2topic", num_references=1, seed=0)
    counts = torch.bincount(torch.tensor(drawn.candidates).flatten(), minlength=7)
    # 840 questions, of which each topic is right in 120 and expected to be wrong in half of the others.
    assert (counts - 480).abs().max() < 4 * math.sqrt(720 / 4)


def test_missing_images_leave_out_their_questions(tmp_path: Path) -> None:
    data = write_sib(tmp_path, languages=("eng_Latn",))
    images, texts = topic_features(data)
    task = MultipleChoice(data=data, direction="sent2img")
    lost = str(data.parent / "images" / "sib200" / "health_1.jpg")
    drawn, paths = task._topic_questions
    num_lost = sum(paths.index(Path(lost)) in own for own in drawn.candidates)
    assert 0 < num_lost < 105
    del images[lost]
    found = task.measure(features_of(images, texts))
    assert found.metrics == {"acc": 1.0}
    assert found.notes[0] == f"{num_lost} of 105 items are left out: an image of theirs cannot be read."


def test_languages_are_chosen_and_must_be_parallel(tmp_path: Path) -> None:
    data = write_sib(tmp_path)
    images, texts = topic_features(data)
    one = MultipleChoice(data=data, languages=("eng_Latn",)).measure(features_of(images, texts))
    assert one.metrics == {"acc": 1.0}
    assert one.tables == ()
    with pytest.raises(ValueError, match="has no language 'eng_Lat'; did you mean 'eng_Latn'"):
        MultipleChoice(data=data, languages=("eng_Lat",)).sources()
    file = data / "eng_Latn" / "dev.tsv"
    file.write_text(file.read_text().replace("sports", "travel"))
    with pytest.raises(ValueError, match="must have the ids and categories of deu_Latn"):
        MultipleChoice(data=data).sources()


def test_sentences_with_quotation_marks(tmp_path: Path) -> None:
    data = write_sib(tmp_path, languages=("eng_Latn",))
    file = data / "eng_Latn" / "dev.tsv"
    header, *rows = file.read_text().splitlines()
    quoted = '"They say ""hei"" there."'
    file.write_text("\n".join([header, rows[0].rpartition("\t")[0] + "\t" + quoted, *rows[1:]]) + "\n")
    assert 'They say "hei" there.' in read_sentences(data / "eng_Latn").texts
    for damage, message in (
        ('"not closed', "must hold a number, a category and a text"),
        (" ", "line 2 must hold a number"),
        ("a\tb", "line 2 must hold a number"),
    ):
        file.write_text("\n".join([header, rows[0].rpartition("\t")[0] + "\t" + damage, *rows[1:]]) + "\n")
        with pytest.raises(ValueError, match=message):
            read_sentences(data / "eng_Latn")
    file.write_text("\n".join([header, rows[0], rows[0]]))
    with pytest.raises(ValueError, match="line 3: the sentence 34 occurs twice"):
        read_sentences(data / "eng_Latn")
    file.write_text("id\ttext\n")
    with pytest.raises(ValueError, match="must have the columns index_id, category, text"):
        read_sentences(data / "eng_Latn")


def test_places_without_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected folders of languages such as"):
        MultipleChoice(data=tmp_path).sources()
    data = write_sib(tmp_path)
    with pytest.raises(ValueError, match="has fewer than 4 images to ask by"):
        MultipleChoice(data=data, num_references=4).sources()
    for file in (tmp_path / "images" / "sib200").glob("sports_*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"has no images of the topic 'sports', such as sports_0\.jpg"):
        MultipleChoice(data=data).sources()
    with pytest.raises(FileNotFoundError):
        MultipleChoice(data=data, images=tmp_path / "nowhere").sources()
    few = Sentences(ids=(1, 2), topics=("a", "b"), texts=("x", "y"))
    with pytest.raises(ValueError, match="questions need 4 topics, got a, b"):
        draw_questions(few, (), direction="sent2topic", num_references=1, seed=0)


def test_settings_are_checked(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="direction must be one of img2sent, sent2img, topic2sent, sent2topic"
    ):
        MultipleChoice(data=tmp_path, direction="img2img")
    with pytest.raises(ValueError, match="num_references must be >= 1, got 0"):
        MultipleChoice(data=tmp_path, num_references=0)


def test_own_questions(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        write_image(tmp_path / "images" / name)
    path = write_lines(
        tmp_path / "q.jsonl",
        [
            {"images": ["a.jpg", "b.jpg"], "candidate_texts": ["x", "y", "z"], "answer": 2, "language": "en"},
            {"texts": ["x"], "candidate_images": ["b.jpg", "a.jpg"], "answer": 1, "language": "en"},
            {"images": ["c.jpg"], "candidate_images": ["a.jpg", "b.jpg"], "answer": 0, "language": "de"},
        ],
    )
    task = MultipleChoice(data=path)
    source = task.sources()["images"]
    keys = [str(tmp_path / "images" / name) for name in ("a.jpg", "b.jpg", "c.jpg")]
    assert [source.read(n).key for n in range(len(source))] == keys
    vectors = dict(zip(keys, (E[0], E[1], torch.tensor([0.6, 0.8, 0, 0, 0, 0, 0, 0])), strict=True))
    texts = {"x": E[0], "y": E[3], "z": (E[0] + E[1]) / math.sqrt(2)}
    found = task.measure(features_of(vectors, texts))
    assert found.outcomes["acc"].tolist() == [1, 1, 0]
    assert found.chance["acc"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3)
    assert [row[:3] for row in found.tables[0].rows] == [("de", "1", "0.0 %"), ("en", "2", "100.0 %")]
    one = MultipleChoice(data=path, languages=("en",)).measure(features_of(vectors, texts))
    assert one.outcomes["acc"].tolist() == [1, 1]
    with pytest.raises(ValueError, match="has no language 'fr', it has de, en"):
        MultipleChoice(data=path, languages=("fr",)).sources()


def test_own_questions_with_missing_images(tmp_path: Path) -> None:
    key = str(write_image(tmp_path / "a.jpg"))
    lines = [{"images": [name], "candidate_texts": ["x", "y"], "answer": 0} for name in ("a.jpg", "lost.jpg")]
    task = MultipleChoice(data=write_lines(tmp_path / "q.jsonl", lines))
    assert len(task.sources()["images"]) == 2
    found = task.measure(features_of({key: E[0]}, {"x": E[0], "y": E[1]}))
    assert found.outcomes["acc"].tolist() == [1]
    assert found.notes == ("1 of 2 items are left out: an image of theirs cannot be read.",)
    assert found.tables == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 2}, "needs an 'answer' of 0 to 1, got 2"),
        ({"answer": "0"}, "needs an 'answer' of 0 to 1, got '0'"),
        ({"answer": True}, "needs an 'answer' of 0 to 1, got True"),
        ({"candidate_texts": ["x"], "answer": 0}, "needs at least two candidates, got 'x'"),
        ({"candidate_images": ["a.jpg"]}, "needs one of 'candidate_images' and 'candidate_texts'"),
        ({"texts": ["t"]}, "needs one of 'images' and 'texts'"),
        ({"images": []}, "needs a list of texts 'images'"),
        ({"language": 3}, "needs a text 'language', got 3"),
    ],
)
def test_damaged_questions(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    line = {"images": ["a.jpg"], "candidate_texts": ["x", "y"], "answer": 0}
    path = write_lines(tmp_path / "q.jsonl", [{**line, **change}])
    with pytest.raises(ValueError, match=f"line 1 {message}"):
        MultipleChoice(data=path).sources()
