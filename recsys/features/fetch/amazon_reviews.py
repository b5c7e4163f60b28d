"""Amazon's reviews by category, 5-core, in their three editions: 2014, 2018 and 2023."""

from recsys.features.fetch.public_set import PublicSet, plain_name

REVIEW_TERMS = "Amazon review data of McAuley et al.: for research; cite the paper that its page names"
REVIEWS_URL = "https://jmcauley.ucsd.edu/data/amazon"

_CATEGORIES_2014 = """
Amazon_Instant_Video Apps_for_Android Automotive Baby Beauty Books CDs_and_Vinyl Cell_Phones_and_Accessories
Clothing_Shoes_and_Jewelry Digital_Music Electronics Grocery_and_Gourmet_Food Health_and_Personal_Care
Home_and_Kitchen Kindle_Store Movies_and_TV Musical_Instruments Office_Products Patio_Lawn_and_Garden
Pet_Supplies Sports_and_Outdoors Tools_and_Home_Improvement Toys_and_Games Video_Games
"""
_CATEGORIES_2018 = """
AMAZON_FASHION All_Beauty Appliances Arts_Crafts_and_Sewing Automotive Books CDs_and_Vinyl
Cell_Phones_and_Accessories Clothing_Shoes_and_Jewelry Digital_Music Electronics Gift_Cards
Grocery_and_Gourmet_Food Home_and_Kitchen Industrial_and_Scientific Kindle_Store Luxury_Beauty
Magazine_Subscriptions Movies_and_TV Musical_Instruments Office_Products Patio_Lawn_and_Garden Pet_Supplies
Prime_Pantry Software Sports_and_Outdoors Tools_and_Home_Improvement Toys_and_Games Video_Games
"""
_CATEGORIES_2023 = """
All_Beauty Amazon_Fashion Appliances Arts_Crafts_and_Sewing Automotive Baby_Products Beauty_and_Personal_Care
Books CDs_and_Vinyl Cell_Phones_and_Accessories Clothing_Shoes_and_Jewelry Digital_Music Electronics
Gift_Cards Grocery_and_Gourmet_Food Handmade_Products Health_and_Household Health_and_Personal_Care
Home_and_Kitchen Industrial_and_Scientific Kindle_Store Magazine_Subscriptions Movies_and_TV
Musical_Instruments Office_Products Patio_Lawn_and_Garden Pet_Supplies Software Sports_and_Outdoors
Subscription_Boxes Tools_and_Home_Improvement Toys_and_Games Video_Games
"""

_REVIEW_COLUMNS = (
    "read.format=jsonl",
    "read.columns.user_id=reviewerID",
    "read.columns.item_id=asin",
    "read.columns.timestamp=unixReviewTime",
    "read.columns.weight=overall",
)


def amazon_reviews() -> list[PublicSet]:
    """Every category of every edition."""
    return [*_amazon_2014(), *_amazon_2018(), *_amazon_2023()]


def _amazon(year: int, category: str, url: str, settings: tuple[str, ...], terms_url: str) -> PublicSet:
    return PublicSet(
        name=f"amazon-{year}-{plain_name(category)}",
        about=f"Amazon reviews {year}, {category.replace('_', ' ')}, 5-core, with times",
        url=url,
        unpack="gz",
        source=url.rpartition("/")[2].removesuffix(".gz"),
        terms=REVIEW_TERMS,
        terms_url=terms_url,
        settings=settings,
    )


def _amazon_2014() -> list[PublicSet]:
    base = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
    return [
        _amazon(2014, category, f"{base}/reviews_{category}_5.json.gz", _REVIEW_COLUMNS, REVIEWS_URL)
        for category in _CATEGORIES_2014.split()
    ]


def _amazon_2018() -> list[PublicSet]:
    base = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2/categoryFilesSmall"
    page = "https://nijianmo.github.io/amazon/index.html"
    return [
        _amazon(2018, category, f"{base}/{category}_5.json.gz", _REVIEW_COLUMNS, page)
        for category in _CATEGORIES_2018.split()
    ]


def _amazon_2023() -> list[PublicSet]:
    base = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/benchmark/5core/rating_only"
    page = "https://amazon-reviews-2023.github.io/"
    settings = ("read.columns.item_id=parent_asin",)
    return [
        _amazon(2023, category, f"{base}/{category}.csv.gz", settings, page) for category in _CATEGORIES_2023.split()
    ]
