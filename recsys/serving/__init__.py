"""The online ranking service."""

from recsys.errors import missing_extra

try:
    import fastapi as _fastapi  # noqa: F401  # only asked whether it is there
    import uvicorn as _uvicorn  # noqa: F401  # only asked whether it is there
except ImportError as error:
    missing_extra(error.name or "fastapi", "serve", error)
