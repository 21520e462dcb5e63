"""``python -m onnxprune``."""

from onnxprune.cli.commands import main

if __name__ == "__main__":
    main()
