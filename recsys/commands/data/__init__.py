"""recsys data …, and what turns logs into datasets and journals: one file a command."""

import typer

from recsys.commands.data.simulate import app as simulate_app

app = typer.Typer(help="Behaviour logs: simulated ones, and what a log holds.", no_args_is_help=True)
app.add_typer(simulate_app, name="simulate")
