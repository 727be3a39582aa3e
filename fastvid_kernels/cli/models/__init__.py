"""Models for `fastvid run`, and measurements of what pruning costs and saves in them."""
