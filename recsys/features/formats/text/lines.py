"""Numbered lines of a block, and those that hold no text."""

import polars as pl

from recsys.features.formats.raw import LINE, TEXT
from recsys.features.formats.text.blocks import Block


def usable_lines(block: Block) -> tuple[pl.DataFrame, pl.DataFrame]:
    """LINE (Int64) and TEXT of the lines that hold text; `line`, `reason`, `text` of the blank and undecodable ones."""
    return reject_unusable(number_lines(block), block)


def number_lines(block: Block) -> pl.DataFrame:
    """LINE (Int64) and TEXT of each line."""
    frame = block.lines().rename(TEXT).to_frame().with_row_index(LINE, offset=block.first_line)
    return frame.select(pl.col(LINE).cast(pl.Int64), TEXT)


def reject_unusable(numbered: pl.DataFrame, block: Block) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The lines that hold text, and those that are blank or undecodable, with the reason."""
    is_undecodable = pl.col(LINE).is_in(sorted(block.undecodable))
    is_blank = pl.col(TEXT).str.strip_chars() == ""
    reason = pl.when(is_undecodable).then(pl.lit("bytes that are not UTF-8")).otherwise(pl.lit("empty line"))
    is_unusable = (is_undecodable | is_blank) if block.undecodable else is_blank
    rejected = numbered.filter(is_unusable).select(
        pl.col(LINE).alias("line"), reason.alias("reason"), pl.col(TEXT).alias("text")
    )
    return (numbered.filter(~is_unusable) if rejected.height else numbered), rejected
