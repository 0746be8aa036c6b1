"""One answer streamed, several at once, and one that is refused.

usage: python stories.py [HOST:PORT]      start a server first: semipd serve
"""

from __future__ import annotations

import asyncio
import sys
import time

from semipd_client import AsyncClient, Client, InvalidArgument, SemipdClientError, Unavailable


def streamed(client: Client) -> None:
    began = time.perf_counter()
    first_s = None
    with client.stream("The lighthouse", max_tokens=48, temperature=0.7, seed=1) as stream:
        for text in stream:
            if first_s is None:
                first_s = time.perf_counter() - began
            print(text, end="", flush=True)
    print(f"\n  first text after {(first_s or 0) * 1000:.0f} ms; {stream.finish}, {stream.usage}\n")


async def several(target: str) -> None:
    """One event loop, many requests: the server computes them in one batch."""
    async with AsyncClient(target) as client:
        beginnings = ("In the morning", "The old harbour", "A letter came")
        answers = await asyncio.gather(*(client.generate(b, max_tokens=24, temperature=0) for b in beginnings))
    for beginning, answer in zip(beginnings, answers, strict=True):
        print(f"{beginning}{answer.text}\n")


def refused(client: Client) -> None:
    try:
        client.generate("Too hot", temperature=7)
    except InvalidArgument as error:
        for violation in error.violations:
            print(f"refused: {violation.field}: {violation.description}")


def main() -> int:
    target = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"
    try:
        with Client(target, timeout=60) as client:
            client.wait_ready(10)
            streamed(client)
            asyncio.run(several(target))
            refused(client)
    except Unavailable as error:
        print(f"{error}; start a server with: semipd serve", file=sys.stderr)
        return 3
    except SemipdClientError as error:
        print(f"{error.code.name} {error.reason}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
