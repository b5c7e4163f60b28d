"""recsys data simulate shop, recsys prepare, recsys ingest"""

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from recsys.commands.output import Output

app = typer.Typer(help="Behaviour logs of simulated worlds.", no_args_is_help=True)
simulate_app = typer.Typer(
    help="Writes a simulated world: logs, items and what its oracle needs.", no_args_is_help=True
)
app.add_typer(simulate_app, name="simulate")


class Protocol(StrEnum):
    """How the events of a user are split."""

    loo = "loo"
    loo_novalid = "loo-novalid"
    time = "time"
    ratio = "ratio"


@simulate_app.command("shop")
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

    mapping = _mapping(config, assignments)
    simulate(configs.load(ShopConfig, mapping, f"{config}: " if config else "shop."), out, output.say)
    log, items = out / "interactions.parquet", out / "items.parquet"
    next_line = f"next: recsys prepare --source {log} --items {items} --out {out.parent / 'data'}"
    output.result({"out": str(out), "interactions": str(log), "items": str(items)}, f"{out}: written", next_line)


def prepare(
    context: typer.Context,
    source: Annotated[
        Path, typer.Option(help="The log: CSV, TSV, Parquet, JSONL, MovieLens :: or 'user i1 i2 …' lines, also .gz.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the dataset.")],
    protocol: Annotated[
        Protocol | None, typer.Option(help="How events are split; by default as the configuration says.")
    ] = None,
    items: Annotated[Path | None, typer.Option(help="A table of items: item_id, title, category, ….")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings, .yaml or .json.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Overrides a setting, such as filters.min_item_events=5; repeatable."
        ),
    ] = None,
) -> None:
    """Turns a log into sequences: bad rows set aside, filters, order, splits."""
    output: Output = context.obj
    from recsys import config as configs
    from recsys.features.prepare import PrepareConfig
    from recsys.features.prepare import prepare as run

    chosen = [f"split.protocol={json.dumps(protocol.value)}"] if protocol else []
    chosen += [f"items={json.dumps(str(items))}"] if items else []
    mapping = _mapping(config, [*chosen, *(assignments or [])])
    dataset = run(source, out, configs.load(PrepareConfig, mapping, f"{config}: " if config else ""), output.say)
    values = {
        "out": str(out),
        "users": dataset.num_users,
        "items": dataset.num_items,
        "events": dataset.num_events,
        "order": dataset.order,
        "protocol": dataset.protocol,
        "data_hash": dataset.data_hash,
        "counts": dataset.manifest.get("counts", {}),
    }
    counts = f"{dataset.num_users:,} users, {dataset.num_items:,} items, {dataset.num_events:,} events"
    output.result(values, f"{out}: {counts}", f"{dataset.protocol_string('test', 'exclude')}")


def ingest(
    context: typer.Context,
    source: Annotated[Path, typer.Option(help="The log, as for prepare.")],
    journal: Annotated[Path, typer.Option(help="Folder of the journal; made where it is absent.")],
) -> None:
    """Appends a log to a journal, from which a server knows its users; an event that is there already counts once."""
    output: Output = context.obj
    from recsys.pipelines.ingest import ingest as run

    output.resume_hint = "what was committed stays; the same command goes on from there"
    output.result(run(source, journal, say=output.say))


def _mapping(file: Path | None, assignments: Sequence[str] | None) -> dict[str, Any]:
    from recsys import config as configs

    return configs.override(configs.read(file) if file else {}, assignments or [])
