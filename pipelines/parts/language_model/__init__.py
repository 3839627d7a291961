"""Language models as text encoders."""
