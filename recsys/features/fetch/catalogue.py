"""The data sets that can be fetched by name: address, checksum, terms, and how `prepare` reads them.

A checksum stands here only where its publisher, or a pinned commit of its repository, is known to give it. The files of
the others are trusted at the first fetch; their sha256 is then recorded and compared from that day on.
"""

import difflib
import functools

from recsys.errors import DataError
from recsys.features.fetch.amazon_reviews import REVIEW_TERMS, REVIEWS_URL, amazon_reviews
from recsys.features.fetch.public_set import PublicSet, plain_name

NEAR = 0.6  # how alike two names are, 0..1


def is_listed(name: str) -> bool:
    """Whether a data set has this very name; case, blanks and underscores do not matter."""
    return plain_name(name) in _by_name()


def find(name: str) -> PublicSet:
    """The data set of this name; case, blanks and underscores do not matter.

    Raises:
        DataError: no such set; the nearest name is given where one is near.
    """
    known = _by_name()
    plain = plain_name(name)
    plain = _SHORT.get(plain, plain)
    if plain in known:
        return known[plain]
    close = difflib.get_close_matches(plain, known, n=1, cutoff=NEAR)
    nearest = f" did you mean {close[0]!r}?" if close else ""
    raise DataError(f"{name}: no data set of this name;{nearest} recsys data fetch --list shows all")


def all_sets() -> list[PublicSet]:
    """Every data set, in the order in which they are listed."""
    return list(_by_name().values())


@functools.cache
def _by_name() -> dict[str, PublicSet]:
    sets = [*_MOVIELENS, *_BENCHMARKS, *_PLACES_AND_MUSIC, *amazon_reviews()]
    return {one.name: one for one in sets}


_RATINGS = 'read.names=["user_id","item_id","rating","timestamp"]'
_GROUPLENS_TERMS = (
    "GroupLens: for research; name the source in publications; no redistribution and no commercial use without "
    "permission; no warranty"
)


def _movielens(
    name: str, about: str, md5: str, source: str = "ratings.csv", settings: tuple[str, ...] = ()
) -> PublicSet:
    base = "https://files.grouplens.org/datasets/movielens"
    readme = f"{base}/{name}-README.{'txt' if name in ('ml-100k', 'ml-1m') else 'html'}"
    return PublicSet(
        name=name,
        about=about,
        url=f"{base}/{name}.zip",
        unpack="zip",
        source=source,
        terms=_GROUPLENS_TERMS,
        terms_url=readme,
        md5=md5,
        settings=settings,
    )


_MOVIELENS = (
    _movielens(
        "ml-100k",
        "MovieLens, 100,000 ratings with times, 1997-1998",
        "0e33842e24a9c977be4e0107933c0723",
        "u.data",
        ("read.format=tsv", "read.header=false", _RATINGS),
    ),
    _movielens("ml-1m", "MovieLens, 1,000,209 ratings, 2000-2003", "c4d9eecfca2ab87c1945afe126590906", "ratings.dat"),
    _movielens("ml-10m", "MovieLens, 10 M ratings, 1995-2009", "ce571fd55effeba0271552578f2648bd", "ratings.dat"),
    _movielens("ml-20m", "MovieLens, 20 M ratings, 1995-2015", "cd245b17a1ae2cc31bb14903e1204af3"),
    _movielens("ml-25m", "MovieLens, 25 M ratings, 1995-2019", "6b51fb2759a8657d3bfcbfc42b592ada"),
    _movielens("ml-32m", "MovieLens, 32 M ratings, 1995-2023", "d472be332d4daa821edc399621853b57"),
)


def _of_experiments(
    folder: str,
    settings: tuple[str, ...],
    name: str,
    about: str,
    file: str,
    terms: str,
    terms_url: str,
    md5: str | None = None,
) -> PublicSet:
    """A log that the authors of a model put beside its code; folder: repository and pinned commit."""
    return PublicSet(
        name=name,
        about=about,
        url=f"https://raw.githubusercontent.com/{folder}/data/{file}",
        unpack="none",
        source=file,
        terms=terms,
        terms_url=terms_url,
        md5=md5,
        settings=settings,
    )


