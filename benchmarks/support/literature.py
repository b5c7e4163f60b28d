"""Published figures to set beside ours: HR@10 and NDCG@10, full ranking, leave-one-out. A set without any is not here.

Only figures of the same task stand under a set: Beauty of BERT4Rec's repository (54,542 items) and the 5-core Beauty
(12,101 items) are two tasks, and so are ML-1M with and without its rare items.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Published:
    """One model's figures as somebody reported them."""

    model: str
    source: str
    hr_at_10: float
    ndcg_at_10: float


_REPRO = "BERT4Rec reproducibility study"
_ANTKLEN = "Klenitskiy and Vasilev 2023"
_RECTOOLS = "RecTools"
_ESASREC = "eSASRec"
_ICSREC = "ICSRec"
_OTHERS = "reported by others"


def _published(model: str, source: str, hr_at_10: float, ndcg_at_10: float) -> Published:
    return Published(model=model, source=source, hr_at_10=hr_at_10, ndcg_at_10=ndcg_at_10)


LITERATURE: dict[str, tuple[Published, ...]] = {
    "ml-1m": (
        _published("BERT4Rec", _REPRO, 0.2821, 0.1516),
        _published("BERT4Rec", _ANTKLEN, 0.2843, 0.1537),
        _published("BERT4Rec", _RECTOOLS, 0.2921, 0.1618),
        _published("SASRec, BCE", _ANTKLEN, 0.2500, 0.1341),
        _published("SASRec, softmax", _RECTOOLS, 0.3058, 0.1779),
        _published("SASRec, softmax", _ANTKLEN, 0.3152, 0.1821),
    ),
    "amazon-beauty-bert4rec": (
        _published("BERT4Rec, original code", _REPRO, 0.0163, 0.0079),
        _published("BERT4Rec", _ANTKLEN, 0.0338, 0.0187),
        _published("BERT4Rec", _RECTOOLS, 0.0434, 0.0242),
        _published("SASRec, softmax", _ANTKLEN, 0.0533, 0.0327),
        _published("SASRec, softmax", _RECTOOLS, 0.0595, 0.0359),
    ),
    "amazon-beauty": (
        _published("SASRec", _OTHERS, 0.0605, 0.0318),
        _published("SASRec, sampled softmax", _ESASREC, 0.0921, 0.0531),
        _published("eSASRec", _ESASREC, 0.0928, 0.0523),
        _published("ICSRec", _ICSREC, 0.0959, 0.0578),
    ),
    "amazon-sports": (
        _published("SASRec", _OTHERS, 0.0350, 0.0192),
        _published("SASRec, sampled softmax", _ESASREC, 0.0569, 0.0314),
        _published("eSASRec", _ESASREC, 0.0560, 0.0323),
        _published("ICSRec", _ICSREC, 0.0565, 0.0335),
    ),
}
