"""Search a long history for each candidate's best behaviours, then attend to those alone."""

from recsys.kernels.search.search_topk import search_topk
from recsys.kernels.search.topk_attend import topk_attend

__all__ = ["search_topk", "topk_attend"]
