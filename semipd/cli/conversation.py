"""Several turns with one model, and the loop that types them in."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec

import typer

from semipd.cli import exits
from semipd.cli.connection import sentence
from semipd.cli.reading import TokenTimings, read_aloud, summary_line
from semipd.cli.terminal import Voice, complain, remark
from semipd_client import Client, Message, Options, SemipdClientError, Stream, Unavailable

HELP = """\
/reset        forget what was said
/system TEXT  tell the model who it is, and begin anew; without TEXT: nobody in particular
/quit         leave (or Ctrl-D)
/help         this
Ctrl-C        stop the answer that is coming"""

PROMPT = "> "


class Conversation:
    """The conversation so far. A failed turn is not part of it; of a stopped turn, the text that had come remains."""

    def __init__(self, client: Client, options: Options, system: str | None = None) -> None:
        self._client = client
        self._options = options
        self.begin(system)

    def begin(self, system: str | None) -> None:
        """Anew."""
        self._system = system
        self.turns = [] if system is None else [Message("system", system)]

    def reset(self) -> None:
        self.begin(self._system)

    def can_chat(self) -> bool:
        """Returns whether the model has a chat template. Raises SemipdClientError."""
        return self._client.model(self._options.get("model")).capabilities.chat

    def say(self, text: str, voice: Voice) -> tuple[Stream, TokenTimings]:
        """Reads the answer aloud. Raises SemipdClientError, and KeyboardInterrupt where it was stopped."""
        turns = [*self.turns, Message("user", text)]
        started: list[Stream] = []

        def start() -> Stream:
            started.append(self._client.stream(turns, **self._options))
            return started[0]

        try:
            stream, pace = read_aloud(start, voice)
        except KeyboardInterrupt:
            if started and started[0].text:
                self.turns = [*turns, Message("assistant", started[0].text)]
            raise
        self.turns = [*turns, Message("assistant", stream.text)]
        return stream, pace


def converse(conversation: Conversation, target: str, stats: bool, ask: Callable[[str], str] = input) -> None:
    """Converses until Ctrl-D or /quit. Raises SemipdClientError where the server can't be reached at all."""
    if not conversation.can_chat():
        complain("this model has no chat template; go on from plain text with: semipd generate --raw")
        raise typer.Exit(exits.FAILED)
    if sys.stdin.isatty():
        remark("/help says what else you can type; Ctrl-D leaves")
        if find_spec("readline") is not None:
            import readline  # noqa: F401  (gives `input` its line editing and history)
    voice = Voice()
    while True:
        try:
            typed = ask(PROMPT if sys.stdin.isatty() else "").strip()
        except EOFError:
            voice.end_line()
            return
        except KeyboardInterrupt:
            remark("\nCtrl-D or /quit leaves")
            continue
        if typed == "/quit":
            return
        if typed.startswith("/"):
            command(conversation, typed)
        elif typed:
            answer(conversation, typed, voice, target, stats)


def command(conversation: Conversation, typed: str) -> None:
    name, _, rest = typed.partition(" ")
    match name:
        case "/help":
            remark(HELP)
        case "/reset":
            conversation.reset()
            remark("forgotten")
        case "/system":
            conversation.begin(rest.strip() or None)
            remark("a new conversation begins")
        case _:
            remark(f"there is no {name}; /help says what there is")


def answer(conversation: Conversation, typed: str, voice: Voice, target: str, stats: bool) -> None:
    """Says what went wrong where something did; the conversation goes on unless the server is gone."""
    try:
        stream, pace = conversation.say(typed, voice)
    except KeyboardInterrupt:
        remark("stopped")
        return
    except Unavailable as error:
        if not error.reason:
            raise
        complain(sentence(error, target))
        return
    except SemipdClientError as error:
        complain(sentence(error, target))
        return
    if stats:
        remark(summary_line(stream, pace))
