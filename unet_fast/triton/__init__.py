"""Triton kernels, one file an op. Each file has a dict ``KERNELS``: operator name -> function with the arguments of the
operator's schema (its record in unet_fast/ops). ``unet_fast/ops/_backends.py`` finds the files by their names and
registers the functions with torch; they are imported, and Triton with them, when the first one runs.
"""
