"""Models that `fastvid run` asks, and what pruning costs and saves them."""
