"""The parts of `benchmarks/gpu_day.py`: what is measured on a GPU, and the page that shows it."""
