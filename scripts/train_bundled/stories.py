"""The story grammar of text/stories.txt: reads it, and tells a story by a random generator."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PRONOUNS = {"she": ("she", "her", "her"), "he": ("he", "his", "him")}
CHOICE = re.compile(r"\{([^{}]*)\}")
PHRASE = re.compile(r"@(\w+)")
ROLE = re.compile(r"\$(\w+)(?:\.(full|he|his|him)\b)?")


@dataclass(frozen=True)
class Person:
    name: str
    pronoun: str
    full: str

    def form(self, which: str) -> str:
        """`which` as the grammar writes it: "" (the name), "full", "he", "his" or "him"."""
        if which == "full":
            return self.full
        return dict(zip(("he", "his", "him"), PRONOUNS[self.pronoun], strict=True)).get(which, self.name)


@dataclass(frozen=True)
class Plot:
    subjects: tuple[str, ...]
    """Subjects by which a user gets this story; the first is its name."""
    cast: Mapping[str, tuple[str, ...]]
    """Role -> keys of the people who can play it."""
    things: Mapping[str, tuple[str, ...]]
    lines: tuple[str, ...]
    """Sentences with choices; "" parts paragraphs."""


@dataclass(frozen=True)
class StoryBook:
    people: Mapping[str, Person]
    phrases: Mapping[str, str]
    plots: tuple[Plot, ...]

    def tell(self, plot: Plot, rng: random.Random) -> str:
        people: dict[str, Person] = {}
        for role, keys in plot.cast.items():
            people[role] = self.people[rng.choice([k for k in keys if self.people[k] not in people.values()])]
        things = {name: rng.choice(options) for name, options in plot.things.items()}
        paragraphs: list[list[str]] = [[]]
        for line in plot.lines:
            if not line:
                paragraphs.append([])
            elif not line.startswith("?"):
                paragraphs[-1].append(self._line(line, people, things, rng))
            elif rng.random() < 0.5:
                paragraphs[-1].append(self._line(line[1:], people, things, rng))
        return "\n\n".join(" ".join(p) for p in paragraphs)

    def _line(self, line: str, people: Mapping[str, Person], things: Mapping[str, str], rng: random.Random) -> str:
        def name(match: re.Match[str]) -> str:
            role, form = match[1], match[2] or ""
            if role in things:
                return things[role]
            text = people[role.lower()].form(form)
            return text[0].upper() + text[1:] if role[0].isupper() else text

        while True:
            expanded = PHRASE.sub(lambda m: self.phrases[m[1]], line)
            expanded = CHOICE.sub(lambda m: rng.choice(m[1].split("|")), expanded)
            if expanded == line:
                return sentence_case(ROLE.sub(name, line))
            line = expanded


def sentence_case(text: str) -> str:
    """Capitals at the beginning of sentences, where a name such as "old Jonas" came to stand."""
    return re.sub(r"(^|[.!?] )([a-z])", lambda m: m[1] + m[2].upper(), text)


def parts(text: str, separator: str = "|") -> tuple[str, ...]:
    return tuple(p.strip() for p in text.split(separator) if p.strip())


def read(path: Path) -> StoryBook:
    """Reads the grammar; its syntax is explained at its top. ValueError names a line that makes no sense."""
    people: dict[str, Person] = {}
    phrases: dict[str, str] = {}
    plots: list[Plot] = []
    head, *bodies = re.split(r"^== ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for line in head.splitlines():
        if line.startswith("@person "):
            key, rest = line.removeprefix("@person ").split(":", 1)
            people[key] = Person(*parts(rest, ";"))
        elif line.startswith("@phrase "):
            key, rest = line.removeprefix("@phrase ").split(":", 1)
            phrases[key] = rest.strip()
        elif line and not line.startswith("#"):
            raise ValueError(f"{path.name}: not understood: {line}")
    for body in bodies:
        plots.append(_plot(body.strip().splitlines()))
    return StoryBook(people, phrases, tuple(plots))


def _plot(lines: Sequence[str]) -> Plot:
    cast: dict[str, tuple[str, ...]] = {}
    things: dict[str, tuple[str, ...]] = {}
    told: list[str] = []
    for line in lines[1:]:
        if line.startswith("cast "):
            role, rest = line.removeprefix("cast ").split(":", 1)
            cast[role] = parts(rest)
        elif line.startswith("let "):
            thing, rest = line.removeprefix("let ").split(":", 1)
            things[thing] = parts(rest)
        else:
            told.append(line.strip())
    return Plot(parts(lines[0], ";"), cast, things, tuple(told))
