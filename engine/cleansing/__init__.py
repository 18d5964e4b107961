"""Naming the poisoned samples of a training set."""
