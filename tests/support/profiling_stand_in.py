"""Stands in for semipd.engine.cuda.profiling: answers at once, with times from the sizes that it is asked for."""

from __future__ import annotations

import json
import sys
import time


def main() -> None:
    role, prepared = sys.argv[1], 0.0
    for line in sys.stdin:
        asked = json.loads(line)
        answer: dict[str, object] = {}
        match asked["do"]:
            case "open":
                answer = {"sms": 132}
            case "alone" if asked.get("rows") == 13:
                answer = {"error": "ValueError: unlucky"}
            case "alone" if asked.get("rows") == 666:
                sys.exit(3)
            case "alone":
                answer = {"ms": took(role, asked)}
            case "turns" if role == "decode":
                answer = {"step_ms": 2.0 * asked["rows"], "pass_ms": 0.1 * asked["tokens"] + asked["context"]}
            case "prepare" if asked.get("tokens") == 13:
                answer = {"error": "ValueError: unlucky"}
            case "prepare" if role == "decode" and "seconds" not in asked:
                sys.exit(4)
            case "prepare":
                prepared = 2 * took(role, asked)
            case "buckets":
                answer = {"decode": [64, 128], "mixed": [256]} if role == "decode" else {"prefill": [512, 1024]}
            case "go":
                early = asked["start"] > time.monotonic() and asked["since"] < asked["until"]
                answer = {"ms": prepared} if early else {"error": "ValueError: too late"}
        print(json.dumps(answer), flush=True)


def took(role: str, asked: dict[str, float]) -> float:
    slower = 132 / asked["sms"]
    if role == "decode" and "tokens" in asked:
        return slower * (5.0 + (asked["rows"] + asked["tokens"]) * 0.025 + asked["start"] * 1e-3)
    if role == "decode":
        return slower * (4.0 + asked["rows"] * (0.02 + asked["context"] * 30e-6))
    return slower * (1.0 + asked["tokens"] * (0.023 + asked.get("start", 0) * 1e-6))


if __name__ == "__main__":
    main()
