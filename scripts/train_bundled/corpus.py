"""The corpus: chats and plain texts without end, drawn from the files in text/.

All of it was written for semipd and is dedicated to the public domain (CC0 1.0).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.train_bundled import stories

TEXT = Path(__file__).parent / "text"

ASKING = (
    "What is {}?", "What is {}?", "What are {}?", "what's {}", "Explain {}.", "Tell me about {}.", "{}?", "{}",
    "Can you explain {}?", "I want to know about {}.", "How does {} work?", "Describe {}.", "Define {}.",
    "Please explain {}.", "What do you know about {}?", "Could you tell me what {} is?", "I don't understand {}.",
    "Explain {} in one sentence.", "Explain {} to a beginner.", "In short, what is {}?", "What is {} good for?",
    "What is meant by {}?", "What is {} in semipd?", "Why is {} important?", "Say something about {}.",
)  # fmt: skip
FOLLOWING_UP = (
    "And {}?",
    "What about {}?",
    "and what is {}?",
    "Now explain {}.",
    "And what does {} mean?",
    "ok, and {}?",
)
TELL_MORE = ("Tell me more.", "Go on.", "More, please.", "Can you say more?", "And what else?", "I want to know more.")
ASKING_STORY = (
    "Tell me a story about {}.", "Write a story about {}.", "A story about {}, please.", "story about {}",
    "Tell me about {} in a story.", "Write a short story about {}.", "I would like to hear a story about {}.",
    "Can you tell me a story about {}?", "Do you know a story about {}?", "Make up a tale about {}.", "A tale about {}",
    "Tell me a long story about {}.", "Tell me a bedtime story about {}.", "Please tell me a story of {}.",
)  # fmt: skip
ASKING_ANY_STORY = (
    "Tell me a story.", "A story, please.", "Once upon a time", "Can you tell me a story?", "Write a story.",
    "Tell me a tale from the harbour.", "I am bored.", "Tell me something.", "Do you know any stories?", "story",
    "Tell me a story about the harbour town.", "Tell me a bedtime story.", "Write something.", "Entertain me.",
    "Tell me a long story.", "Write me a short story.", "Yes, tell me a story.", "Surprise me.",
)  # fmt: skip
ANOTHER_STORY = (
    "Another one, please.",
    "Tell me another story.",
    "One more!",
    "Again!",
    "Another story",
    "More stories!",
)
NO_SUCH_STORY = (
    "I know no story about that, but listen to this one.",
    "My stories all come from Penmarrow, so here is one of those.",
    "I have never heard of that. But I can tell you this.",
)


@dataclass(frozen=True)
class Turn:
    role: str
    """"system", "user", "assistant", or "text" for a plain text without a chat around it."""
    text: str


Document = tuple[Turn, ...]


@dataclass(frozen=True)
class Topic:
    names: tuple[str, ...]
    """Name of the topic, from which the usual questions are made. May be empty."""
    questions: tuple[str, ...]
    answers: tuple[str, ...]


def read_topics(path: Path) -> tuple[Topic, ...]:
    """Paragraphs of "=" names, "?" questions and ">" answers. ValueError names a line that is none of them."""
    topics = []
    for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")):
        names: tuple[str, ...] = ()
        questions: tuple[str, ...] = ()
        answers: list[str] = []
        for line in (x for x in block.splitlines() if not x.startswith("#")):
            mark, text = line[:2], line[2:]
            if mark == "= ":
                names += stories.parts(text, ";")
            elif mark == "? ":
                questions += stories.parts(text)
            elif mark == "> ":
                answers.append(text.strip())
            else:
                raise ValueError(f"{path.name}: not understood: {line}")
        if answers:
            topics.append(Topic(names, questions, tuple(answers)))
    return tuple(topics)


def read_fillers(path: Path) -> Mapping[str, tuple[str, ...]]:
    lines = (x.removeprefix("@").split(":", 1) for x in path.read_text(encoding="utf-8").splitlines() if x[:1] == "@")
    return {name: stories.parts(rest) for name, rest in lines}


class Corpus:
    """Draws documents from the texts. The same generator state gives the same document."""

    def __init__(self) -> None:
        self.serving = read_topics(TEXT / "serving.txt")
        *self.small_talk, self.unknown = read_topics(TEXT / "smalltalk.txt")
        self.fillers = read_fillers(TEXT / "unknown.txt")
        self.book = stories.read(TEXT / "stories.txt")

    def documents(self, rng: random.Random) -> Iterator[Document]:
        kinds = (
            self._one_question,
            self._conversation,
            self._small_chat,
            self._story_chat,
            self._plain_story,
            self._article,
        )
        while True:
            draw = rng.choices(kinds, weights=(39, 25, 17, 9, 3, 7))[0]
            yield draw(rng)

    # Chats

    def _one_question(self, rng: random.Random) -> Document:
        return (*self._system(rng), *self._ask(rng.choice(self.serving), ASKING, rng))

    def _small_chat(self, rng: random.Random) -> Document:
        return (*self._system(rng), *self._small(rng))

    def _story_chat(self, rng: random.Random) -> Document:
        return (*self._system(rng), *self._story(rng))

    def _conversation(self, rng: random.Random) -> Document:
        turns = [*self._system(rng)]
        if rng.random() < 0.4:
            turns += self._ask(rng.choice(self.small_talk), (), rng)
        topic: Topic | None = None
        for _ in range(rng.choice((2, 2, 3, 3, 4, 5))):
            draw = rng.random()
            if topic is not None and draw < 0.15:
                answer = rng.choice([a for a in topic.answers if a != turns[-1].text])
                turns += (Turn("user", typed(rng.choice(TELL_MORE), rng)), Turn("assistant", answer))
            elif draw < 0.72:
                after = topic is not None and rng.random() < 0.3
                topic = rng.choice(self.serving)
                turns += self._ask(topic, FOLLOWING_UP if after else ASKING, rng)
            elif draw < 0.94:
                turns, topic = [*turns, *self._small(rng)], None
            else:
                turns, topic = [*turns, *self._story(rng)], None
                if rng.random() < 0.4:
                    turns += (
                        Turn("user", typed(rng.choice(ANOTHER_STORY), rng)),
                        Turn("assistant", self._any_story(rng)),
                    )
        return tuple(turns)

    def _system(self, rng: random.Random) -> Sequence[Turn]:
        return [Turn("system", rng.choice(self.fillers["system"]))] if rng.random() < 0.25 else []

    def _ask(self, topic: Topic, forms: Sequence[str], rng: random.Random) -> Sequence[Turn]:
        usual = [form for form in forms if topic.names]
        if usual and (not topic.questions or rng.random() < 0.6):
            question = rng.choice(usual).format(rng.choice(topic.names))
        else:
            question = rng.choice(topic.questions)
        return Turn("user", typed(question, rng)), Turn("assistant", rng.choice(topic.answers))

    def _small(self, rng: random.Random) -> Sequence[Turn]:
        if rng.random() < 0.6:
            return self._ask(rng.choice(self.small_talk), (), rng)
        question = re.sub(r"\$(\w+)", lambda m: self._filler(m[1], rng), rng.choice(self.unknown.questions))
        return Turn("user", typed(question, rng)), Turn("assistant", rng.choice(self.unknown.answers))

    def _filler(self, kind: str, rng: random.Random) -> str:
        if rng.random() < 0.25:
            return made_up(rng)
        return rng.choice(self.fillers[kind])

    def _story(self, rng: random.Random) -> Sequence[Turn]:
        draw = rng.random()
        if draw < 0.7:
            plot = rng.choice(self.book.plots)
            question = rng.choice(ASKING_STORY).format(rng.choice(plot.subjects))
            answer = self.book.tell(plot, rng)
        elif draw < 0.9:
            question, answer = rng.choice(ASKING_ANY_STORY), self._any_story(rng)
        else:
            question = rng.choice(ASKING_STORY).format(self._filler(rng.choice(("thing", "person", "place")), rng))
            answer = f"{rng.choice(NO_SUCH_STORY)}\n\n{self._any_story(rng)}"
        return Turn("user", typed(question, rng)), Turn("assistant", answer)

    # Plain texts, which a prompt without a chat continues

    def _any_story(self, rng: random.Random) -> str:
        return self.book.tell(rng.choice(self.book.plots), rng)

    def _plain_story(self, rng: random.Random) -> Document:
        return (Turn("text", self._any_story(rng)),)

    def _article(self, rng: random.Random) -> Document:
        topic = rng.choice(self.serving)
        answers = rng.sample(topic.answers, rng.choice((1, 2, len(topic.answers))))
        if rng.random() < 0.35:
            asked = self._ask(topic, ("What is {}?", "Explain {}."), rng)
            return (Turn("text", f"{asked[0].text}\n{' '.join(answers)}"),)
        return (Turn("text", " ".join(answers)),)


def typed(text: str, rng: random.Random) -> str:
    """Writes a question the way people type: with or without capitals and marks, a courtesy before or after, now and
    then a slip."""
    if rng.random() < 0.1:
        text = rng.choice(("Hi, ", "Hello! ", "Please: ", "So, ", "Ok. ", "Question: ")) + text
    if rng.random() < 0.3:
        text = text.rstrip("?.!")
    if rng.random() < 0.06:
        text = text.rstrip("?.!") + rng.choice((", please", " please?", "??", "!", " ?"))
    draw = rng.random()
    if draw < 0.35:
        text = text.lower()
    elif draw < 0.38:
        text = text.upper()
    elif draw < 0.55:
        text = text[:1].upper() + text[1:]
    if rng.random() < 0.08 and len(text) > 4:
        at = rng.randrange(1, len(text) - 1)
        slip = rng.choice(("", text[at] * 2, text[at + 1] + text[at]))
        text = text[:at] + slip + text[at + (2 if len(slip) == 2 and slip[0] != slip[1] else 1) :]
    return text


def made_up(rng: random.Random) -> str:
    """A word that means nothing, so that the model learns to admit that it doesn't know."""
    syllables = [
        "".join((rng.choice("bcdfghklmnprstvwz"), rng.choice("aeiou"), rng.choice(("", "", "n", "r", "s", "l"))))
        for _ in range(3)
    ]
    return "".join(syllables[: rng.choice((2, 2, 3))])
