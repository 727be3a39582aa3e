"""What pruning changes for a model: prefill, training step, requests served."""
