"""recsys config show, recsys config schema"""

import json
from pathlib import Path
from typing import Annotated

import typer

from recsys.commands.output import Output

app = typer.Typer(help="Settings: what a run would use, and what there is to set.", no_args_is_help=True)


@app.command("show")
def show(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="A training configuration, .yaml or .json.")],
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overrides a setting; repeatable.")
    ] = None,
) -> None:
    """Prints the effective configuration of a training run, defaults included."""
    output: Output = context.obj
    from recsys.commands.train import effective

    plain = effective(config, assignments or [], None)
    output.result(plain, json.dumps(plain, indent=2))


@app.command("schema")
def schema(
    context: typer.Context,
    what: Annotated[str, typer.Argument(help="train, prepare, shop, or the name of a model.")] = "train",
) -> None:
    """Prints the JSON schema of a configuration."""
    output: Output = context.obj
    from recsys import config as configs

    found = configs.schema(_class(what))
    output.result(found, json.dumps(found, indent=2))


def _class(what: str) -> type:
    if what == "train":
        from recsys.pipelines.run_config import TrainConfig

        return TrainConfig
    if what == "prepare":
        from recsys.features.prepare import PrepareConfig

        return PrepareConfig
    if what == "shop":
        from recsys.features.simulate.shop_config import ShopConfig

        return ShopConfig
    from recsys.models import registry

    return registry.config_class(what)
