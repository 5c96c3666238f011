"""Sentences to be spoken: filtered from books and quotations, from templates, from word lists.

Pure and deterministic: the same sources give the same lists. What is kept can be spoken in one
way only, so that the text says exactly what is heard: letters and plain punctuation, no digits,
no abbreviations, no words in capitals.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator

from builder.train_tiny.config import HELD_OUT, TRAIN, UNSEEN
from worker.text.turns import normalise

SHORTEST, LONGEST = 12, 150  # characters
HELD_OUT_PART = 100  # one sentence of so many is kept from training
UNSEEN_WORDS = 200  # words kept from training altogether

_PLAIN = re.compile(r"[A-Z][A-Za-z' ,;:?!.-]*[.?!]")
_SENTENCE_END = re.compile(r"(?<=[.?!])\s+")
_REFUSED = re.compile(
    r"\b[A-Z]{2,}\b|\.\.|--|\b(?:Mr|Mrs|Dr|St|Jr|Sr|Prof|vs|etc|i\.e)\.|\b[A-Z]\."
    r"|(?<!')\b[b-hj-zB-HJ-Z]\b"  # letters on their own, other than `a`, `I`, and those of "it's"
)
_CRUDE = re.compile(
    r"\b(?:bastard|cunt|dung|fag|fuck|nigg|piss|rape|sex|shit|whore)", re.IGNORECASE
)
_WORD = re.compile(r"[a-z']+")

_NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Iris", "Jack", "Kate",
    "Leo", "Maria", "Nora", "Oscar", "Paul", "Ruth", "Sam", "Tessa", "Victor", "Walter", "Zoe",
    "Alice", "Peter", "Julia", "Martin", "Sophie", "Thomas", "Laura", "Simon",
)  # fmt: skip
_PLACES = (
    "the harbor", "the market", "the library", "the station", "the old mill", "the garden",
    "the kitchen", "the school", "the museum", "the river", "the airport", "the bakery",
    "the theater", "the village", "the office", "the beach",
)  # fmt: skip
_THINGS = (
    "a map", "the keys", "my umbrella", "some bread", "a letter", "the tickets", "your jacket",
    "an apple", "the camera", "a blue cup", "the newspaper", "our lunch", "the violin",
    "a heavy box", "the red book", "two chairs",
)  # fmt: skip
_TIMES = (
    "this morning", "tomorrow", "after lunch", "on Sunday", "last night", "before dinner",
    "next week", "right now", "in the afternoon", "at the weekend", "as soon as possible",
    "every day",
)  # fmt: skip
_TEMPLATES = (
    "Did you see {name} at {place} {time}?",
    "I left {thing} at {place}.",
    "{name} will bring {thing} {time}.",
    "Could you take {thing} to {place}, please?",
    "No, {name} is still at {place}.",
    "Hello {name}, how are you?",
    "Well, we could meet at {place} {time}.",
    "Thank you, {name}. That was very kind.",
    "What is {name} doing with {thing}?",
    "I think {thing} belongs to {name}.",
    "Yes, of course! I will be at {place} {time}.",
    "Sorry, I can't find {thing}.",
    "{name} and {other} went to {place} {time}.",
    "Why don't we ask {name} about {thing}?",
    "Do you really want to walk to {place} {time}?",
    "That sounds wonderful, {name}!",
    "Where did {name} put {thing}?",
    "Let's go to {place}, and then we can look for {thing}.",
    "I haven't heard from {name} since we were at {place}.",
    "Please tell {name} that {thing} is ready.",
    "Are you sure? {name} said it was at {place}.",
    "It is quiet at {place} {time}, isn't it?",
    "Good evening, and welcome to {place}.",
    "I don't know, maybe {name} knows.",
)
_WORD_FRAMES = (
    "The word is {0}.",
    "{0}, {1}, and {2}.",
    "She said {0}, not {1}.",
    "A {0} and a {1} are not the same.",
    "What do you mean by {0}?",
    "They were talking about {0} and {1}.",
    "Nobody expected the {0} to be so {1}.",
    "First {0}, then {1}, then {2}, and last of all {3}.",
)


def plain_sentences(text: str) -> Iterator[str]:
    """The sentences of a paragraph that can be spoken in one way only."""
    if not text.strip():
        return
    for sentence in _SENTENCE_END.split(normalise(text)):
        if is_plain(sentence):
            yield sentence


def is_plain(sentence: str) -> bool:
    """Whether a sentence has a length and an alphabet that every voice reads alike."""
    return (
        SHORTEST <= len(sentence) <= LONGEST
        and _PLAIN.fullmatch(sentence) is not None
        and _REFUSED.search(sentence) is None
        and _CRUDE.search(sentence) is None
    )


def dialogue(count: int, chance: random.Random) -> Iterator[str]:
    """Sentences as people say them to each other, from templates."""
    for _ in range(count):
        name, other = chance.sample(_NAMES, 2)
        sentence = chance.choice(_TEMPLATES).format(
            name=name,
            other=other,
            place=chance.choice(_PLACES),
            thing=chance.choice(_THINGS),
            time=chance.choice(_TIMES),
        )
        yield sentence[0].upper() + sentence[1:]


def about_words(words: list[str], count: int, chance: random.Random) -> Iterator[str]:
    """Sentences around words drawn at random, so that rare ones are heard too."""
    for _ in range(count):
        sentence = chance.choice(_WORD_FRAMES).format(*chance.sample(words, 4))
        yield sentence[0].upper() + sentence[1:]


def split(
    sentences: Iterable[str], words: list[str], chance: random.Random
) -> list[tuple[str, str]]:
    """(sentence, what it is for), shuffled; some words are kept out of training altogether.

    Args:
        sentences: all of them, repetitions allowed.
        words: from which the words that training must not see are drawn.
        chance: decides.
    """
    unseen = set(chance.sample(words, min(UNSEEN_WORDS, len(words) // 10)))
    every = sorted(set(sentences))
    chance.shuffle(every)
    use = {}
    for index, sentence in enumerate(every):
        if unseen.intersection(_WORD.findall(sentence.lower())):
            use[sentence] = UNSEEN
        else:
            use[sentence] = TRAIN if index % HELD_OUT_PART else HELD_OUT
    for word in sorted(unseen):
        use[f"Everyone was talking about the {word}."] = UNSEEN
    return list(use.items())
