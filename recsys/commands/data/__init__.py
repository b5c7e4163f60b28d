"""recsys data …, and what turns logs into datasets and journals: one file a command."""

import typer

from recsys.commands.data.describe import describe
from recsys.commands.data.diff import diff
from recsys.commands.data.fetch import fetch
from recsys.commands.data.simulate import app as simulate_app

app = typer.Typer(help="Behaviour logs: simulated ones, and what a log holds.", no_args_is_help=True)
app.add_typer(simulate_app, name="simulate")
app.command("fetch")(fetch)
app.command("describe")(describe)
app.command("diff")(diff)
