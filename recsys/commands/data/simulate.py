"""recsys data simulate shop"""

from pathlib import Path
from typing import Annotated

import typer

from recsys.commands.data.settings import settings
from recsys.commands.output import Output

app = typer.Typer(help="Writes a simulated world: logs, items and what its oracle needs.", no_args_is_help=True)


@app.command("shop")
def simulate_shop(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder of the world.")],
    config: Annotated[Path | None, typer.Option(help="Knobs, .yaml or .json; by default those of world S.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Overrides a knob, such as users=500; repeatable."),
    ] = None,
) -> None:
    """Simulates the shop, where every next item follows from an intent that the log does not name."""
    output: Output = context.obj
    from recsys import config as configs
    from recsys.features.simulate.shop import ShopConfig, simulate

    mapping = settings(config, assignments)
    simulate(configs.load(ShopConfig, mapping, f"{config}: " if config else "shop."), out, output.say)
    log, items = out / "interactions.parquet", out / "items.parquet"
    next_line = f"next: recsys prepare --source {log} --items {items} --out {out.parent / 'data'}"
    output.result({"out": str(out), "interactions": str(log), "items": str(items)}, f"{out}: written", next_line)
