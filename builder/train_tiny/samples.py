"""What the model hears and reads: a few sentences, their codes with pauses between, and a prompt.

In two thirds of the samples `[S1]` is the female and `[S2]` the male voice, which are thereby the
voices where there is no prompt. In the rest they are any two voices, and the sentences that make
their voices known are a prompt, whose codes are given and not predicted.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from builder.train_tiny.codes import Corpus, Utterance
from builder.train_tiny.config import FEMALE, MALE
from builder.train_tiny.guide import Span
from worker.dia.tokenizer import PAD_ID, encode_text

USUAL_VOICES = 2 / 3  # part of the samples
PROMPTED = 1 / 4  # part of those; all others are prompted, which makes half of all
TEXTLESS = 0.12  # part of the samples without text, for guidance
CLOSING_TAG = 0.5  # part of the dialogues that repeat the second-to-last speaker's tag
SPEAKER_CHANGES = 0.7  # chance that the next sentence is the other speaker's
TWO_SPEAKERS = 0.7  # part of the samples with more than one sentence
MOST_SENTENCES = 4  # to be spoken, the prompt's not counted
PAUSE = (6, 24)  # frames


@dataclass(frozen=True, eq=False)
class Sample:
    """One row of a batch."""

    text_ids: list[int]
    codes: NDArray[np.int16]  # [F, C], the prompt first
    prompt_frames: int
    spans: list[Span] = field(default_factory=list)  # of its sentences; none without text

    @property
    def frames(self) -> int:
        """Frames, the prompt's included."""
        return len(self.codes)


class Composer:
    """Makes samples of a corpus.

    Args:
        corpus: at least one utterance of each of the two usual voices.
        max_frames: of a sample; sentences that would exceed it are left out.
        max_bytes: of a text.
        chance: decides.
    """

    def __init__(
        self, corpus: Corpus, max_frames: int, max_bytes: int, chance: random.Random
    ) -> None:
        self._silence, self._chance = corpus.silence, chance
        self._max_frames, self._max_bytes = max_frames, max_bytes
        self._spoken: dict[str, list[Utterance]] = {}
        for utterance in corpus.utterances:
            if len(utterance.codes) <= max_frames:
                self._spoken.setdefault(utterance.speaker, []).append(utterance)
        self._voices = sorted(self._spoken)

    def compose(self) -> Sample:
        """The next sample."""
        chance = self._chance
        voices, prompt = self._cast()
        count = chance.randint(1, MOST_SENTENCES)
        turns = [*prompt, *self._turns(count, prompt[-1] if prompt else "")]
        spoken: list[tuple[str, str]] = []
        where: list[tuple[int, int]] = []  # the sentences' frames
        pieces: list[NDArray[np.int16]] = []
        frames = prompt_frames = 0
        for index, speaker in enumerate(turns):
            utterance = chance.choice(self._spoken[voices[speaker]])
            pause = self._pause() if pieces else self._silence[:0]
            added = len(pause) + len(utterance.codes)
            if pieces and frames + added > self._max_frames:
                break
            pieces += [pause, utterance.codes]
            spoken.append((speaker, utterance.text))
            where.append((frames + len(pause), frames + added))
            frames += added
            # The pause behind a prompt is predicted. A sample that is nothing but prompt is none.
            prompt_frames = frames if index == len(prompt) - 1 else prompt_frames
        if len(spoken) <= len(prompt):
            prompt_frames = 0
        text = render(spoken, closing=chance.random() < CLOSING_TAG)
        ids, codes = encode_text(text, self._max_bytes), np.concatenate(pieces)
        if chance.random() < TEXTLESS:
            # The reference's row without text is as long as the one with it, and all zero.
            return Sample([PAD_ID] * len(ids), codes, prompt_frames)
        bytes_of = locate(text, [sentence for _, sentence in spoken])
        spans = [Span(*said, *heard) for said, heard in zip(bytes_of, where, strict=True)]
        return Sample(ids, codes, prompt_frames, spans)

    def _cast(self) -> tuple[dict[str, str], list[str]]:
        """Who speaks, and whose sentences make the prompt."""
        chance = self._chance
        voices = {"S1": FEMALE, "S2": MALE}
        if chance.random() < USUAL_VOICES:
            prompted = chance.random() < PROMPTED
            return voices, (["S1", "S2"][: chance.randint(1, 2)] if prompted else [])
        prompt = chance.choice((["S1"], ["S1", "S1"], ["S1", "S2"]))
        for speaker in prompt:  # who is not heard in the prompt keeps the usual voice
            voices[speaker] = chance.choice(self._voices)
        return voices, prompt

    def _turns(self, count: int, last: str) -> list[str]:
        """Speakers of the sentences to be spoken; the first of all is always `S1`."""
        chance = self._chance
        alone = chance.random() >= TWO_SPEAKERS
        turns: list[str] = []
        for _ in range(count):
            if not last or (alone and last == "S1"):
                last = "S1"
            elif chance.random() < SPEAKER_CHANGES:
                last = "S2" if last == "S1" else "S1"
            turns.append(last)
        return turns

    def _pause(self) -> NDArray[np.int16]:
        length = self._chance.randint(*PAUSE)
        start = self._chance.randrange(max(1, len(self._silence) - length))
        return self._silence[start : start + length]


def render(spoken: list[tuple[str, str]], closing: bool) -> str:
    """The text of (speaker, sentence) in order, as `worker.text.model_text` writes it.

    It is written anew here because that module wants a package that the training machine lacks.
    """
    turns: list[tuple[str, str]] = []
    for speaker, sentence in spoken:
        if turns and turns[-1][0] == speaker:
            turns[-1] = (speaker, f"{turns[-1][1]} {sentence}")
        else:
            turns.append((speaker, sentence))
    text = " ".join(f"[{speaker}] {sentence}" for speaker, sentence in turns)
    return f"{text} [{turns[-2][0]}]" if closing and len(turns) > 1 else text


def locate(text: str, sentences: Sequence[str]) -> list[tuple[int, int]]:
    """First and last byte, exclusive, of each sentence in the ids of the text that they make."""
    found, start = [], 0
    for sentence in sentences:
        start = text.index(sentence, start)
        first = len(encode_text(text[:start])) if start else 0
        start += len(sentence)
        found.append((first, len(encode_text(text[:start]))))
    return found
