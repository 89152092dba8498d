"""Candidate phrases for regions: the noun phrases of captions (VESL, arXiv:2410.02746, section 4).

Words are tagged with their part of speech, and chunks of the grammar `NP: {<DT>?<JJ.*>*<NN.*>+}` are lower
cased. Left out are phrases about the picture instead of what is in it, with no other noun than generic ones
("a photo", "the front view", but not "a mountain view"), and phrases of stop words alone.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

GRAMMAR = "NP: {<DT>?<JJ.*>*<NN.*>+}"

GENERIC = "phrase_about_the_picture"
STOP_WORDS_ONLY = "phrase_of_stop_words"
OVER_LIMIT = "phrase_over_the_limit"

_GENERIC = """
    image images picture pictures photo photos photograph photographs photography snapshot shot closeup
    close-up view views scene background foreground middle center centre corner left right top bottom front
    back rear side sides edge end inside outside area place number amount lot lots bunch kind kinds sort
    type types variety way time day thing things something anything nothing stuff
"""
_STOP_WORDS = """
    a an the this that these those some any each every either neither both all half no none such other others
    another one ones two i me my mine you your yours he him his she her hers it its we us our ours they them
    their theirs who whom whose which what where when why how there here and or but nor so if than then as of
    at by for with about against between into through during before after above below to from up down in out
    on off over under again once more most few many much several only own same too very just not now is are
    was were be been being am has have had having do does did doing will would can could should may might
    must 's n't
"""

GENERIC_WORDS = frozenset(_GENERIC.split())
"""A phrase without another noun than these is about the picture, a place in it, or a number."""

STOP_WORDS = frozenset(_STOP_WORDS.split())
"""Words of English without content."""

Tagged = list[tuple[str, str]]
Tagger = Callable[[list[str]], Tagged]
"""Words of a sentence -> words with Penn Treebank tags."""

_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+")


@dataclass(frozen=True)
class Phrases:
    """Candidates of one image."""

    phrases: tuple[str, ...]
    """Lower case, each once, in the order of the captions."""
    left_out: dict[str, int]
    """Different phrases that are no candidates, by reason."""


class NounPhrases:
    """Finds the candidate phrases of captions in English."""

    def __init__(self, tagger: str = "textblob") -> None:
        """Load a tagger.

        Args:
            tagger: a key of `TAGGERS`.

        Raises:
            OSError: its package or its data is not installed.
        """
        self._tag = TAGGERS[tagger]()
        from nltk.chunk.regexp import RegexpParser
        from nltk.tokenize.destructive import NLTKWordTokenizer

        self._words = NLTKWordTokenizer().tokenize
        self._chunks = RegexpParser(GRAMMAR)

    def __call__(self, captions: Sequence[str], limit: int = 20) -> Phrases:
        """The first `limit` different phrases of the captions of an image."""
        reasons = {
            _text(chunk): _why_not(chunk) for caption in captions for chunk in self._tagged_chunks(caption)
        }
        candidates = tuple(phrase for phrase, reason in reasons.items() if reason is None)
        left_out = Counter(reason for reason in reasons.values() if reason is not None)
        if len(candidates) > limit:
            left_out[OVER_LIMIT] = len(candidates) - limit
        return Phrases(candidates[:limit], dict(left_out))

    def chunks(self, caption: str) -> list[str]:
        """All noun phrases of a caption, lower case."""
        return [_text(chunk) for chunk in self._tagged_chunks(caption)]

    def _tagged_chunks(self, caption: str) -> list[Tagged]:
        found = []
        for sentence in _SENTENCE_END.split(caption):
            words = self._words(sentence)
            if not words:
                continue
            tree = self._chunks.parse(self._tag(words))
            for chunk in tree.subtrees(lambda part: part.label() == "NP"):
                found.append([(word.lower(), tag) for word, tag in chunk.leaves()])
        return found


def _text(chunk: Tagged) -> str:
    return " ".join(word for word, _ in chunk)


def _why_not(chunk: Tagged) -> str | None:
    """Why a phrase is no candidate, None for one that is."""
    if all(word in STOP_WORDS for word, _ in chunk):
        return STOP_WORDS_ONLY
    nouns = {word for word, tag in chunk if tag.startswith("NN")}
    return GENERIC if nouns <= GENERIC_WORDS | STOP_WORDS else None


def _textblob() -> Tagger:
    """TextBlob's tagger by lexicon and rules, which comes with the package."""
    try:
        from textblob.en.taggers import PatternTagger
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    tagger = PatternTagger()

    def tag(words: list[str]) -> Tagged:
        tagged: Tagged = tagger.tag(" ".join(words), tokenize=False)
        return tagged

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its lexicon open
        tag(["word"])  # reads the lexicon
    return tag


def _nltk() -> Tagger:
    """NLTK's averaged perceptron, as the paper has it; its weights are downloaded by a command of NLTK."""
    try:
        from nltk.tag.perceptron import PerceptronTagger
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    try:
        tagger = PerceptronTagger()
    except LookupError:
        raise OSError(
            "--tagger nltk needs the weights of NLTK's tagger: "
            "python -m nltk.downloader averaged_perceptron_tagger_eng, or take --tagger textblob"
        ) from None
    tag: Tagger = tagger.tag
    return tag


def _missing(error: ModuleNotFoundError) -> OSError:
    return OSError(f"phrases of captions need {error.name}: pip install 'clipkit[regions]'")


TAGGERS: dict[str, Callable[[], Tagger]] = {"textblob": _textblob, "nltk": _nltk}
