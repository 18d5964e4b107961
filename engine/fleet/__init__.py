"""Many models scanned as one: what is to be scanned, by whom, what is known already, and what came of it.

Nothing here opens a model, a sample or an image: every model is scanned by a command of its own, whose worker locks itself in
(docs/many-models.md). Files are read as bytes to be told apart, and finished reports through the checks that a
stranger's run folder gets.
"""
