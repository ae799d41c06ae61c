"""The figures that `make bench` wrote, as one table, as the table in docs/kernels.md, and as a chart.

python -m benchmarks.summary --device cpu --markdown docs/kernels.md --chart docs/images/kernels.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.ops.harness import table

RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def load(device: str) -> list[dict[str, Any]]:
    """The result files of one device, by name of the op."""
    return [json.loads(path.read_text()) for path in sorted((RESULTS / device).glob("*.json"))]


def by_workload(rows: list[dict[str, Any]]) -> dict[str, dict[tuple[str, int], dict[str, Any]]]:
    """workload -> (level, threads) -> row, in the order of the file."""
    grouped: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}
    for row in rows:
        grouped.setdefault(row["workload"], {})[row.get("level", ""), row.get("threads", 0)] = row
    return grouped


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}" if value >= 2 else f"{value:.2f}"


def markdown(results: list[dict[str, Any]], notable: bool) -> str:
    """One row a workload: the best instruction set at one thread and two, and AVX2 at one. Or only the notable ones,
    which have an aim or a place in the chart."""
    lines = [
        "| op | workload | ms, 1 thread | 2 threads | AVX2, 1 thread | floor ms | times the floor, 1 / 2 threads | aim "
        "| times faster than peer, 1 / 2 | than reference |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        best = result["machine"]["build"]["cpu_level"]
        for name, rows in by_workload(result["rows"]).items():
            if notable and not any("aim" in row or "headline" in row for row in rows.values()):
                continue
            one, two, narrow = rows.get((best, 1), {}), rows.get((best, 2), {}), rows.get(("avx2", 1), {})
            floors = " / ".join(number(row.get("times floor")) for row in (one, two))
            peers = [number(row.get("times faster than peer")) for row in (one, two)]
            cells = [
                f"`{result['op']}`",
                name,
                number(one.get("time")),
                number(two.get("time")),
                number(narrow.get("time")) if best != "avx2" else "",
                number(one.get("floor")),
                floors,
                one.get("aim", ""),
                " / ".join(peers) if any(peers) else "",
                number(one.get("times faster than reference")),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def where(machine: dict[str, Any]) -> str:
    """The machine, the versions and the day, in a line."""
    device = machine.get("gpu") or f"{machine['processors']} shared cores of an {machine['processor']}, "
    level = "" if machine.get("gpu") else machine["build"]["cpu_level"]
    return f"{device}{level}, torch {machine['torch']}, {machine['date']}, commit {machine['commit']}"


def write_docs(results: list[dict[str, Any]], docs: Path) -> None:
    """The notable figures into docs/kernels.md, all figures of an op into its own page."""
    where_all = "; ".join(sorted({where(result["machine"]) for result in results}))
    replace_between_marks(docs / "kernels.md", f"{where_all}.\n\n{markdown(results, notable=True)}")
    for result in results:
        page = docs / "kernels" / f"{result['op']}.md"
        if page.exists():
            replace_between_marks(page, f"{where(result['machine'])}.\n\n{markdown([result], notable=False)}")


def replace_between_marks(path: Path, text: str) -> None:
    page = path.read_text()
    if BEGIN not in page or END not in page:
        raise SystemExit(f"{path} must hold the lines {BEGIN} and {END}")
    head, rest = page.split(BEGIN, 1)
    temporary = path.with_suffix(".part")
    temporary.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}")
    temporary.replace(path)


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Bars of the headline workloads at one thread: times faster than the peer, and times the floor."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    rows = []
    for result in results:
        best = result["machine"]["build"]["cpu_level"]
        rows += [
            row
            for row in result["rows"]
            if row.get("headline") and row.get("threads", 1) <= 1 and row.get("level", best) == best
        ]
    rows.sort(key=lambda row: row.get("times faster than peer", 0))
    labels = [row["headline"] for row in rows]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 0.36 * len(rows) + 1.4), sharey=True)
    for axis, key, colour, title in (
        (left, "times faster than peer", "#2a6f97", "times faster than the peer, one thread"),
        (right, "times floor", "#c9713a", "times the physical floor (1 is the limit)"),
    ):
        values = [row.get(key, 0) for row in rows]
        bars = axis.barh(labels, [max(value, 0.1) for value in values], color=colour)
        axis.bar_label(bars, [number(value) if value else "no peer" for value in values], padding=3, fontsize=8)
        axis.set_xscale("log")
        axis.set_xlim(0.5, 4 * max(values))
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_title(title, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9)
    machine = results[0]["machine"]
    where = machine.get("gpu") or f"{machine['processor']}, {machine['build']['cpu_level']}"
    figure.suptitle(
        f"pyposeext {machine['pyposeext']}: {where}, torch {machine['torch']}, {machine['date']}", fontsize=9
    )
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part.png")
    figure.savefig(temporary, dpi=110)
    temporary.replace(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The figures of all ops as a table and a chart.")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--docs", type=Path, help="the folder of pages whose marked parts become the tables")
    parser.add_argument("--chart", type=Path, help="a PNG file to draw")
    options = parser.parse_args()
    found = load(options.device)
    if not found:
        raise SystemExit(f"{RESULTS / options.device} holds no results: run `make bench` first")
    for one in found:
        print(f"\n{one['op']}, {options.device}, {one['machine']['date']}, commit {one['machine'].get('commit', '')}")
        print(table(one["rows"]))
    if options.docs:
        write_docs(found, options.docs)
    if options.chart:
        draw(found, options.chart)
