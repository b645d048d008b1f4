"""Table 1 and figure 6 of the paper from the results of `bench.tdec`."""

from pathlib import Path

from service.domain.json_types import JsonObject
from worker.engine.attacks import MEMBERSHIP

TOP = 1.3  # the figure's highest perplexity ratio


def report(lines: list[JsonObject]) -> str:
    """Table 1 in Markdown: a row for each run."""
    head = "model", "set", "method", "epochs (steps)", "set criterion first held", "share", "EL10 at least", "MA, limit"
    ability = "MA over its p95", "Pile", "WikiText", "LAMBADA", "dialogue F1", "AUC loss", "AUC min-k", "AUC min-k++"
    table = ["| " + " | ".join((*head, *ability)) + " |", "|---" * (len(head) + len(ability)) + "|"]
    for line in lines:
        before, after, last = line["before"], line["after"], line["history"][-1]
        name = line["method"] + (f", {line['domain']:.0%} Pile" if line["domain"] else "")
        failed = f"{line['over']}" + (f", earlier {line['earlier_over']}" if "/" in line["set"] else "")
        cells = [
            Path(line["model"]).name,
            line["set"],
            name,
            f"{line['epochs']} ({line['steps']}){'' if line['met'] else ' not met'}",
            set_criterion(line),
            f"{line['strength']:.2f}",
            f"{last['el']:.4f}",
            f"{line['ma']:.3f}, {line['ma_limit']:.3f}",
            failed,
            *(f"{before[k]:.1f} -> {after[k]:.1f} (x {after[k] / before[k]:.3f})" for k in ("pile", "wikitext")),
            *(f"{before[k]:.3f} -> {after[k]:.3f}" if k in after else "" for k in ("lambada", "dialogue")),
            *(_before_and_after(line, name) for name in MEMBERSHIP),
        ]
        table.append("| " + " | ".join(cells) + " |")
    return "\n".join(table)


def _before_and_after(line: JsonObject, attack: str) -> str:
    """An attack's figure on the parent and on the merged model; rows of earlier commits lack the first, or both."""
    figures = (line.get(model, {}).get(attack) for model in ("parent_attacks", "attacks"))
    return " -> ".join(f"{figure:.2f}" for figure in figures if figure is not None)


def set_criterion(line: JsonObject) -> str:
    """The paper's own stop: the step at which the set's means first held, and Pile perplexity there, without verdicts.

    EL is the lower bound from matches. A method that looks at whole epochs could have stopped at the epoch's end.
    """
    limits = line["history"][-1]
    for step, point in enumerate(line["frontier"], start=1):
        if point["ma"] <= limits["ma_limit"] and point["el"] <= limits["el_limit"]:
            return f"step {step}, Pile x {point['pile'] / line['frontier_start']:.3f}"
    return "never"


def plot(lines: list[JsonObject], path: Path) -> None:
    """Figure 6: mean MA of the forget set against Pile perplexity after / before, with a dot for each step."""
    from matplotlib.figure import Figure

    panels = sorted({(line["model"], line["set"]) for line in lines})
    figure = Figure(figsize=(6.5 * len(panels), 5), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for line in (x for x in lines if (x["model"], x["set"]) == panel):
            label = line["method"] + (f", {line['domain']:.0%} Pile" if line["domain"] else "")
            ma = [point["ma"] for point in line["frontier"]]
            ratio = [point["pile"] / line["frontier_start"] for point in line["frontier"]]
            (drawn,) = axes.plot(ma, ratio, ".-", label=label, linewidth=1)
            axes.plot(line["ma"], line["after"]["pile"] / line["before"]["pile"], "*", color=drawn.get_color(), ms=14)
            axes.axvline(line["ma_limit"], color="0.6", linewidth=1, linestyle=":")
        axes.axhline(1, color="0.8", linewidth=1)
        axes.set(
            title=f"{Path(panel[0]).name}, {panel[1]}",
            xlabel="mean MA of the forget set (dotted: its limit)",
            ylabel="Pile perplexity after / before (star: the merged model)",
            yscale="log",
        )
        for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            set_formatter(lambda value, _: f"{value:.2f}")
        axes.set_ylim(top=min(axes.get_ylim()[1], TOP))  # beyond it a model is ruined; the table has the values
        axes.invert_xaxis()
        axes.legend()
    figure.savefig(path, dpi=110)
