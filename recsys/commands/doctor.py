"""recsys doctor"""

from dataclasses import asdict

import typer

from recsys.commands.output import Output, table


def doctor(context: typer.Context) -> None:
    """Checks that this machine can run the platform: packages, kernels, disk, data, a small model."""
    output: Output = context.obj
    from recsys.doctor import examine

    checks = examine()
    is_well = all(check.is_well or not check.is_needed for check in checks)
    rows = [{"check": check.name, "": check.mark, "found": check.found, "remedy": check.remedy} for check in checks]
    last = "all that is needed works" if is_well else "something that is needed is broken: see the remedies above"
    output.result({"is_well": is_well, "checks": [asdict(check) for check in checks]}, table(rows), last)
    if not is_well:
        raise typer.Exit(1)
