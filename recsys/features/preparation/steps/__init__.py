"""The steps of `prepare`, each a pure function over files: split by user, arrange inside a part, merge, encode."""
