"""The one JSON report and what is drawn from it."""
