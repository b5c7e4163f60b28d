"""The roofline picture of `benchmarks.kernels`: rates of attention, ours and the rivals', below what the GPU can do.

    python -m benchmarks.kernels_plot OUT/kernels.json --picture docs/kernels-roofline.svg [--tflop-s 790 --tb-s 4.3]

Each point is a part of the JSON and a pass: its FLOP by the bytes of the tensors that any kernel must move, against the
FLOP/s it reached at P10. The line is the lower of the two roofs that were measured on an H200: bf16 products, memory.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHOWN = {
    "ours": ("tab:blue", "o"),
    "FlexAttention": ("tab:orange", "s"),
    "varlen_attn": ("tab:green", "^"),
    "padded SDPA": ("tab:gray", "x"),
    "HSTU port": ("tab:red", "v"),
}
PASSES = ("forward", "backward")


@dataclass(frozen=True)
class Point:
    """One rival's pass of one part."""

    part: str
    rival: str
    which: str
    flop_a_byte: float
    tflop_s: float


def points(parts: Mapping[str, Any]) -> Iterator[Point]:
    """The points of all parts of attention that have rates."""
    for name, part in parts.items():
        if not name.startswith("attention"):
            continue
        for rival, row in part.get("rivals", {}).items():
            for which in PASSES:
                figures = row.get(which, {})
                if rival in SHOWN and figures.get("gb_s") and figures.get("tflop_s"):
                    rate = figures["tflop_s"]
                    yield Point(name, rival, which, rate * 1e3 / figures["gb_s"], rate)


def draw(found: Sequence[Point], title: str, picture: Path, tflop_s: float, tb_s: float) -> None:
    """Write the picture, in the format that its name ends with."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PASSES), figsize=(11, 4.5), sharey=True, constrained_layout=True)
    groups: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for point in found:
        groups[point.which, point.rival].append(point)
    low, high = min(p.flop_a_byte for p in found) / 2, max(p.flop_a_byte for p in found) * 2
    corner = min(max(tflop_s / tb_s, low), high)
    for ax, which in zip(axes, PASSES, strict=True):
        roof = sorted({low, corner, high})
        ax.loglog(roof, [min(tflop_s, tb_s * x) for x in roof], color="black", linewidth=1, label="roof")
        for rival, (colour, marker) in SHOWN.items():
            own = groups.get((which, rival), [])
            if own:
                at = [p.flop_a_byte for p in own], [p.tflop_s for p in own]
                ax.loglog(*at, marker, color=colour, label=rival, linestyle="none", markersize=5)
        ax.set(title=which, xlabel="FLOP a byte")
        ax.grid(visible=True, which="both", linewidth=0.3)
    axes[0].set_ylabel("TFLOP/s")
    axes[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(picture)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw; the exit code: 0, or 2 where the JSON holds nothing to draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("--picture", type=Path, default=Path("docs/kernels-roofline.svg"))
    parser.add_argument("--tflop-s", type=float, default=790.0, help="roof of matrix products")
    parser.add_argument("--tb-s", type=float, default=4.3, help="roof of memory")
    options = parser.parse_args(arguments)
    report = json.loads(options.json.read_text(encoding="utf-8"))
    found = list(points(report["parts"]))
    if not found:
        print(f"error: {options.json} holds no rates of attention", file=sys.stderr)
        return 2
    where = report["machine"]
    title = f"jagged attention, {where['gpu'] or where['cpu']}, torch {where['torch']}, triton {where['triton']}"
    draw(found, title, options.picture, options.tflop_s, options.tb_s)
    print(f"{len(found)} points in {options.picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
