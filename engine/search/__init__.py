"""The one gradient search: perturbations, objectives, and the loop over units."""
