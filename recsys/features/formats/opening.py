"""One file of a source, opened by its format."""

from recsys.errors import DataError
from recsys.features.formats.parquet import MAGIC, OpenedParquet
from recsys.features.formats.raw import OpenedFile
from recsys.features.formats.source import SourceFile, SourceStream
from recsys.features.formats.text.opened import OpenedText
from recsys.features.schema import ReadConfig


def open_file(file: SourceFile, config: ReadConfig) -> OpenedFile:
    """The file, its format and columns known.

    Raises:
        DataError: it is empty, damaged, of no known format, or lacks a needed column.
    """
    return OpenedParquet(file, config) if is_parquet(file, config) else OpenedText(file, config)


def is_parquet(file: SourceFile, config: ReadConfig) -> bool:
    """Whether the file is to be read as Parquet.

    Raises:
        DataError: the file is empty or cannot be read.
    """
    if config.format != "auto":
        return config.format == "parquet"
    with SourceStream(file) as stream:
        magic = stream.read(len(MAGIC))
    if not magic:
        raise DataError(f"{file.path}: is empty; wanted at least one line of data")
    return magic == MAGIC
