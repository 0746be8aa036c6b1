"""The process of figures/engine.py: what to measure comes as JSON on standard input, each figure goes out as a line."""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def main() -> None:
    asked: dict[str, Any] = json.load(sys.stdin)
    out = sys.stdout
    sys.stdout = sys.stderr  # nothing that a library prints may get between the lines

    def say(**found: Any) -> None:
        out.write(json.dumps(found) + "\n")
        out.flush()

    from semipd.core.model import parse_model_config  # noqa: PLC0415 - after the streams are in order
    from semipd.engine.cuda.bench import decode_step_ms, open_engine, prefill_ms  # noqa: PLC0415

    began = time.monotonic()
    most = max(rows for rows, _ in asked["decode_steps"])
    longest = max(asked["prefills"])
    with open_engine(parse_model_config(asked["model"]), max_running=most, max_batch_tokens=longest) as engine:
        say(opened_in_s=round(time.monotonic() - began, 1))
        for rows, context in asked["decode_steps"]:
            took = attempt(lambda rows=rows, context=context: decode_step_ms(engine, rows, context))
            say(requests=rows, context=context, **(took if isinstance(took, dict) else {"decode_ms": took}))
        for tokens in asked["prefills"]:
            took = attempt(lambda tokens=tokens: prefill_ms(engine, tokens))
            figures = took if isinstance(took, dict) else {"prefill_ms": took, "tokens_per_s": 1e3 * tokens / took}
            say(tokens=tokens, **figures)
    say(done=True)


def attempt(measure: Any) -> Any:
    """Milliseconds, or the error: one size that doesn't fit leaves the others their turn."""
    try:
        return measure()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:500]}


if __name__ == "__main__":
    main()
