"""Leakage: what training can see of the future, found by name; and how much of it a declared leaky protocol uses."""

from recsys.features.leakage.leak import Leak, refuse_leaks
from recsys.features.leakage.popularity import check_bundle, check_counts, check_vocabulary
from recsys.features.leakage.report import find_leaks, leakage_report, open_without_leaks, refuse_leaky
from recsys.features.leakage.told import check_untouched

__all__ = [
    "Leak",
    "check_bundle",
    "check_counts",
    "check_untouched",
    "check_vocabulary",
    "find_leaks",
    "leakage_report",
    "open_without_leaks",
    "refuse_leaks",
    "refuse_leaky",
]
