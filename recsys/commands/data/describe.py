"""recsys data describe"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recsys.commands.data.describe_tables import describe_tables
from recsys.commands.data.settings import settings
from recsys.commands.output import Output

if TYPE_CHECKING:
    from recsys.features.describe.config import DescribeConfig


def describe(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="A log (file, folder or glob), or a prepared dataset.")],
    out: Annotated[Path | None, typer.Option(help="Folder for describe.json and describe.png.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings, .yaml or .json.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Overrides a setting, such as read.order=rows; repeatable."),
    ] = None,
) -> None:
    """Counts, shapes, order, ties, repeats and leaks of a log or a prepared dataset, and what to do next."""
    output: Output = context.obj
    from recsys import config as configs
    from recsys.features.describe.advice import advice
    from recsys.features.describe.config import DescribeConfig

    mapping = settings(config, assignments)
    values = _described(path, configs.load(DescribeConfig, mapping, f"{config}: " if config else ""), output)
    values["advice"] = advice(values)
    lines: list[object] = [*describe_tables(values), *values["notes"], *values["advice"]]
    if out is not None:
        lines += [f"written: {name}" for name in _write(values, out)]
    output.result(values, *lines)
    if values.get("leaks"):
        output.say(f"error: {path}: leakage: {'; '.join(leak['name'] for leak in values['leaks'])}; prepare it again")
        raise typer.Exit(2)


def _described(path: Path, config: "DescribeConfig", output: Output) -> dict[str, Any]:
    if (path / "manifest.json").is_file():
        from recsys.features.describe.dataset import describe_dataset

        return describe_dataset(path, config)
    from recsys.features.describe.source import describe_source

    return describe_source(path, config, output.say)


def _write(values: Mapping[str, Any], out: Path) -> list[Path]:
    from recsys.files import storage_errors, write_json

    with storage_errors(out, "free some space or name another folder"):
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "describe.json", dict(values))
        if "lengths" not in values:
            return [out / "describe.json"]
        from recsys.pipelines.pictures.description import draw_description

        return [out / "describe.json", draw_description(values, out / "describe.png")]
