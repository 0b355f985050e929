"""Measure what a generator has learned."""

from gan_fast.metrics.coverage import Coverage, class_coverage

__all__ = ["Coverage", "class_coverage"]
