"""From evidence to a verdict: null models, spreads, kinds, the decision."""
