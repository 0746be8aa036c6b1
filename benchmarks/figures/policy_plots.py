"""The pictures of the page about policies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from figures.aims import AIMS
from figures.cases import TRACES, Contender
from figures.policy_comparison import PolicyComparison
from semipd.bench.drawing.plots import COLOURS, DECODE, PREFILL, blank, colours, finish, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BAR = 0.38
MODES = {"split": COLOURS[5], "turns": COLOURS[4], "mixed": COLOURS[2]}


def draw_goodputs(path: Path, compared: PolicyComparison) -> None:
    """A bar for each policy, trace and SLO as simulated; a mark where it was measured."""
    simulated, measured = compared.goodputs(), compared.measured()
    who = [one for one in compared.contenders() if any(key[0] == one for key in simulated)]
    title = f"goodput: {compared.simulated['model']} on {compared.simulated['gpu']}, 90 % of requests inside their SLO"
    figure = blank(title, height=1100)
    for axes, trace in zip(figure.subplots(len(TRACES), 1), TRACES, strict=True):
        for place, contender in enumerate(who):
            for slo, side, alpha in (("tight", -BAR / 2, 1.0), ("loose", BAR / 2, 0.45)):
                key = (contender, trace, slo)
                if key in simulated:
                    value = simulated[key].value or simulated[key].passed or 0.0
                    axes.bar(place + side, value, BAR, color=colours(len(who))[place], alpha=alpha)
                    axes.text(place + side, value, f"{value:.3g}", ha="center", va="bottom", fontsize=9)
                if key in measured:
                    found = measured[key]
                    at = found.value or found.passed or found.failed
                    mark = "D" if found.value is not None else "^" if found.passed is not None else "v"
                    axes.plot([place + side], [at], mark, color="black", markersize=7, markerfacecolor="white")
        aim = AIMS[f"goodput_{trace}"]
        axes.axhline(aim.aim, color="0.25", linestyle="--", linewidth=1)
        axes.axhline(aim.least, color="0.25", linestyle=":", linewidth=1)
        axes.margins(y=0.15)
        axes.set_ylabel(f"{trace}\n(requests/s)")
        axes.set_xticks(range(len(who)), [wrapped(contender) for contender in who])
        finish(axes, legend=False)
    legend(figure, bool(measured))
    save(figure, path)


def legend(figure: Figure, measured: bool) -> None:
    from matplotlib.lines import Line2D  # noqa: PLC0415 - only who draws needs it
    from matplotlib.patches import Patch  # noqa: PLC0415

    handles: list[Any] = [
        Patch(color="0.3", label="simulated, tight SLO"),
        Patch(color="0.3", alpha=0.45, label="simulated, loose SLO"),
        Line2D([], [], color="0.25", linestyle="--", label="aim, tight SLO"),
        Line2D([], [], color="0.25", linestyle=":", label="vLLM 0.26's best, tight SLO"),
    ]
    if measured:
        for mark, label in (("D", "measured"), ("^", "measured: at least"), ("v", "measured: below")):
            handles.append(
                Line2D([], [], color="black", marker=mark, linestyle="", markerfacecolor="white", label=label)
            )
    figure.legend(handles=handles, fontsize=9, ncols=4, loc="outside lower center")


def wrapped(contender: Contender) -> str:
    return "\n".join([contender.policy, *(f"{name}={value}" for name, value in contender.options)])


def draw_shift(path: Path, compared: PolicyComparison) -> None:
    """A column for each policy: what came, the shares, the mode, and who was in time."""
    shift = compared.simulated["shift"]
    rows = shift["policies"]
    said = ", then ".join(f"{p['trace']} at {p['rate']:g}/s" for p in shift["phases"])
    figure = blank(f"a load that shifts: {said} (simulated)", height=900)
    grid = figure.subplots(4, len(rows), sharex=True, sharey="row", squeeze=False)
    for column, row in enumerate(rows):
        load, shares, modes, inside = (grid[line][column] for line in range(4))
        load.set_title(Contender(row["policy"], tuple(row["options"].items())).label, fontsize=11)
        bins = [shift["bin_s"] * place for place in range(len(row["bins"]))]
        looks = [shift["look_s"] * place for place in range(len(row["looks"]))]
        load.step(bins, [one["prompt_tokens_per_s"] / 1000 for one in row["bins"]], where="post", color=COLOURS[1])
        for name, colour in (("prefill", PREFILL), ("decode", DECODE)):
            values = [gap(look[f"{name}_share"]) for look in row["looks"]]
            shares.step(looks, values, where="post", color=colour, label=name)
        floor = [0.0] * len(looks)
        for mode, colour in MODES.items():
            top = [low + 100 * look["modes"][mode] for low, look in zip(floor, row["looks"], strict=True)]
            modes.fill_between(looks, floor, top, step="post", color=colour, label=mode, linewidth=0)
            floor = top
        for name, colour in (("ttft", PREFILL), ("tpot", DECODE)):
            values = [100 * gap(one[name]) for one in row["bins"]]
            inside.step(bins, values, where="post", color=colour, label=name.upper())
        inside.axhline(90, color="0.4", linestyle="--", linewidth=1)
        for axes in (load, shares, modes, inside):
            begin = 0.0
            for phase in shift["phases"][:-1]:
                begin += phase["seconds"]
                axes.axvline(begin, color="0.6", linewidth=1)
            finish(axes, legend=axes is not load and column == 0)
        inside.set_xlabel("seconds")
    names = ("prompt tokens\n(thousands/s)", "shares while split\n(%)", "mode, while both\nphases work (%)")
    for axes, name in zip(grid[:, 0], (*names, "inside the tight\nSLO (%)"), strict=True):
        axes.set_ylabel(name)
        axes.set_ylim(bottom=0)
    save(figure, path)


def gap(value: float | None) -> float:
    """Returns NaN for what is absent, which leaves a gap in the line."""
    return float("nan") if value is None else value
