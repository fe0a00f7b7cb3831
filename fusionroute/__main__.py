"""``python -m fusionroute``."""

from fusionroute.cli import main

if __name__ == "__main__":
    main()
