"""`python -m recsys` is `recsys`. Ctrl-C ends it in one line from the first moment on, imports included."""

import sys


def main() -> int:
    """Run one command and return its exit code."""
    try:
        from recsys.cli import main as run

        return run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; run the same command again\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
