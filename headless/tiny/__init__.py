"""Tiny but complete models, one module each: real classes, real file layouts, random weights. For demo and tests."""
