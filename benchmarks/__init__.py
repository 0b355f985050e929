"""Benchmarks: gan_fast beside eager PyTorch and torch.compile; ``make bench`` runs them."""
