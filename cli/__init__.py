"""The command line: options in, exit status out. No logic of its own."""
