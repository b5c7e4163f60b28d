"""Every benchmark, one after another: `make bench`."""

import os
import runpy
import sys

MODULES = (
    "shop_world",
    "attention",
    "linear_cross_entropy",
    "path",
    "training_speed",
    "preparation",
    "evaluation_speed",
    "floors",
    "compare",
    "resume",
)
NEED_DATA = ("path", "training_speed", "preparation", "evaluation_speed", "floors", "compare")


def main() -> None:
    """Run each module with its defaults; those that need real data are skipped, and say so, where it is absent."""
    for name in MODULES:
        if name in NEED_DATA and not os.environ.get("RECSYS_DATA"):
            print(f"== {name}: skipped, RECSYS_DATA is not set")
            continue
        print(f"== {name}", flush=True)
        sys.argv = [name]
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")


if __name__ == "__main__":
    main()