_sequences = functools.partial(
    _of_experiments,
    "RUCAIBox/CIKM2020-S3Rec/2a81540ae18615d88ef88227b0c066e5b74781e5",
    ("read.format=sequences",),
)
_pairs = functools.partial(
    _of_experiments,
    "FeiSun/BERT4Rec/615eaf2004abecda487a38d5b0c72f3dcfcae5b3",
    ("read.format=csv", 'read.separator=" "', "read.header=false", 'read.names=["user_id","item_id"]'),
)


_BENCHMARKS = (
    _sequences(
        "amazon-beauty",
        "Amazon Beauty 2014, 5-core sequences of the literature, no times",
        "Beauty.txt",
        REVIEW_TERMS,
        REVIEWS_URL,
        "cb03635343187f36526ed4ba48102b53",
    ),
    _sequences(
        "amazon-sports",
        "Amazon Sports and Outdoors 2014, 5-core sequences of the literature, no times",
        "Sports_and_Outdoors.txt",
        REVIEW_TERMS,
        REVIEWS_URL,
        "9691c051152edf528a56581da65b1ce3",
    ),
    _sequences(
        "amazon-toys",
        "Amazon Toys and Games 2014, 5-core sequences of the literature, no times",
        "Toys_and_Games.txt",
        REVIEW_TERMS,
        REVIEWS_URL,
    ),
    _sequences(
        "yelp-s3rec",
        "Yelp 2019, 5-core sequences of the literature, no times",
        "Yelp.txt",
        "Yelp Open Dataset: for academic use; no commercial use",
        "https://www.yelp.com/dataset",
        "da7989002c123e7680afaaa5141fb85b",
    ),
    _sequences(
        "lastfm-s3rec",
        "Last.fm artists, 5-core sequences of the literature, no times",
        "LastFM.txt",
        "HetRec 2011 Last.fm: no commercial use; cite the workshop",
        "https://grouplens.org/datasets/hetrec-2011/",
        "e4fa30bf2ba80aba718e55f108561814",
    ),
    _pairs(
        "amazon-beauty-bert4rec",
        "Amazon Beauty as BERT4Rec's authors cut it: 54,542 items, no times",
        "beauty.txt",
        REVIEW_TERMS,
        REVIEWS_URL,
        "dd90fb68bf1f5a5533d8202e24dd042b",
    ),
    _pairs(
        "steam-bert4rec",
        "Steam games as BERT4Rec's authors cut them, no times",
        "steam.txt",
        "Steam reviews collected by Kang and McAuley: for research; cite their paper",
        "https://cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data",
    ),
)

_CHECKIN_NAMES = 'read.names=["user_id","timestamp","latitude","longitude","item_id"]'


def _checkins(name: str, about: str) -> PublicSet:
    return PublicSet(
        name=name,
        about=about,
        url=f"https://snap.stanford.edu/data/loc-{name}_totalCheckins.txt.gz",
        unpack="gz",
        source=f"loc-{name}_totalCheckins.txt",
        terms="Stanford SNAP: for research; cite Cho, Myers and Leskovec 2011",
        terms_url=f"https://snap.stanford.edu/data/loc-{name}.html",
        settings=("read.format=tsv", "read.header=false", _CHECKIN_NAMES),
    )


_PLACES_AND_MUSIC = (
    _checkins("gowalla", "Gowalla, 6.4 M check-ins with times, 2009-2010"),
    _checkins("brightkite", "Brightkite, 4.5 M check-ins with times, 2008-2010"),
    PublicSet(
        name="lastfm-hetrec2k",
        about="Last.fm HetRec 2011, 186,479 tag events with times",
        url="https://files.grouplens.org/datasets/hetrec2011/hetrec2011-lastfm-2k.zip",
        unpack="zip",
        source="user_taggedartists-timestamps.dat",
        terms="HetRec 2011 Last.fm: no commercial use; cite the workshop",
        terms_url="https://grouplens.org/datasets/hetrec-2011/",
        settings=("read.format=tsv", "read.columns.item_id=artistID"),
    ),
)

# What people say, and what the publisher calls it.
_SHORT = {
    "amazon-games": "amazon-2014-video-games",
    **{
        f"amazon-{year}-{short}": f"amazon-{year}-{full}"
        for year in (2014, 2018, 2023)
        for short, full in (
            ("sports", "sports-and-outdoors"),
            ("toys", "toys-and-games"),
            ("games", "video-games"),
            ("beauty", "beauty" if year == 2014 else "all-beauty"),
        )
    },
}
