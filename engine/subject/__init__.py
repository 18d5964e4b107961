"""The classifier under inspection, its samples, how they are fed, the memory it takes, its reference networks."""
