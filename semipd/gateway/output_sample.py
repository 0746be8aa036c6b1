"""One sample of a request: turns its tokens into text, finds its end, and keeps what its client has not seen."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from semipd.gateway.detokenize import Detokenizer
from semipd.gateway.stop_strings import StopScanner, StopStrings
from semipd.internal.v1 import gateway_pb2 as gw
from semipd.internal.v1 import sequence_pb2 as seq
from semipd.v1 import generation_pb2 as pb

FINISH = {
    seq.END_REASON_STOP_TOKEN: pb.FINISH_REASON_STOP,
    seq.END_REASON_STOP_STRING: pb.FINISH_REASON_STOP,
    seq.END_REASON_LENGTH: pb.FINISH_REASON_LENGTH,
    seq.END_REASON_TIME_LIMIT: pb.FINISH_REASON_TIME_LIMIT,
}


class TokensMissing(Exception):
    """Tokens are missing between those that are known and those that came: a bug."""


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """Says what of a sample goes to its client, and what ends it. All samples of a request share it."""

    text: bool = True
    token_ids: bool = True
    stops: StopStrings | None = None
    include_stop: bool = False
    min_tokens: int = 0
    """Output tokens before which stop strings don't end a sample."""


@dataclass(frozen=True, slots=True)
class PendingToken:
    """A token that is held back, because its text may yet turn out to belong to a stop string."""

    start: int
    """Beginning of its text, in characters of the sample's whole text."""
    token: int
    logprob: pb.Logprob | None


