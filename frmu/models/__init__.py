"""The analytic model: frozen encoders, additive statistics, one exact solve."""
