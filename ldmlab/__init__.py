"""A workbench to reproduce High-Resolution Image Synthesis with Latent Diffusion Models (arXiv 2112.10752v2)."""
