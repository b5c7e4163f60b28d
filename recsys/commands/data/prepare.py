"""recsys prepare"""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from recsys.commands.data.settings import settings
from recsys.commands.output import Output


class Protocol(StrEnum):
    """How the events of a user are split."""

    loo = "loo"
    loo_novalid = "loo-novalid"
    time = "time"
    ratio = "ratio"


def prepare(
    context: typer.Context,
    source: Annotated[
        Path, typer.Option(help="The log: a file, a folder or a glob; CSV, TSV, Parquet, JSONL, MovieLens, ….")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the dataset.")],
    protocol: Annotated[
        Protocol | None, typer.Option(help="How events are split; by default as the configuration says.")
    ] = None,
    items: Annotated[Path | None, typer.Option(help="A table of items: item_id, title, category, ….")] = None,
    append: Annotated[
        bool, typer.Option("--append", help="Adds the log to the dataset, by the settings it was prepared by.")
    ] = False,
    config: Annotated[Path | None, typer.Option(help="Settings, .yaml or .json.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Overrides a setting, such as filters.min_item_events=5; repeatable."
        ),
    ] = None,
) -> None:
    """Turns a log into sequences: bad rows set aside, policies, filters, order, splits."""
    output: Output = context.obj
    from recsys import config as configs
    from recsys.errors import ConfigError
    from recsys.features.prepare import PrepareConfig
    from recsys.features.prepare import prepare as run

    if append:
        if protocol or config or assignments:
            raise ConfigError(
                "--append takes no --protocol, --config or --set: the settings are those the dataset was prepared by; "
                "prepare all days anew to change them"
            )
        from recsys.features.preparation.append import append as run_append

        dataset = run_append(source, out, output.say, items)
    else:
        chosen = [f"split.protocol={json.dumps(protocol.value)}"] if protocol else []
        chosen += [f"items={json.dumps(str(items))}"] if items else []
        mapping = settings(config, [*chosen, *(assignments or [])])
        dataset = run(source, out, configs.load(PrepareConfig, mapping, f"{config}: " if config else ""), output.say)
    values = {
        "out": str(out),
        "users": dataset.num_users,
        "items": dataset.num_items,
        "events": dataset.num_events,
        "order": dataset.order,
        "protocol": dataset.protocol,
        "data_hash": dataset.data_hash,
        "counts": dataset.manifest["counts"],
        "appends": dataset.manifest["appends"],
    }
    counts = f"{dataset.num_users:,} users, {dataset.num_items:,} items, {dataset.num_events:,} events"
    output.result(values, f"{out}: {counts}", f"{dataset.protocol_string('test', 'exclude')}")
