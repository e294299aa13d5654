"""Run the command line: `python -m engine` is `shoal`."""

from engine.cli.main import main

if __name__ == "__main__":
    main()
