"""`semipd demo`: a whole server, one answer over gRPC, and everything gone again."""

from __future__ import annotations

from typing import Annotated

import typer

from semipd.cli import exits

PROMPT = "What is prefill?"
START_S = 120.0


def demo(
    prompt: Annotated[str, typer.Argument(help="What to ask.")] = PROMPT,
    model: Annotated[str, typer.Option(help="A model's directory. [dim]default: the bundled model[/]")] = "",
) -> None:
    """Start a server with the bundled model on a free port, stream one answer from it over gRPC, and stop it again.

    Exit code: 0 it worked, 1 it did not, 130 Ctrl-C.
    """
    from semipd.cli.child import ChildServer, DidNotStart
    from semipd.cli.once import answer
    from semipd.cli.terminal import complain, remark
    from semipd_client import Client, SemipdClientError

    try:
        remark("starting a server: semipd serve --port 0")
        with ChildServer(["--model", model] if model else [], START_S) as server:
            remark(f'asking it:         semipd generate --target {server.address} "{prompt}"\n')
            with Client(server.address, timeout=60) as client:
                answer(client, prompt, options={"max_tokens": 200, "temperature": 0.0})
            remark("\nstopping the server")
        if server.exit_code != 0:
            complain(f"the server stopped with exit code {server.exit_code}")
            raise typer.Exit(exits.FAILED)
    except (DidNotStart, SemipdClientError) as error:
        complain(str(error))
        raise typer.Exit(exits.FAILED) from None
    except KeyboardInterrupt:
        raise typer.Exit(exits.INTERRUPTED) from None
