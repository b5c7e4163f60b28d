"""The definition of the hash table: a dict, and the rows that were freed."""

from collections.abc import Sequence


class HashTableReference:
    """Rows by id, one id at a time.

    A new id gets the row that was freed last, or else the lowest that was never given.
    """

    def __init__(self, max_rows: int | None = None) -> None:
        self.rows: dict[int, int] = {}
        self.free: list[int] = []
        self.next_row = 0
        self.max_rows = max_rows
        self.num_refused = 0

    def find(self, ids: Sequence[int]) -> list[int]:
        """The row of each id, -1 for one that is not there."""
        return [self.rows.get(id_, -1) for id_ in ids]

    def find_or_insert(self, ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """The row of each id, -1 for one that found no room, and the places where ids got their rows."""
        rows, new = [], []
        for place, id_ in enumerate(ids):
            if id_ not in self.rows and (self.max_rows is None or len(self.rows) < self.max_rows):
                self.rows[id_] = self.free.pop() if self.free else self.next_row
                self.next_row = max(self.next_row, self.rows[id_] + 1)
                new.append(place)
            self.num_refused += id_ not in self.rows
            rows.append(self.rows.get(id_, -1))
        return rows, new

    def erase(self, ids: Sequence[int]) -> list[int]:
        """The row that each id had, -1 for one that was not there."""
        rows = [self.rows.pop(id_, -1) for id_ in ids]
        self.free += [row for row in rows if row >= 0]
        return rows

    def export(self) -> list[tuple[int, int]]:
        """Ids and rows in the order of the rows."""
        return sorted(self.rows.items(), key=lambda item: item[1])
