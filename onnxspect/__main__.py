"""``python -m onnxspect``: the command line."""

from onnxspect.cli.main import main

main()
