"""Other libraries, each in a virtual environment of its own: built by `build`, driven by the scripts in `runners/`."""
