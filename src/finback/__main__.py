"""``python -m finback``: the program, for where its command is not on the path."""

from finback.cli import main

if __name__ == "__main__":
    main()
