"""How far two distributions lie apart, beyond what chance gives two samples of their sizes.

    JS(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2        in bits, 0 (alike) to 1 (nothing in common)

Paper: Lin 1991, "Divergence measures based on the Shannon entropy". Two samples of one distribution differ by chance,
the more so the more values there are and the fewer events. Here the pooled counts are dealt out anew to two samples of
the same sizes, a few times; the mean of such distances and five times their standard deviation are taken off.
"""

import numpy as np
import numpy.typing as npt

from recsys.features.slices import Int64s

DEALS = 20
DEVIATIONS = 5
SEED = 0


def drift(old: Int64s, new: Int64s) -> float:
    """The distance beyond chance, in bits, 0 to 1.

    Args:
        old: (K,) int64, events of each value in one sample.
        new: (K,) int64, of the same values in the other.
    """
    total_old, total_new = int(old.sum()), int(new.sum())
    if not total_old or not total_new:
        return 0.0
    found = jensen_shannon(old, new)
    generator = np.random.default_rng(SEED)
    pooled, share = old + new, total_old / (total_old + total_new)
    dealt = [generator.binomial(pooled, share) for _ in range(DEALS)]
    by_chance = [jensen_shannon(one, pooled - one) for one in dealt if 0 < one.sum() < pooled.sum()]
    if not by_chance:
        return 0.0
    return max(0.0, found - float(np.mean(by_chance)) - DEVIATIONS * float(np.std(by_chance)))


def jensen_shannon(old: Int64s, new: Int64s) -> float:
    """The Jensen-Shannon distance of two counts over the same values, in bits."""
    p, q = old / old.sum(), new / new.sum()
    return max(0.0, _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2)


def _entropy(shares: npt.NDArray[np.float64]) -> float:
    positive = shares[shares > 0]
    return float(-(positive * np.log2(positive)).sum())
