"""Tests of gpt_image.py, and the stand-in gateway they talk to."""
