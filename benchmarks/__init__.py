"""Benchmarks: gan_fast compared with eager PyTorch and torch.compile; ``make bench`` runs them."""
