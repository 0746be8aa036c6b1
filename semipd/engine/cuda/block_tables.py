"""Block tables, and the tokens that are fed next, on the device. The CPU sends the changes between two steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from semipd.engine.attention import Pages
from semipd.engine.cuda.kernels import feeding
from semipd.engine.cuda.launch_args import LaunchArgs

CHANGES = 4096
"""The number of words that one copy carries. More words take another copy."""


class BlockTables:
    """The block table `pages` [slots, width] int32, and `fed` [slots] int32, the token that each slot is fed next.

    A step writes the tokens that it samples to `fed` by itself.
    """

    def __init__(self, slots: int, width: int, device: torch.device) -> None:
        self._words = torch.zeros(slots * width + slots, dtype=torch.int32, device=device)
        self.pages = self._words[: slots * width].view(slots, width)
        self.fed = self._words[slots * width :]
        self._args = LaunchArgs({"where": ((CHANGES,), np.int32), "words": ((CHANGES,), np.int32)}, device)
        self._changes: list[tuple[int, npt.NDArray[np.int32]]] = []

    def put_pages(self, slot: int, first: int, pages: Sequence[int] | Pages) -> None:
        """Notes page numbers of a slot, from its `first` one on."""
        self._changes.append((slot * self.pages.shape[1] + first, np.asarray(pages, np.int32)))

    def put_token(self, slot: int, token: int) -> None:
        """Notes the token that the slot is fed next."""
        self._changes.append((self.pages.numel() + slot, np.asarray([token], np.int32)))

    def send(self) -> None:
        """Makes the changes, on the current stream. Where two changes are to one word, the later counts."""
        if not self._changes:
            return
        where = np.concatenate([np.arange(at, at + len(words), dtype=np.int32) for at, words in self._changes])
        words = np.concatenate([words for _, words in self._changes])
        self._changes.clear()
        # A slot may have changed hands since the last step, and the device keeps no order among the words of a copy.
        where, first = np.unique(where[::-1], return_index=True)
        words = words[::-1][first]
        for start in range(0, len(where), CHANGES):
            if start and self._words.is_cuda:  # the host's buffers are few: let the device read the last one first
                torch.cuda.current_stream().synchronize()
            self._tell(where[start : start + CHANGES], words[start : start + CHANGES])

    def warm(self) -> None:
        """Compiles and loads what `send` launches. It changes nothing."""
        self._tell(np.empty(0, np.int32), np.empty(0, np.int32))

    def _tell(self, where: npt.NDArray[np.int32], words: npt.NDArray[np.int32]) -> None:
        host = self._args.next()
        host["where"][: len(where)] = where
        host["where"][len(where) :] = -1
        host["words"][: len(words)] = words
        self._args.send()
        feeding.update(self._words, self._args.device["where"], self._args.device["words"])
