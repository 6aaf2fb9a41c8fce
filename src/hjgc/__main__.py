"""How is `hjgc` run where its script is not on the path? As `python -m hjgc`."""

from hjgc.tools.cli import main

if __name__ == "__main__":
    main()
