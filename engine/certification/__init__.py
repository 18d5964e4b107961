"""What can be certified about a training set."""
