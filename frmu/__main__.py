"""`python -m frmu`, where the script `frmu` is not on the path."""

from frmu.cli import main

if __name__ == "__main__":
    main()
