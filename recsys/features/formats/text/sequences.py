"""Lines of "user item item …": one user a line, items oldest first."""

from collections.abc import Mapping

import polars as pl

from recsys.features.formats.raw import LINE, TEXT, RawTable
from recsys.features.formats.text.blocks import Block
from recsys.features.formats.text.lines import usable_lines

NAMES = ["user_id", "item_id"]


class SequenceParser:
    """One row an event; every row of a line has the line's number. The order is the order of the rows."""

    names = NAMES
    is_sequences = True

    def parse(self, block: Block, wanted: Mapping[str, str]) -> tuple[RawTable, int]:
        """The events of a block, and how many of its bytes they took: all."""
        del wanted
        numbered, unusable = usable_lines(block)
        tokens = pl.col(TEXT).str.extract_all(r"\S+")
        split = numbered.with_columns(tokens.alias("tokens"))
        is_short = pl.col("tokens").list.len() < 2
        reason = pl.lit("missing fields: a user without items").alias("reason")
        short = split.filter(is_short).select(pl.col(LINE).alias("line"), reason, pl.col(TEXT).alias("text"))
        events = split.filter(~is_short).select(
            LINE, TEXT, pl.col("tokens").list.first().alias("user_id"), pl.col("tokens").list.slice(1).alias("item_id")
        )
        rows = events.explode("item_id")
        texts = rows[TEXT]
        rejected = pl.concat([unusable, short]).sort("line")
        return RawTable(rows.drop(TEXT), rejected, texts.gather), len(block.data)
