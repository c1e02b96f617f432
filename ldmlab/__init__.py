"""A workbench to reproduce High-Resolution Image Synthesis with Latent Diffusion Models (arXiv 2112.10752v2)."""

__version__ = "0.4.0"  # the one place: pyproject.toml reads it, a record's env states it
