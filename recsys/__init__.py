"""Sequential recommendation: behaviour logs in, ranked items out."""

__version__ = "0.1.0"
