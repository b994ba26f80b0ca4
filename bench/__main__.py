"""`python -m bench` is `flora-bench`."""

from bench.cli import main

if __name__ == "__main__":
    main()
