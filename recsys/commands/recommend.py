"""recsys recommend"""

from pathlib import Path
from typing import Annotated

import typer

from recsys.commands.output import Output, table
from recsys.errors import InputError


def recommend(
    context: typer.Context,
    bundle: Annotated[str, typer.Option(metavar="B", help="A bundle, a run folder or models:/name@alias.")],
    sequence: Annotated[str | None, typer.Option(help="Item ids, oldest first, with blanks between.")] = None,
    users: Annotated[
        Path | None, typer.Option(metavar="FILE", help="User ids, one a line; by default every user of the source.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Prepared dataset that holds the users' histories.")] = None,
    journal: Annotated[Path | None, typer.Option(help="Journal that holds the users' histories.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Items for each user.")] = 10,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the users' lists go: .parquet, .csv or .jsonl.")
    ] = None,
    tracking: Annotated[str | None, typer.Option(metavar="URI", help="MLflow registry, for models:/….")] = None,
) -> None:
    """Ranks items for a sequence, or for many users into a file; users the model never saw are fine."""
    output: Output = context.obj
    if sequence is not None:
        others = {"--users": users, "--data": data, "--journal": journal, "--out": out}
        named = [name for name, value in others.items() if value is not None]
        if named:
            raise InputError(f"--sequence is answered on stdout and goes without {' and '.join(named)}")
        _one(bundle, sequence, k, tracking, output)
        return
    if data is None and journal is None:
        raise InputError('name --sequence "i1 i2", or --data DIR or --journal DIR for the histories of users')
    if out is None:
        raise InputError("--out is missing: name the file of the lists, for example --out lists.parquet")
    from recsys.models.bundle import resolve
    from recsys.pipelines.recommend import recommend_users

    ids = None if users is None else _user_ids(users)
    output.result(recommend_users(resolve(bundle, tracking), ids, data, journal, k, out, output.say))


def _one(bundle: str, sequence: str, k: int, tracking: str | None, output: Output) -> None:
    from recsys.models.bundle import resolve
    from recsys.pipelines.recommend import recommend_sequence

    ranked = recommend_sequence(resolve(bundle, tracking), sequence.split(), k)
    rows = [
        {"rank": rank, "item_id": item, "score": score}
        for rank, (item, score) in enumerate(zip(ranked.item_ids, ranked.scores, strict=True), 1)
    ]
    shown = table([{**row, "score": f"{row['score']:.4f}"} for row in rows])
    unknown = [f"unknown to the model: {' '.join(map(str, ranked.unknown))}"] if ranked.unknown else []
    values = {"items": rows, "source": ranked.source, "unknown": ranked.unknown}
    output.result(values, shown, f"source: {ranked.source}", *unknown)


def _user_ids(file: Path) -> list[str]:
    try:
        ids = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({error}); name a text file with one user id a line") from error
    if not ids:
        raise InputError(f"{file}: names no user; wanted one user id a line")
    return ids
