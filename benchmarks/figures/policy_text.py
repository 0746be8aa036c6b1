"""The sentences and tables of the page about policies: every figure in them is taken from the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from figures.aims import AIMS
from figures.cases import SLOS, TRACES, Contender
from figures.goodput_estimate import Crossing
from figures.policy_comparison import PolicyComparison
from figures.run_table import Key

NEAR = 0.03
"""Policies whose goodputs differ by less than this share are not told apart: searches end that far from the truth."""
CLOSE = 0.10


def page(template: str, compared: PolicyComparison, against: Mapping[str, Any] | None) -> str:
    """The template with each {{name}} filled in. Raises KeyError for a name that there is not."""
    parts = {
        "basis": basis(compared),
        "aims": aims_table(compared),
        "tight": goodput_table(compared, "tight"),
        "loose": goodput_table(compared, "loose"),
        "outcome": outcome(compared),
        "agreement": agreement(compared, against),
        "behaviour": behaviour_table(compared),
        "shift": shift_table(compared),
        "shifting": shifting_words(compared),
        "errors": errors(compared),
        "near": percent(NEAR),
        "bin_s": f"{compared.simulated['shift']['bin_s']:g}",
        "unmixed": unmixed(compared),
    }
    before, *rest = template.split("{{")
    filled = [before]
    for part in rest:
        name, _, after = part.partition("}}")
        filled += [parts[name], after]
    return "".join(filled)


def number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def said(found: Crossing | None) -> str:
    return "–" if found is None else found.said().replace(">=", "≥")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def quoted(who: Contender) -> str:
    options = " ".join(f"{name}={value}" for name, value in who.options)
    return f"`{who.policy}`" + (f" ({options})" if options else "")


def who_of(row: Mapping[str, Any]) -> Contender:
    return Contender(row["policy"], tuple(row["options"].items()))


def basis(compared: PolicyComparison) -> str:
    """States what the figures rest on."""
    simulated = compared.simulated
    profile = "recorded by `semipd profile`" if simulated["recorded"] else "*not* recorded by `semipd profile`"
    text = (
        f"**Simulated**: {simulated['model']} on {simulated['gpu']}, profile `{simulated['profile']}` ({profile}); "
        f"{simulated['seconds']:g} s of arrivals a run, {simulated['seeds']} seeds a rate, the rates that passed and "
        f"failed {percent(simulated['tolerance'])} apart at most, and both confirmed with fresh seeds."
    )
    runs = [run for run in compared.sheet.runs if run["valid"]]
    if not runs:
        return text + "\n\n**Measured**: nothing yet; `benchmarks/results/h200_policies.json` is not there."
    used = [compared.sheet.sessions[place]["provenance"] for place in sorted({run["session"] for run in runs})]
    gpus = sorted({gpu for one in used for gpu in one["gpus"]}) or ["no GPU"]
    days = sorted({one["date"][:10] for one in used})
    commits = sorted({one["commit"][:9] or "unknown" for one in used})
    seconds = sorted({run["seconds"] for run in runs})
    seeds = sorted({run["seed"] for run in runs})
    return (
        f"{text}\n\n**Measured**: {len(runs)} runs on {listed(gpus)} ({listed(days)}, commit {listed(commits)}), "
        f"{listed([f'{one:g}' for one in seconds])} s of arrivals (of one rate the longest run counts), "
        f"seed {listed([str(one) for one in seeds])}, the server and its client on one machine, through gRPC. "
        'Goodput is interpolated between two measured rates; "≥" is the highest rate where none failed, "<" the '
        "lowest where none passed."
    )


def aims_table(compared: PolicyComparison) -> str:
    simulated, measured = compared.goodputs(), compared.measured()
    rows = []
    for trace in TRACES:
        aim = AIMS[f"goodput_{trace}"]
        rows.append([trace, f"{aim.least:g}", f"{aim.aim:g}", top(simulated, trace, aim), top(measured, trace, aim)])
    return table(["trace", "vLLM 0.26", "aim", "best simulated", "best measured"], rows)


def top(found: Mapping[Key, Crossing], trace: str, aim: Any) -> str:
    """The best under the tight SLO, and what that is worth."""
    ends = {key[0]: worth(end) for key, end in found.items() if key[1:] == (trace, "tight") and worth(end)}
    if not ends:
        return "–"
    who = max(ends, key=lambda one: ends[one])
    verdict = "reaches the aim" if ends[who] >= aim.aim else "short of the aim"
    if ends[who] < aim.least:
        verdict = "short of vLLM"
    return f"{said(found[who, trace, 'tight'])} {quoted(who)}: {verdict}"


def worth(end: Crossing) -> float:
    """Returns the rate that is known to be reached."""
    return end.value if end.value is not None else end.passed or 0.0


def goodput_table(compared: PolicyComparison, slo: str) -> str:
    simulated, measured = compared.goodputs(), compared.measured()
    rows = []
    for who in compared.contenders():
        row = [quoted(who)]
        for trace in TRACES:
            for found in (simulated, measured):
                row.append(marked(found, (who, trace, slo)))
        rows.append(row)
    head = [f"{trace}, {how}" for trace in TRACES for how in ("simulated", "measured")]
    return table(["policy", *head], rows)


def marked(found: Mapping[Key, Crossing], key: Key) -> str:
    """Returns the rate, in bold where it is the best of its trace and SLO, or cannot be told from it."""
    if key not in found:
        return "–"
    best = max(worth(end) for other, end in found.items() if other[1:] == key[1:])
    leads = worth(found[key]) >= best * (1 - NEAR) > 0
    return f"**{said(found[key])}**" if leads else said(found[key])


def leaders(
    found: Mapping[Key, Crossing], trace: str, slo: str
) -> tuple[list[Contender], list[tuple[Contender, float]]]:
    """(who is best or not to be told from it, all by goodput, the best first)."""
    ends = [(who, worth(end)) for (who, *rest), end in found.items() if rest == [trace, slo]]
    ends.sort(key=lambda pair: -pair[1])
    return [who for who, value in ends if value >= ends[0][1] * (1 - NEAR) > 0], ends


def outcome(compared: PolicyComparison) -> str:
    """Says in words who wins and who loses."""
    simulated = compared.goodputs()
    lines, wins = [], dict.fromkeys(compared.contenders(), 0)
    groups = [(trace, slo) for slo in SLOS for trace in TRACES if any(key[1:] == (trace, slo) for key in simulated)]
    for trace, slo in groups:
        best, ends = leaders(simulated, trace, slo)
        if not best:
            lines.append(f"* **{trace}, {slo}**: no policy has 90 % inside at any rate.")
            continue
        for who in best:
            wins[who] += 1
        last, value = ends[-1]
        together = " (not to be told apart)" if len(best) > 1 else ""
        lines.append(
            f"* **{trace}, {slo}**: {listed([quoted(who) for who in best])}{together} with {number(ends[0][1])} "
            f"requests/s; last is {quoted(last)} with {number(value)}, {percent(value / ends[0][1])} of it."
        )
    return (
        "\n".join(lines)
        + "\n\nBy policy:\n\n"
        + "\n".join(f"* {text}" for who in wins if (text := standing(who, wins[who], simulated, groups)))
    )


def standing(who: Contender, wins: int, simulated: Mapping[Key, Crossing], groups: Sequence[tuple[str, str]]) -> str:
    """Says in how many groups it leads, and where it is furthest behind."""
    shares = {}
    for trace, slo in groups:
        if (who, trace, slo) in simulated:
            best, ends = leaders(simulated, trace, slo)
            shares[trace, slo] = worth(simulated[who, trace, slo]) / ends[0][1] if best else 1.0
    if not shares:
        return ""
    worst = min(shares, key=lambda group: shares[group])
    lead = "in none" if not wins else f"in {wins}"
    where = (
        "."
        if shares[worst] >= 1 - NEAR
        else f"; furthest behind on {worst[0]}, {worst[1]}: {percent(shares[worst])} of the best."
    )
    return f"{quoted(who)} leads {lead} of {len(groups)}{beaten(who, simulated, list(shares))}{where}"


def beaten(who: Contender, simulated: Mapping[Key, Crossing], groups: Sequence[tuple[str, str]]) -> str:
    """Says where it loses to the fallback, which does nothing clever at all."""
    plain = Contender("fcfs")
    lost = [
        f"{trace}, {slo}"
        for trace, slo in groups
        if (plain, trace, slo) in simulated
        and worth(simulated[who, trace, slo]) < (1 - NEAR) * worth(simulated[plain, trace, slo])
    ]
    return f" and loses to `fcfs` in {len(lost)} ({'; '.join(lost)})" if lost else ""


def agreement(compared: PolicyComparison, against: Mapping[str, Any] | None) -> str:
    """Says whether the GPU agrees."""
    simulated, measured = compared.goodputs(), compared.measured()
    lines = []
    for trace, slo in ((trace, slo) for slo in SLOS for trace in TRACES):
        both = [key for key in measured if key[1:] == (trace, slo) and key in simulated]
        if len(both) < 2:
            continue
        here = leaders({key: simulated[key] for key in both}, trace, slo)[0]
        there = leaders({key: measured[key] for key in both}, trace, slo)[0]
        if not there:
            lines.append(f"* {trace}, {slo}: none of the {len(both)} that were measured passed at any measured rate.")
            continue
        same = "the same" if set(here) & set(there) else "another"
        if any(measured[who, trace, slo].value is None for who in there):
            same = f"as far as the measured rates go, {same}"
        lines.append(
            f"* {trace}, {slo}: of the {len(both)} that were measured {listed([quoted(who) for who in there])} "
            f"{'leads' if len(there) == 1 else 'lead'}, {same} as simulated ({listed([quoted(who) for who in here])})."
            + unranked({key[0]: measured[key] for key in both}, there)
        )
    if not lines:
        lines.append("No two policies were measured on the same trace yet, so simulated ranks are unconfirmed.")
    known = [row for row in (against or {}).get("goodputs", []) if row["within"] is not None]
    if known:
        off = sorted((row for row in known if not row["within"]), key=lambda row: -abs(row["ratio"] - 1))
        lines.append(
            f"\nThe very runs that were measured, simulated: {sum(row['within'] for row in known)} of {len(known)} "
            f"goodputs are within {percent(CLOSE)}."
        )
        if off:
            lines.append(
                f"Furthest off is {quoted(who_of(off[0]))} on {off[0]['trace']}, {off[0]['slo']}: "
                f"measured {off[0]['measured']}, simulated {off[0]['simulated']}."
            )
    return "\n".join(lines)


def unranked(ends: Mapping[Contender, Crossing], best: Sequence[Contender]) -> str:
    """Lists the policies that failed at their lowest rate, where that is above what the best are known to reach."""
    reached = max(worth(ends[who]) for who in best)
    names = [quoted(who) for who, end in ends.items() if end.passed is None and (end.failed or 0.0) > reached]
    return f" {listed(names)} may be ahead of that: no rate as low was measured." if names else ""


def behaviour_table(compared: PolicyComparison) -> str:
    """Tabulates, for the time in which both phases had work, the modes, and the shares while it was split."""
    rows = []
    for who in compared.contenders():
        for trace in TRACES:
            row = compared.row(who, trace, "tight")
            if row is None or not row.get("at_goodput"):
                continue
            seen = row["at_goodput"]
            rows.append([quoted(who), trace, shares_of(seen), modes_of(seen["modes"])])
    return table(["policy", "trace", "prefill / decode while split", "time in each mode"], rows)


def shares_of(seen: Mapping[str, Any]) -> str:
    if seen["prefill_share"] is None:
        return "–"
    return f"{seen['prefill_share']:.0f} / {seen['decode_share']:.0f}"


def modes_of(modes: Mapping[str, float]) -> str:
    found = [f"{name} {percent(share)}" for name, share in modes.items() if share >= 0.005]
    return ", ".join(found) or "–"


def unmixed(compared: PolicyComparison) -> str:
    """A warning where `chunked` got no mixed batch."""
    rows = [
        row["at_goodput"] for row in compared.simulated["searches"] if row["policy"] == "chunked" and "error" not in row
    ]
    if any(seen and seen["modes"]["mixed"] for seen in rows):
        return ""
    return (
        "There were **no mixed batches** in these simulations (a profile without mixed passes has none). So `chunked` "
        "is simulated as what it becomes on such an engine, its chunks beside decode on the whole device, and "
        "`adaptive` without one of its modes: their bars are not what a GPU with mixed batches does.\n\n"
    )


def shift_table(compared: PolicyComparison) -> str:
    rows = []
    for row in compared.simulated["shift"]["policies"]:
        who = quoted(who_of(row))
        begin = 0
        for phase in row["phases"]:
            end = begin + round(phase["seconds"] / compared.simulated["shift"]["look_s"])
            seen = mean_look(row["looks"][begin:end])
            inside = [percent(phase[name], 1) for name in ("ttft", "tpot", "both")]
            rows.append(
                [who, f"{phase['trace']}, {phase['rate']:g}/s", *inside, shares_of(seen), modes_of(seen["modes"])]
            )
            begin = end
    return table(
        ["policy", "load", "TTFT inside", "TPOT inside", "both", "prefill / decode while split", "modes"], rows
    )


def mean_look(looks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Averages the looks at which both phases had work."""
    busy = [look for look in looks if any(look["modes"].values())]
    split = [look for look in busy if look["prefill_share"] is not None]
    names = list(looks[0]["modes"])
    return {
        "modes": {name: sum(look["modes"][name] for look in busy) / len(busy) if busy else 0.0 for name in names},
        "prefill_share": sum(look["prefill_share"] for look in split) / len(split) if split else None,
        "decode_share": sum(look["decode_share"] for look in split) / len(split) if split else None,
    }


def shifting_words(compared: PolicyComparison) -> str:
    """Says who came through each part of the shift with 90 %."""
    lines = []
    for row in compared.simulated["shift"]["policies"]:
        who = quoted(who_of(row))
        missed = [f"{phase['trace']} ({percent(phase['both'], 1)})" for phase in row["phases"] if phase["both"] < 0.9]
        lines.append(
            f"{who} keeps 90 % inside in each part."
            if not missed
            else f"{who} falls below 90 % in {len(missed)} of {len(row['phases'])} parts: {listed(missed)}."
        )
    return " ".join(lines)


def errors(compared: PolicyComparison) -> str:
    """Cases without a result, each with its reason; nothing where there are none."""
    found = [(row, "simulated", row["error"]) for row in compared.simulated["searches"] if "error" in row]
    found += [(row, "measured", row["error"]) for row in compared.sheet.failures]
    lines = [f"* {quoted(who_of(row))} on {row['trace']}, {row['slo']}, {how}: {why}" for row, how, why in found]
    return "\n\nWithout a result:\n\n" + "\n".join(lines) if lines else ""
