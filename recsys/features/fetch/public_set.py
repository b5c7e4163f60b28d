"""One public data set: where it lies, on what terms, and how `prepare` reads it."""

import re
from dataclasses import dataclass
from typing import Literal

Unpack = Literal["zip", "gz", "none"]


@dataclass(frozen=True, kw_only=True)
class PublicSet:
    """One data set.

    source: the log inside the fetched folder. settings: what `recsys prepare` needs beside it, as --set assignments.
    """

    name: str
    about: str
    url: str
    unpack: Unpack
    source: str
    terms: str
    terms_url: str
    md5: str | None = None
    settings: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        """Of what is downloaded."""
        return self.url.rpartition("/")[2]


def plain_name(name: str) -> str:
    """A name in lower case, with dashes in place of blanks and underscores."""
    return re.sub(r"[\s_-]+", "-", name.strip().lower())