class OutputSample:
    """Takes the coordinator's deltas (`take`) and has what the client is to hear (`next_event`, `finish`).

    `finish` is set once the sample's last word to the client is known, `over` once the coordinator has closed it. The
    two differ after a stop string, which is found here.
    """

    def __init__(self, index: int, options: OutputOptions, detokenizer: Detokenizer | None) -> None:
        self.index = index
        self.finish: pb.Finish | None = None
        self.timings: pb.Timings | None = None
        self.over = False
        self.output_tokens = 0
        """Tokens that count: those up to the stop, and the stop itself."""
        self._options = options
        self._detokenizer = detokenizer
        self._scanner = StopScanner(options.stops) if options.stops is not None and detokenizer is not None else None
        self._held_text = ""
        self._held: deque[PendingToken] = deque()
        self._said = 0
        """Characters told or ready to be told; the text that is held back begins here."""
        self._unscanned = 0
        """Characters that the scanner has not read, since they came before `min_tokens`."""
        self._event = pb.GenerateStreamResponse()
        self._token: pb.Token | None = None
        """The event's token message, while there is one."""
        self._texts: list[str] = []

    # --- what came --------------------------------------------------------------------------------------------------

    def take(self, delta: gw.Delta) -> bool:
        """Takes a delta and returns True if the client is to hear of it. What is known already has no effect.

        Raises TokensMissing.
        """
        ended = delta.HasField("end")
        if self.finish is None:
            tokens: Sequence[int] = delta.tokens
            logprobs: Sequence[pb.Logprob] = delta.logprobs
            known = self.output_tokens - delta.position
            if known:
                if known < 0:
                    raise TokensMissing(f"position {delta.position} after {self.output_tokens} tokens")
                tokens, logprobs = tokens[known:], logprobs[known:]
            end = delta.end if ended else None
            if self._scanner is None:
                self._append(tokens, logprobs, end)
            else:
                self._scan(self._scanner, tokens, logprobs, end)
            if end is not None and self.finish is None:
                self._complete(end)
        if ended and not self.over:
            self.over = True
            if delta.HasField("timings"):
                self.timings = pb.Timings()
                self.timings.CopyFrom(delta.timings)
        return self._token is not None or self.finish is not None

    def _append(self, tokens: Sequence[int], logprobs: Sequence[pb.Logprob], end: seq.End | None) -> None:
        """Adds tokens where there are no stop strings: everything is told at once."""
        if not tokens:
            return
        self.output_tokens += len(tokens)
        if end is not None and self._cuts_token(end):
            tokens, logprobs = tokens[:-1], logprobs[:-1]
            if not tokens:
                return
        if self._detokenizer is not None:
            text = self._detokenizer.push(tokens)
            if text:
                self._tell(text)
        if self._options.token_ids:
            self._pending().token_ids.extend(tokens)
        if logprobs:
            self._pending().logprobs.extend(logprobs)

    def _cuts_token(self, end: seq.End) -> bool:
        """Says that the last token is a stop token that stays out of the answer."""
        return end.reason == seq.END_REASON_STOP_TOKEN and not self._options.include_stop

    def _scan(
        self, scanner: StopScanner, tokens: Sequence[int], logprobs: Sequence[pb.Logprob], end: seq.End | None
    ) -> None:
        """Adds tokens one by one. Text that may belong to a stop string is held back, and so are its tokens."""
        assert self._detokenizer is not None
        last = len(tokens) - 1
        for n, token in enumerate(tokens):
            self.output_tokens += 1
            if n == last and end is not None and self._cuts_token(end):
                return
            logprob = None
            if logprobs:
                logprob = pb.Logprob()
                logprob.CopyFrom(logprobs[n])
            self._held.append(PendingToken(self._said + len(self._held_text), token, logprob))
            text = self._detokenizer.push((token,))
            if not text and not self._held_text:
                self._release(0)
            elif self._read(scanner, text):
                return

    def _read(self, scanner: StopScanner, text: str) -> bool:
        """Adds text. Returns True if the sample ends here, at a stop string."""
        self._held_text += text
        if self.output_tokens < self._options.min_tokens:
            self._unscanned += len(text)
            self._release(len(self._held_text))
            return False
        match = scanner.push(text)
        if match is None:
            self._release(len(self._held_text) - scanner.held)
            return False
        cut = self._unscanned + (match.end if self._options.include_stop else match.start)
        while self._held and self._held[-1].start >= cut:
            self._held.pop()
        self._held_text = self._held_text[: cut - self._said]
        self._release(len(self._held_text))
        self.finish = pb.Finish(reason=pb.FINISH_REASON_STOP, stop=match.stop)
        return True

    def _release(self, characters: int) -> None:
        """Tells the first characters of the text that is held back, and the tokens that begin in them."""
        if characters:
            self._tell(self._held_text[:characters])
            self._held_text = self._held_text[characters:]
            self._said += characters
        held = self._held
        while held and (held[0].start < self._said or not self._held_text):
            first = held.popleft()
            if self._options.token_ids:
                self._pending().token_ids.append(first.token)
            if first.logprob is not None:
                self._pending().logprobs.append(first.logprob)

    def _complete(self, end: seq.End) -> None:
        """Ends the sample as the coordinator says. What was held back is told, unless its end is a stop string."""
        if self._detokenizer is not None:
            text = self._detokenizer.flush()
            if self._scanner is not None:
                if text and self._read(self._scanner, text):
                    return
                self._release(len(self._held_text))
            elif text:
                self._tell(text)
        self.finish = pb.Finish(reason=FINISH[end.reason])
        if end.HasField("stop_token_id"):
            self.finish.stop_token_id = end.stop_token_id

    # --- what is told -----------------------------------------------------------------------------------------------

    def _pending(self) -> pb.Token:
        """Returns the event that gathers what is new. Its text is set when it is told, in one piece."""
        if self._token is None:
            self._event = pb.GenerateStreamResponse()
            self._token = self._event.token
            self._token.index = self.index
        return self._token

    def _tell(self, text: str) -> None:
        if self._options.text:
            self._pending()
            self._texts.append(text)

    def next_event(self) -> pb.GenerateStreamResponse | None:
        """Returns everything since the last call as one token event; None: nothing. The caller numbers it."""
        token, texts = self._token, self._texts
        if token is None:
            return None
        self._token = None
        if texts:
            token.text = texts[0] if len(texts) == 1 else "".join(texts)
            self._texts = []
        return self._event
