"""What is inspected, the one search, statistics, verdict, patches and reports."""
