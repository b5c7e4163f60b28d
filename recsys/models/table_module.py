"""Modules whose rows are no parameters: what they hold stands in the state_dict under `table.`, as plain tensors."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from recsys.config import finite

PART = "table."  # of the keys in a state_dict


def learning_rate(lr: object) -> float:
    """The rate of a step as a float.

    Raises:
        ValueError: it is negative or no finite number.
    """
    rate = finite(lr)
    if not rate >= 0:
        raise ValueError(f"lr={lr}; wanted a number of at least 0")
    return rate


class TableModule(nn.Module):
    """A module with a table beside its parameters. A state whose table does not fit is refused by name.

    Attributes:
        needed: parts of the table's state that are never missing.
    """

    needed: ClassVar[tuple[str, ...]]

    def table_state(self) -> dict[str, Tensor]:
        """All that the table is to go on from, by name."""
        raise NotImplementedError

    def load_table_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `table_state` gave.

        Raises:
            ValueError: it does not fit; nothing is changed.
        """
        raise NotImplementedError

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({f"{prefix}{PART}{name}": value for name, value in self.table_state().items()})

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        start = prefix + PART
        others = {key: value for key, value in state_dict.items() if not key.startswith(start)}
        state = {key.removeprefix(start): value for key, value in state_dict.items() if key.startswith(start)}
        missing = [start + name for name in self.needed if name not in state]
        missing_keys.extend(missing)
        if not missing and self._fits(others, prefix):
            try:
                self.load_table_state(state)
            except ValueError as error:
                error_msgs.append(f"{start}: {error}")
                return
        super()._load_from_state_dict(others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    def _fits(self, others: Mapping[str, Any], prefix: str) -> bool:
        """Whether the parameters and buffers are of the shapes here; torch says which are not."""
        own = {**dict(self.named_parameters(recurse=False)), **dict(self.named_buffers(recurse=False))}
        return all(others[prefix + name].shape == value.shape for name, value in own.items() if prefix + name in others)
