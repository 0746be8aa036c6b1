"""The `semipd` command."""

from __future__ import annotations

import typer

from semipd import __version__
from semipd.bench.commands.cli import bench_app
from semipd.bench.commands.top import top
from semipd.cli.chat import chat
from semipd.cli.demo import demo
from semipd.cli.doctor import doctor
from semipd.cli.generate import generate
from semipd.cli.kernels import kernels_app
from semipd.cli.policies import policies_app
from semipd.cli.profile import profile
from semipd.cli.serve import serve
from semipd.cli.simulate import simulate_app

app = typer.Typer(
    name="semipd",
    help="Serve large language models: prefill and decode compute apart, over one copy of the weights and one KV pool.",
    epilog="Begin with `semipd demo`, or with `semipd serve` in one terminal and `semipd chat` in another.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(
    version: bool = typer.Option(False, "--version", help="Print the version and leave."),
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


for command in (serve, generate, chat, demo, top, doctor, profile):
    app.command()(command)
app.add_typer(bench_app, name="bench")
app.add_typer(policies_app, name="policies")
app.add_typer(simulate_app, name="simulate")
app.add_typer(kernels_app, name="kernels")


def main() -> None:
    app()


if __name__ == "__main__":
    main()
